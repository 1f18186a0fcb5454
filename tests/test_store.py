"""The store: one winner, nothing lost, nothing half written. Run: pytest tests/test_store.py"""

import pickle
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from regcompare import store as store_module
from regcompare.config import RunConfig, preset
from regcompare.runfile import METRICS, RunFile, RunFileError
from regcompare.store import STALE_AFTER, NotOwner, Store, StoreError

TINY = {"train_size": 100, "batch_size": 20, "epochs": 2}
CONFIG = preset("input-bn", **TINY, seeds=(0, 1, 2, 3, 4))  # two stacks: four replicates and one
KEY = CONFIG.key()
FACTS = {"began": 1e9, "ended": 1e9 + 2.5, "device": "cpu", "machine": "Linux ±", "versions": {"torch": "2.13.0"}}
POINT = {"step": 1, "epoch": 0.2, "train_loss": [0.1 + 0.2, 1e-300], "train_accuracy": [0.5, 1.0], "test_loss": None, "test_accuracy": None}


def other(number):
    """Another tiny recipe for each number."""
    return RunConfig(**TINY, seeds=(100 + number,))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.db"


@pytest.fixture
def stores(path):
    """Make Store objects on the test's database, closed at its end."""
    made = []

    def make():
        made.append(Store(f"sqlite:///{path}"))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def store(stores):
    return stores()


@pytest.fixture(scope="module")
def trained():
    """A real training: what each stack yielded."""
    import torch

    from regcompare.data import load
    from regcompare.train import train

    torch.set_num_threads(1)
    return [list(train(CONFIG, load(CONFIG), seeds)) for seeds in CONFIG.stacks()]


@pytest.fixture(scope="module")
def content(trained, tmp_path_factory):
    """Its run file, weights included, out of a store of its own."""
    with closing(Store(f"sqlite:///{tmp_path_factory.mktemp('maker')}/s.db")) as maker:
        finished(maker, trained)
        return maker.export_file(KEY)


def points_of(events):
    return [event.__dict__ for event in events if "train_loss" in event.__dict__]


def checkpoints_of(events):
    return [event.checkpoint for event in events if getattr(event, "checkpoint", None)]


def start(store, config=CONFIG, owner="me", now=None):
    """A run that `owner` trains: with points, a checkpoint and a finished stack, so that there is something to lose."""
    store.request(config, now)
    run = store.claim(owner, now, config.key())
    for step in (1, 2, 5):
        store.add_point(run.key, 0, step, POINT, owner)
    store.save_checkpoint(run.key, 0, {"x": np.arange(3.0)}, 2, owner)
    return run


def stack_arrays(events):
    """What a stack leaves behind, as a training process records it."""
    history = [event.batch_norm for event in events if hasattr(event, "batch_norm")]
    batch_norm = {f"batch_norm/{name}": np.stack([epoch[name] for epoch in history]) for name in history[0]}
    return events[-1].arrays | batch_norm


def finish(store, trained, owner="me"):
    """Give a running `CONFIG` what its two stacks yielded, the second one first."""
    ended = []
    for index in (1, 0):
        for point in points_of(trained[index]):
            store.add_point(KEY, index, point["step"], point, owner)
        ended.append(store.finish_stack(KEY, index, stack_arrays(trained[index]), FACTS, owner))
    return ended


def finished(store, trained):
    """The run of `CONFIG`, asked for, claimed and done."""
    store.request(CONFIG)
    store.claim("me", key=KEY)
    assert finish(store, trained) == [False, True]
    return store.run(KEY)


def query(path, sql, *values):
    """Rows as SQLite itself has them."""
    with closing(sqlite3.connect(path, timeout=30)) as db, db:
        return db.execute(sql, values).fetchall()


def rows(path, key=KEY):
    """Number of rows by table that belong to a run."""
    return {table: query(path, f"select count(*) from {table} where key = ?", key)[0][0] for table in ("runs", "points", "artifacts")}


def same(one, other):
    """Bit for bit: NaN equals itself, and a type is part of a number."""
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def together(count, call):
    """Call `call(i)` in `count` threads, let go at once; what they returned. An exception in one is the test's."""
    barrier, results = threading.Barrier(count), [None] * count

    def work(index):
        barrier.wait(30)
        try:
            results[index] = call(index)
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


# Asking and claiming


def test_thirty_ask_for_the_same_recipe(stores):
    shared = [stores() for _ in range(3)]
    answers = together(30, lambda i: shared[i % 3].request(CONFIG))
    (run,) = shared[0].runs()
    assert (run.status, run.config, run.preset, run.label) == ("queued", CONFIG, "input-bn", "input-bn")
    assert answers == [run] * 30


def test_a_finished_run_is_not_queued_again(store, trained):
    before = finished(store, trained)
    assert store.request(CONFIG) == before
    assert before.status == "done"


@pytest.mark.parametrize("status", ["queued", "running", "interrupted"])
def test_an_open_run_is_not_queued_again(store, status):
    store.request(CONFIG, now=1.0)
    if status != "queued":
        store.claim("me", now=2.0)
    if status == "interrupted":
        store.release("me")
    for force in (False, True):
        run = store.request(CONFIG, now=9.0, force=force)
        assert (run.status, run.created) == (status, 1.0)


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_run_without_result_is_queued_anew(store, path, end):
    """From the start: nothing of the first attempt is left."""
    start(store, now=1.0)
    if end == "failed":
        store.fail(KEY, "No.", "me")
    else:
        store.cancel(KEY)
        store.end_cancelled(KEY, "me")
    assert store.run(KEY).status == end
    run = store.request(CONFIG, now=9.0)
    assert (run.status, run.created, run.started, run.finished, run.error, run.cancel) == ("queued", 9.0, None, None, None, False)
    assert rows(path) == {"runs": 1, "points": 0, "artifacts": 0}


def test_force_queues_a_finished_run_anew(store, path, trained):
    finished(store, trained)
    run = store.request(CONFIG, force=True)
    assert (run.status, run.summary) == ("queued", None)
    assert store.record(KEY) is None
    assert rows(path) == {"runs": 1, "points": 0, "artifacts": 0}


def test_the_oldest_is_claimed_first(store):
    """By the time it was asked for, also when it was begun before; or the one that is named."""
    for number, created in ((0, 30.0), (1, 10.0), (2, 20.0), (3, 40.0)):
        store.request(other(number), now=created)
    assert store.claim("x", now=50.0, key=other(3).key()).config == other(3)
    assert store.claim("x", now=50.0, key=other(3).key()) is None
    assert store.claim("a", now=51.0).config == other(1)
    store.release("a")
    claimed = [store.claim("b", now=52.0 + i) for i in range(4)]
    assert [run and run.config for run in claimed] == [other(1), other(2), other(0), None]
    assert [run.started for run in claimed[:3]] == [51.0, 53.0, 54.0]  # a resumed run began when it first began
    assert [run.status for run in claimed[:3]] == ["running"] * 3


def test_the_newest_is_listed_first(store):
    for number, created in ((0, 30.0), (1, 10.0), (2, 20.0)):
        store.request(other(number), now=created)
    store.claim("me")
    assert [run.created for run in store.runs()] == [30.0, 20.0, 10.0]
    assert [run.created for run in store.runs(["queued"])] == [30.0, 20.0]
    assert store.runs(["failed"]) == []


def test_one_thread_wins_a_claim(stores):
    """Sixteen threads on four Store objects, five runs: each run goes to one of them, none is left."""
    shared = [stores() for _ in range(4)]
    for number in range(5):
        shared[0].request(other(number))
    claimed = together(16, lambda i: shared[i % 4].claim(f"owner {i}"))
    assert sorted(run.key for run in claimed if run) == sorted(other(number).key() for number in range(5))
    for index, run in enumerate(claimed):
        if run:
            shared[0].add_point(run.key, 0, 1, POINT, f"owner {index}")  # who got it owns it
    assert shared[0].claim("late") is None


CLAIMER = """
import sys
from regcompare.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
run = store.claim(sys.argv[2])
print(run and run.key)
"""


def test_one_process_wins_a_claim(store):
    store.request(CONFIG)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, store.url, f"owner {i}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for i in range(3)
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            process.stdin.write("go\n")
        answers = [process.communicate(timeout=30)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sorted(answers) == sorted([KEY, "None", "None"])
    store.add_point(KEY, 0, 1, POINT, f"owner {answers.index(KEY)}")


OPENER = """
import sys
from regcompare.store import Store
print("ready", flush=True)
for url in sys.stdin:
    try:
        Store(url.strip()).close()
        print("", flush=True)
    except Exception as error:
        print(repr(error), flush=True)
"""


def test_processes_open_a_new_store_at_once(tmp_path):
    """The server, its workers and a shell may all be the first; SQLite's switch to WAL does not wait by itself."""
    openers = [subprocess.Popen([sys.executable, "-c", OPENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        assert [opener.stdout.readline() for opener in openers] == ["ready\n"] * 4
        for turn in range(60):
            for opener in openers:
                opener.stdin.write(f"sqlite:///{tmp_path / f'{turn}.db'}\n")
                opener.stdin.flush()
            assert [opener.stdout.readline() for opener in openers] == ["\n"] * 4
    finally:
        for opener in openers:
            opener.kill()
            opener.communicate()


# Owners: alive, silent, gone


def test_a_silent_owner_loses_its_run(store, path):
    """Its points and checkpoint stay, for whoever takes it up again."""
    start(store, now=100.0)
    assert store.reap(100.0 + STALE_AFTER) == []
    store.beat("me", 103.0)
    store.beat("somebody else", 200.0)
    assert store.reap(103.0 + STALE_AFTER) == []
    assert store.run(KEY).status == "running"
    assert store.reap(103.1 + STALE_AFTER) == [KEY]
    assert store.reap(103.1 + STALE_AFTER) == []
    assert (store.run(KEY).status, store.run(KEY).started) == ("interrupted", 100.0)
    assert rows(path) == {"runs": 1, "points": 3, "artifacts": 1}
    assert store.claim("next", now=300.0).started == 100.0
    assert store.reap(300.0 + STALE_AFTER) == []  # the claim was a sign of life


@pytest.mark.parametrize("how", ["reap", "release"])
def test_a_cancelled_run_whose_owner_goes_is_cancelled(store, path, how):
    start(store, now=100.0)
    store.cancel(KEY)
    if how == "reap":
        assert store.reap(101.0 + STALE_AFTER) == [KEY]
    else:
        store.release("me")
    run = store.run(KEY)
    assert run.status == "cancelled"
    assert run.finished is not None
    assert rows(path) == {"runs": 1, "points": 0, "artifacts": 0}
    assert store.claim("next") is None


def test_an_owner_releases_only_its_own(store):
    start(store, other(0), "me")
    start(store, other(1), "you")
    store.release("me")
    assert [store.run(other(number).key()).status for number in range(2)] == ["interrupted", "running"]


LOSSES = {
    "never had it": lambda store: (store.release("me"), store.claim("you")),
    "released": lambda store: store.release("me"),
    "silent": lambda store: store.reap(time.time() + 2 * STALE_AFTER),
    "cancelled": lambda store: store.cancel(KEY),
    "failed": lambda store: store.fail(KEY, "No.", "me"),
    "deleted": lambda store: store.delete(KEY),
    "another has it": lambda store: (store.delete(KEY), start(store, owner="you")),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_who_lost_a_run_writes_nothing(store, path, loss):
    start(store)
    LOSSES[loss](store)
    dump = "select 'run', status, owner from runs union all select 'point', step, value from points"
    before = query(path, dump), query(path, "select * from artifacts")
    final = {"final/test_loss": np.zeros(4)}
    for write in (
        lambda: store.add_point(KEY, 0, 7, POINT, "me"),
        lambda: store.save_checkpoint(KEY, 0, {"x": np.zeros(1)}, 7, "me"),
        lambda: store.finish_stack(KEY, 0, final, FACTS, "me"),
        lambda: store.load_checkpoint(KEY, 0, "me"),
    ):
        with pytest.raises(NotOwner):
            write()
    assert (query(path, dump), query(path, "select * from artifacts")) == before


def test_only_the_owner_ends_a_run(store, path):
    """With a failure, or with the end of a cancelled one; and only a cancelled run ends as cancelled."""
    start(store)
    store.fail(KEY, "Not yours.", "you")
    store.end_cancelled(KEY, "me")
    assert (store.run(KEY).status, store.run(KEY).error) == ("running", None)
    store.cancel(KEY)
    store.end_cancelled(KEY, "you")
    assert store.run(KEY).status == "running"
    assert rows(path) == {"runs": 1, "points": 3, "artifacts": 1}
    store.end_cancelled(KEY, "me")
    assert store.run(KEY).status == "cancelled"
    assert store.run(KEY).finished > store.run(KEY).started
    assert rows(path) == {"runs": 1, "points": 0, "artifacts": 0}


def test_a_failed_run_says_why(store, path):
    start(store)
    store.fail(KEY, "The loss of seed 3 is no longer a finite number.", "me")
    run = store.run(KEY)
    assert (run.status, run.error) == ("failed", "The loss of seed 3 is no longer a finite number.")
    assert run.finished > run.started
    assert rows(path) == {"runs": 1, "points": 0, "artifacts": 0}


# Cancel and delete


@pytest.mark.parametrize("waiting", ["queued", "interrupted"])
def test_a_waiting_run_is_cancelled_at_once(store, path, waiting):
    store.request(CONFIG)
    if waiting == "interrupted":
        start(store)
        store.release("me")
    assert store.run(KEY).status == waiting
    store.cancel(KEY, now=77.0)
    assert (store.run(KEY).status, store.run(KEY).finished) == ("cancelled", 77.0)
    assert rows(path) == {"runs": 1, "points": 0, "artifacts": 0}
    assert store.claim("me") is None


def test_a_running_run_is_asked_to_stop(store):
    start(store)
    store.cancel(KEY)
    assert (store.run(KEY).status, store.run(KEY).cancel) == ("running", True)


def test_a_finished_run_stays_as_it_is(store, trained):
    start(store, other(0))
    store.fail(other(0).key(), "No.", "me")
    finished(store, trained)
    before = store.runs()
    content = store.export_file(KEY)
    for run in before:
        store.cancel(run.key)
        store.release("me")
        store.reap(time.time() + 1e6)
        store.fail(run.key, "Too late.", "me")
    assert store.runs() == before
    assert {run.status for run in before} == {"done", "failed"}
    assert store.export_file(KEY) == content


def test_delete_removes_every_row(store, path, trained):
    """Of an unfinished run and of a finished one; a neighbour keeps what it has."""
    start(store, other(0))
    neighbour = rows(path, other(0).key())
    start(store)
    assert rows(path) == {"runs": 1, "points": 3, "artifacts": 1}
    store.delete(KEY)
    assert rows(path) == {"runs": 0, "points": 0, "artifacts": 0}
    finished(store, trained)
    assert rows(path) == {"runs": 1, "points": 0, "artifacts": 2}
    store.delete(KEY)
    assert rows(path) == {"runs": 0, "points": 0, "artifacts": 0}
    assert (store.run(KEY), store.record(KEY), store.export_file(KEY)) == (None, None, None)
    assert rows(path, other(0).key()) == neighbour == {"runs": 1, "points": 3, "artifacts": 1}
    store.delete(KEY)  # again is no error


# Points and checkpoints


def test_a_cursor_gives_only_what_came_later(stores):
    """In the order of writing, to another Store object as well; a number comes back as it went in."""
    writer, reader = stores(), stores()
    for config in (CONFIG, other(0)):
        writer.request(config)
        writer.claim("me", key=config.key())
    assert reader.points(KEY) == []
    wrote = [(1, 5), (0, 1), (0, 2), (1, 6), (0, 5)]  # stack, step
    cursor = 0
    for stack, step in wrote:
        writer.add_point(KEY, stack, step, POINT | {"step": step}, "me")
        writer.add_point(other(0).key(), stack, step, {}, "me")
        ((next_cursor, found_stack, value),) = reader.points(KEY, cursor)
        assert next_cursor > cursor
        assert (found_stack, value) == (stack, POINT | {"step": step})
        cursor = next_cursor
    assert reader.points(KEY, cursor) == []
    everything = reader.points(KEY)
    assert [(stack, value["step"]) for _, stack, value in everything] == wrote
    assert reader.points(KEY, everything[2][0]) == everything[3:]
    assert reader.progress(KEY) == {0: 5, 1: 6}
    assert reader.progress("nothing") == {}


def test_a_cursor_is_never_used_twice(store):
    """Not even when the points before it are gone: a viewer that waits must not miss what a resumed run writes."""
    start(store)
    last = store.points(KEY)[-1][0]
    assert store.load_checkpoint(KEY, 1, "me") is None
    store.delete(KEY)
    start(store)
    assert [cursor > last for cursor, _, _ in store.points(KEY)] == [True] * 3


def test_a_step_has_one_point(store):
    start(store)
    with pytest.raises(SQLAlchemyError):
        store.add_point(KEY, 0, 5, POINT, "me")
    assert len(store.points(KEY)) == 3


def test_a_checkpoint_loses_no_bit(stores, trained):
    """A real one, of every kind of array, and one that lies in memory in Fortran order; a later one replaces it."""
    writer, reader = stores(), stores()
    start(writer)
    for number, checkpoint in enumerate(checkpoints_of(trained[0]), 1):
        kept = checkpoint | {"turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "odd": np.array([np.nan, -0.0, np.inf])}
        writer.save_checkpoint(KEY, 0, kept, 5 * number, "me")
        back = reader.load_checkpoint(KEY, 0, "me")
        assert int(back.pop("step")) == 5 * number
        assert back.keys() == kept.keys()
        assert all(same(back[name], np.asarray(kept[name])) for name in kept)
    assert number == 2
    assert reader.load_checkpoint(KEY, 1, "me") is None


def test_points_after_the_checkpoint_are_removed(store):
    """They will be trained again. The other stack keeps its own until it is asked for; without a checkpoint none is left."""
    start(store)
    for step in (1, 5):
        store.add_point(KEY, 1, step, POINT, "me")
    assert int(store.load_checkpoint(KEY, 0, "me")["step"]) == 2
    assert store.progress(KEY) == {0: 2, 1: 5}
    assert len(store.points(KEY)) == 4
    assert store.load_checkpoint(KEY, 1, "me") is None
    assert store.progress(KEY) == {0: 2}


# The end of a run


def test_the_last_stack_makes_the_run_done(store, path, trained):
    store.request(CONFIG)
    store.claim("me")
    for stack in range(2):
        store.save_checkpoint(KEY, stack, {"x": np.zeros(1)}, 5, "me")
    assert store.finished_stacks(KEY) == set()
    assert finish(store, trained) == [False, True]
    run = store.run(KEY)
    assert (run.status, run.source, run.error, run.summary["seconds"]) == ("done", "trained", None, 2.5)
    assert run.finished >= run.started
    assert (store.points(KEY), store.progress(KEY), store.finished_stacks(KEY)) == ([], {}, set())
    assert query(path, "select name from artifacts order by name") == [("record",), ("weights",)]
    record = store.record(KEY, weights=True)
    first, second = map(stack_arrays, trained)
    assert record.arrays.keys() == {*first, "history/step", "history/epoch", *(f"history/{metric}" for metric in METRICS)}
    assert all(same(record.arrays[name][:4], value) for name, value in first.items() if name.startswith(("final", "weights")))
    assert all(same(record.arrays[name][:, 4:].copy(), value) for name, value in second.items() if name.startswith("batch_norm"))
    assert record.history("train_loss")[:, :4].tolist() == [point["train_loss"] for point in points_of(trained[0])]
    assert run.summary == record.summary()
    assert run.file_name == f"input-bn-mnist-5k-{KEY}.safetensors"
    assert not any(name.startswith("weights") for name in store.record(KEY).arrays)
    with pytest.raises(NotOwner):
        store.add_point(KEY, 0, 99, POINT, "me")


def test_a_stack_alone_leaves_the_run_running(stores, trained):
    store = stores()
    start(store)
    for _ in range(2):  # twice is once
        assert not store.finish_stack(KEY, 0, stack_arrays(trained[0]), FACTS, "me")
    assert stores().finished_stacks(KEY) == {0}
    assert (store.run(KEY).status, store.record(KEY)) == ("running", None)
    assert len(store.points(KEY)) == 3


NO_END = "create trigger no_end before update of status on runs when new.status = 'done' begin select raise(abort, 'disk full'); end"
NO_RESULT = "create trigger no_end before insert on artifacts when new.name = 'weights' begin select raise(abort, 'disk full'); end"


@pytest.mark.parametrize("trigger", [NO_END, NO_RESULT])
def test_an_end_that_fails_changes_nothing(store, path, trained, content, trigger):
    """Neither half of it: the run still trains, with its points and checkpoints, and can end a moment later."""
    start(store)
    query(path, "delete from points")
    query(path, trigger)
    with pytest.raises(SQLAlchemyError, match="disk full"):
        finish(store, trained)
    assert (store.run(KEY).status, store.run(KEY).summary, store.record(KEY)) == ("running", None, None)
    assert store.finished_stacks(KEY) == {1}
    assert len(store.points(KEY)) == sum(len(points_of(events)) for events in trained)
    assert query(path, "select name from artifacts order by name") == [("checkpoint:0",), ("stack:1",)]
    query(path, "drop trigger no_end")
    assert store.finish_stack(KEY, 0, stack_arrays(trained[0]), FACTS, "me")
    assert same(store.record(KEY).arrays["history/test_loss"], RunFile.from_bytes(content).arrays["history/test_loss"])


def test_a_stack_that_does_not_fit_changes_nothing(store, trained):
    """The other stack has an array more."""
    start(store)
    whole, broken = map(stack_arrays, trained)
    del broken["final/train_loss"]
    store.load_checkpoint(KEY, 1, "me")
    for step in (1, 2, 5):
        store.add_point(KEY, 1, step, POINT | {"train_loss": [1.0], "train_accuracy": [0.5]}, "me")
    assert not store.finish_stack(KEY, 0, whole, FACTS, "me")
    with pytest.raises(KeyError, match="final/train_loss"):
        store.finish_stack(KEY, 1, broken, FACTS, "me")
    assert (store.run(KEY).status, store.finished_stacks(KEY)) == ("running", {0})
    assert store.progress(KEY) == {0: 5, 1: 5}


# A version for caches


def test_the_version_changes_with_the_runs(stores, trained, content):
    """With every start, end, coming and going, even two at one time of the clock; and with nothing else."""
    store, reader = stores(), stores()
    seen = [reader.version()]

    def changes(call):
        call()
        seen.append(reader.version())
        assert seen[-1] not in seen[:-1]

    one, two = other(1), other(2)
    changes(lambda: store.request(one, now=1.0))
    changes(lambda: store.request(two, now=1.0))
    changes(lambda: store.claim("me", now=2.0))
    changes(lambda: store.claim("me", now=2.0))
    for call in (
        lambda: store.beat("me"),
        lambda: store.add_point(one.key(), 0, 1, POINT, "me"),
        lambda: store.request(one),
        lambda: store.reap(2.0),
        lambda: store.claim("you"),
        lambda: store.try_role("worker", "me"),
    ):
        call()
        assert reader.version() == seen[-1]
    changes(lambda: store.fail(one.key(), "No.", "me"))
    changes(lambda: store.release("me"))
    changes(lambda: store.cancel(two.key()))
    changes(lambda: store.request(two, now=3.0))
    changes(lambda: store.delete(one.key()))
    changes(lambda: store.request(CONFIG, now=0.5))
    changes(lambda: store.claim("me", now=1.5, key=KEY))
    changes(lambda: finish(store, trained))
    changes(lambda: store.request(CONFIG, now=2.0, force=True))
    changes(lambda: store.import_file(content))
    changes(lambda: (store.delete(KEY), store.request(other(3), now=2.5)))  # one goes as another comes


def test_a_run_file_from_the_future_does_not_stop_the_version(store, content):
    """A file's times are its maker's clock."""
    run_file = RunFile.from_bytes(content)
    store.import_file(RunFile(run_file.arrays, run_file.facts | {"finished": 1e11}).to_bytes())
    store.request(other(1))
    before = store.version()
    store.claim("me")
    assert store.version() != before


# Run files


def test_import_and_export_lose_nothing(store, content):
    run = store.import_file(content, now=5.0)
    assert (run.key, run.status, run.source, run.config, run.preset) == (KEY, "done", "imported", CONFIG, "input-bn")
    wanted, back = RunFile.from_bytes(content), RunFile.from_bytes(store.export_file(KEY))
    assert back.facts == wanted.facts
    assert back.arrays.keys() == wanted.arrays.keys()
    assert any(name.startswith("weights/") for name in wanted.arrays)
    assert all(same(back.arrays[name], wanted.arrays[name]) for name in wanted.arrays)
    assert (run.created, run.finished) == (wanted.facts["finished"], wanted.facts["finished"])
    assert run.finished - run.started == pytest.approx(wanted.facts["seconds"], abs=1e-5)
    assert run.summary == wanted.summary()
    assert store.export_file(KEY) == store.export_file(KEY)


def test_a_run_file_without_weights(store, content):
    run_file = RunFile.from_bytes(content)
    light = RunFile({name: value for name, value in run_file.arrays.items() if not name.startswith("weights/")}, run_file.facts)
    store.import_file(light.to_bytes())
    assert RunFile.from_bytes(store.export_file(KEY)).arrays.keys() == light.arrays.keys()


def test_a_run_file_without_a_time_gets_that_of_its_import(store, content):
    run_file = RunFile.from_bytes(content)
    facts = {name: value for name, value in run_file.facts.items() if name != "finished"}
    assert store.import_file(RunFile(run_file.arrays, facts).to_bytes(), now=1234.5).created == 1234.5


def test_imported_twice_is_one(store, path, trained, content):
    """The first one stays, as does a run that was trained here."""
    finished(store, trained)
    before, kept = store.runs(), store.export_file(KEY)
    changed = RunFile.from_bytes(content)
    changed.arrays["final/test_loss"][:] += 1
    for _ in range(2):
        assert store.import_file(changed.to_bytes()) == before[0]
    assert store.runs() == before
    assert store.export_file(KEY) == kept
    assert rows(path) == {"runs": 1, "points": 0, "artifacts": 2}


@pytest.mark.parametrize("status", ["queued", "running", "interrupted", "cancelled", "failed"])
def test_an_import_ends_an_unfinished_run(store, path, content, status):
    store.request(CONFIG)
    if status != "queued":
        start(store)
    if status == "interrupted":
        store.release("me")
    if status == "failed":
        store.fail(KEY, "No.", "me")
    if status == "cancelled":
        store.cancel(KEY)
        store.end_cancelled(KEY, "me")
    assert store.run(KEY).status == status
    run = store.import_file(content)
    assert (run.status, run.error, run.cancel, run.source) == ("done", None, False, "imported")
    assert rows(path) == {"runs": 1, "points": 0, "artifacts": 2}
    with pytest.raises(NotOwner):
        store.add_point(KEY, 0, 7, POINT, "me")


def test_nothing_is_exported_of_an_unfinished_run(store):
    start(store)
    assert (store.record(KEY), store.export_file(KEY), store.export_file("nothing")) == (None, None, None)


def test_a_published_run_comes_once_in_a_life(stores, tmp_path, content):
    """Deleted, it stays away, also from the next process; a new file comes."""
    folder, store = tmp_path / "published", stores()
    assert store.import_published(folder) == 0
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(content)
    (folder / "notes.txt").write_text("no run file")
    assert [store.import_published(folder) for _ in range(2)] == [1, 0]
    (run,) = store.runs()
    assert (run.key, run.source, run.status) == (KEY, "published", "done")
    store.delete(KEY)
    assert stores().import_published(folder) == 0
    assert store.runs() == []
    run_file = RunFile.from_bytes(content)
    recipe = CONFIG.model_dump(mode="json") | {"seeds": [5, 6, 7, 8, 9]}
    (folder / "b.safetensors").write_bytes(RunFile(run_file.arrays, run_file.facts | {"config": recipe}).to_bytes())
    assert stores().import_published(folder) == 1
    assert [run.config.seeds for run in store.runs()] == [(5, 6, 7, 8, 9)]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_refused(store, path, tmp_path):
    """By its content, whatever its name; nothing of it runs, nothing of it stays."""
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    (tmp_path / "evil.safetensors").write_bytes(bomb)
    for call in (lambda: store.import_file(bomb), lambda: store.import_published(tmp_path)):
        with pytest.raises(RunFileError, match=r"^This is not a run file of regcompare\. Choose a \.safetensors file") as caught:
            call()
        assert str(caught.value).isprintable()
    assert store.runs() == []
    assert query(path, "select count(*) from artifacts") == [(0,)]
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()  # it would have


def test_a_pickle_in_the_store_is_not_loaded(store, path, tmp_path):
    """Where somebody could write to the database: a checkpoint is arrays or an error."""
    start(store)
    query(path, "update artifacts set value = ?", pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(Exception, match=r"(?i)header"):
        store.load_checkpoint(KEY, 0, "me")
    assert not (tmp_path / "exploded").exists()


# Migrations


def schema_number(path):
    return query(path, "select value from meta where name = 'schema'")[0][0]


def test_migrations_are_numbered(store, path):
    assert all(callable(migration) for migration in store_module.MIGRATIONS)
    assert schema_number(path) == str(len(store_module.MIGRATIONS))


def good(db):
    db.execute(sa.text("create table extra (x integer)"))
    db.execute(sa.text("update runs set error = 'migrated'"))


def bad(db):
    db.execute(sa.text("create table other (x integer)"))
    db.execute(sa.text("update runs set error = 'half'"))
    db.execute(sa.text("insert into no_such_table values (1)"))


def test_a_failed_migration_stays_pending(monkeypatch, stores, path):
    """It is undone as a whole, and so is what ran with it; the data stay, and the corrected one runs next time."""
    start(stores())
    first = store_module.MIGRATIONS
    before = rows(path), schema_number(path)
    for broken in ((*first, bad), (*first, good, bad)):
        monkeypatch.setattr(store_module, "MIGRATIONS", broken)
        with pytest.raises(StoreError, match="no such table: no_such_table") as caught:
            stores()
        assert str(caught.value).isprintable()
        assert (rows(path), schema_number(path)) == before
        assert query(path, "select name from sqlite_master where name in ('extra', 'other')") == []
        assert query(path, "select error from runs") == [(None,)]
    monkeypatch.setattr(store_module, "MIGRATIONS", (*first, good))
    assert stores().run(KEY).error == "migrated"
    assert (rows(path), schema_number(path)) == (before[0], str(len(first) + 1))


def test_a_migration_runs_once(monkeypatch, stores, path):
    """Opened again, and by eight threads at once: the second time it would stop at a table that exists."""
    stores()
    monkeypatch.setattr(store_module, "MIGRATIONS", (*store_module.MIGRATIONS, good))
    together(8, lambda _: stores())
    stores()
    assert schema_number(path) == str(len(store_module.MIGRATIONS))


def test_a_new_store_is_opened_by_many_at_once(path):
    opened = together(12, lambda _: Store(f"sqlite:///{path}"))
    opened[0].request(CONFIG)
    assert [len(one.runs()) for one in opened] == [1] * 12
    for one in opened:
        one.close()


def test_a_newer_store_is_refused(stores, path):
    """In one line, and left as it is."""
    start(stores())
    query(path, "update meta set value = '99' where name = 'schema'")
    with pytest.raises(StoreError, match=r"was made by a newer regcompare\. Update, or name another --store\.$") as caught:
        stores()
    assert str(caught.value).isprintable()
    assert str(path) in str(caught.value)
    assert (schema_number(path), rows(path)["points"]) == ("99", 3)


# A store that cannot be opened


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "Could not parse"),
        ("foo://x", "foo"),
        ("sqlite://", "only in memory"),
        ("sqlite:///", "only in memory"),
        ("sqlite:///:memory:", "only in memory"),
        ("sqlite:////proc/nothing/s.db", "No such file"),
        ("sqlite:////dev/null/s.db", "/dev/null"),
        ("sqlite:///{folder}", "unable to open database file"),
        ("sqlite:///{folder}/corrupt.db", "file is not a database"),
        ("sqlite:///{folder}/a\nb\x1b[31m/corrupt.db/s.db", "corrupt.db"),
    ],
)
def test_a_store_that_cannot_be_opened(tmp_path, url, reason):
    (tmp_path / "corrupt.db").write_text("no database" * 1000)
    (tmp_path / "a\nb\x1b[31m").mkdir()
    (tmp_path / "a\nb\x1b[31m" / "corrupt.db").write_text("a file, no folder")
    with pytest.raises(StoreError, match=r"^--store must be a database that can be opened, got .*\. For example: ") as caught:
        Store(url.format(folder=tmp_path))
    assert str(caught.value).isprintable()
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@h/x",
        "no://u:secret@h",
        "postgresql://u:secret@h:port/x",
        "postgresql://u:se@secret@h:port/x",
        "postgresql://u:se/secret:x@h:port/x",
        "postgresql://:secret@h:port/x",
        "postgresql://u@h:port/x?user=u&password=secret&y=1",
        "postgresql://u:a\nsecret@h:port/x",
    ],
)
def test_a_password_is_never_shown(url):
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert "secret" not in str(caught.value)
    assert "***" in str(caught.value)
    assert str(caught.value).isprintable()


# Roles


def test_a_role_belongs_to_one_at_a_time(store):
    """Kept by asking again, given to another once its holder has been silent for the patience."""
    assert store.try_role("worker", "a", now=100.0, info="1")
    assert not store.try_role("worker", "b", now=104.9, info="2")
    assert store.try_role("worker", "a", now=104.0, info="1")
    assert not store.try_role("worker", "b", now=104.0 + STALE_AFTER - 0.1)
    assert store.try_role("worker", "b", now=104.0 + STALE_AFTER, info="2")
    assert not store.try_role("worker", "a", now=104.1 + STALE_AFTER, info="1")
    assert store.present("worker", now=110.0) == ["2"]
    assert not store.try_role("worker", "c", now=120.0, patience=20.0)
    assert store.try_role("worker", "c", now=130.0, patience=20.0)


def test_one_of_many_gets_a_role(stores):
    shared = [stores() for _ in range(4)]
    assert sum(together(16, lambda i: shared[i % 4].try_role("starting", f"token {i}"))) == 1


def test_a_role_is_left_by_its_holder(store):
    store.try_role("worker", "a", now=100.0)
    store.leave_role("worker", "b")
    assert not store.try_role("worker", "b", now=100.0)
    store.leave_role("worker", "a")
    assert store.try_role("worker", "b", now=100.0)
    store.leave_role("worker")
    assert store.present("worker", now=100.0) == []
    store.leave_role("worker")  # nobody's


def test_who_is_present(store):
    """By prefix, and only the living."""
    for role, now in (("server:1", 100.0), ("server:2", 103.0), ("worker", 103.0)):
        store.try_role(role, "token", now=now, info=role)
    assert sorted(store.present("server:", now=104.0)) == ["server:1", "server:2"]
    assert store.present("server:", now=100.0 + STALE_AFTER) == ["server:2"]
    assert store.present("server:", now=110.0, within=7.5) == ["server:2"]
    assert store.present("server:", now=120.0) == []


# Readers and writers at once


def test_a_reader_does_not_wait_for_a_writer(store, path):
    """It sees what was there before; a second writer waits its turn instead of failing."""
    start(store)
    version = store.version()
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("begin immediate")
        writer.execute("delete from points")
        writer.execute("update runs set status = 'failed'")
        began = time.monotonic()
        assert len(store.points(KEY)) == 3
        assert [run.status for run in store.runs()] == ["running"]
        assert store.version() == version
        assert (store.reap(), store.record(KEY), store.progress(KEY)) == ([], None, {0: 5})
        assert time.monotonic() - began < 5  # a reader that waited would give up only after 30
        second = threading.Thread(target=store.request, args=(other(1),))
        second.start()
        second.join(0.1)
        assert second.is_alive()
        writer.execute("commit")
    second.join(20)
    assert not second.is_alive()
    assert store.points(KEY) == []
    assert sorted(run.status for run in store.runs()) == ["failed", "queued"]


def test_a_writer_does_not_wait_for_a_reader(store, path):
    """Which goes on seeing what was there when it began."""
    start(store)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("begin")
        assert reader.execute("select count(*) from points").fetchone() == (3,)
        began = time.monotonic()
        store.add_point(KEY, 0, 7, POINT, "me")
        assert time.monotonic() - began < 5
        assert reader.execute("select count(*) from points").fetchone() == (3,)
        reader.execute("commit")
        assert reader.execute("select count(*) from points").fetchone() == (4,)


def test_the_store_is_where_the_environment_says(monkeypatch, tmp_path):
    """Read when it is asked for, not when the module is imported; a folder on the way is made."""
    monkeypatch.setenv("REGCOMPARE_STORE", f"sqlite:///{tmp_path}/new/folder/s.db")
    with closing(Store()) as store:
        assert store.url == store_module.default_url()
    assert (tmp_path / "new" / "folder" / "s.db").is_file()
    monkeypatch.delenv("REGCOMPARE_STORE")
    assert store_module.default_url() == f"sqlite:///{Path(store_module.__file__).parent.parent}/cache/regcompare.db"
