"""The background process: same numbers, prompt, and never a run or a process lost. Run: pytest tests/test_worker.py

Real processes on a real store. One worker serves the tests that leave it alive; those that end one start their own.
"""

import contextlib
import functools
import itertools
import os
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path

import numpy as np
import pytest

from regcompare.config import RunConfig, preset
from regcompare.runfile import RunFile, merge_stacks
from regcompare.store import STALE_AFTER, Store
from regcompare.worker import IDLE_LEAVE, LOG_SIZE, MAX_ATTEMPTS, ROLE, SERVER_ROLE, Worker, ensure_worker, open_log

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc, which only Linux has")

ROOT = Path(__file__).parent.parent
TINY = preset("baseline", train_size=100, batch_size=20, epochs=2, seeds=(0, 1))
MEDIUM = preset("bn-dropout", train_size=200, batch_size=20, epochs=10, seeds=(0, 1, 2, 3, 4))  # two stacks, seconds long
ENDLESS = preset("standard-bn", train_size=640, batch_size=64, epochs=200, seeds=(0,))


def wait(what, condition, patience=60.0):
    """What the condition gives as soon as it is true; the test fails if it is not within the patience."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.005)
    pytest.fail(f"{what}: not within {patience:g} s")
    return None


def members(session):
    """Living processes of a session, by id: (parent, command line)."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end while it is looked at
            state, parent, _, its_session = (path / "stat").read_text().rpartition(") ")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found[int(path.name)] = (int(parent), (path / "cmdline").read_bytes().decode().replace("\0", " "))
    return found


def trainers(session):
    """The training processes of a worker, by id."""
    return [pid for pid, (parent, command) in members(session).items() if parent == session and "popen_loky" in command]


def end(session):
    """Kill what is left of a session that a test started."""
    for pid in members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a worker, as a service would; whatever is left of it is killed at the end."""
    started = []
    empty = tmp_path_factory.mktemp("empty")
    # A closed port for a proxy: nothing is downloaded, whether there is a network or not.
    environment = os.environ | dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")

    def call(store):
        command = [sys.executable, "-m", "regcompare.worker", "--store", store.url, "--jobs", "2", "--stay", "--data-dir", str(empty)]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **quiet))
        return started[-1]

    yield call
    for process in started:
        end(process.pid)
        process.wait()


@pytest.fixture
def store(tmp_path):
    with contextlib.closing(Store(f"sqlite:///{tmp_path}/s.db")) as one:
        yield one


@pytest.fixture(scope="module")
def shared(tmp_path_factory, start):
    """A store with a worker that stays: (store, process)."""
    with contextlib.closing(Store(f"sqlite:///{tmp_path_factory.mktemp('shared')}/s.db")) as one:
        process = start(one)
        yield one, process


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """A store for which ten callers at once have asked for a worker, and never for a run: (store, answers, process id)."""
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(Store(f"sqlite:///{tmp_path_factory.mktemp('idle')}/s.db")) as one:
        patch.delenv("REGCOMPARE_WORKER", raising=False)
        barrier, answers = threading.Barrier(10), []

        def ask():
            barrier.wait(30)
            answers.append(ensure_worker(one))

        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        pid = int(wait("a worker", lambda: one.present(ROLE))[0])
        yield one, answers, pid
        end(pid)


@functools.cache
def alone(config):
    """The arrays of a run that is trained right here: no worker, no store, no interruption, one thread."""
    import torch

    from regcompare.data import load
    from regcompare.train import EpochEnded, Finished, Point, train

    torch.set_num_threads(1)
    stacks = []
    for seeds in config.stacks():
        events = list(train(config, load(config), seeds))
        history = [event.batch_norm for event in events if isinstance(event, EpochEnded)]
        arrays = {f"batch_norm/{name}": np.stack([epoch[name] for epoch in history]) for name in history[0]}
        arrays |= next(event.arrays for event in events if isinstance(event, Finished))
        points = [(event.step, event.__dict__) for event in events if isinstance(event, Point)]
        stacks.append(RunFile.from_points(points, arrays, {"began": 0.0, "ended": 1.0}))
    return merge_stacks(config, stacks).arrays


def has_the_numbers_of(store, config):
    """A run is done and has, bit for bit, the numbers of one trained alone: points, finals, batch norm, weights and all."""
    record = store.record(config.key(), weights=True)
    wanted = alone(config)
    assert {name.partition("/")[0] for name in wanted} >= {"history", "final", "weights", "test", "activations"}
    assert record.arrays.keys() == wanted.keys()
    differ = [name for name in wanted if (a := record.arrays[name]).dtype != wanted[name].dtype or a.tobytes() != wanted[name].tobytes()]
    assert differ == []
    return True


def ended(store, config):
    """The run, once it has ended in one way or the other."""
    return wait(f"{config.key()} ends", lambda: (run := store.run(config.key())).status not in ("queued", "running", "interrupted") and run)


def rows(store, table):
    """Keys of all rows of a table."""
    with contextlib.closing(sqlite3.connect(store.engine.url.database, timeout=30)) as db:
        return [key for (key,) in db.execute(f"select key from {table}")]


def checkpoint_of(store, config):
    """Wait for a running run's first checkpoint."""
    return wait("a checkpoint", lambda: config.key() in rows(store, "artifacts"))


# What it does


def test_ten_callers_start_one_worker(idle):
    store, answers, pid = idle
    assert sorted(answers) == [False] * 9 + [True]
    assert not ensure_worker(store)
    assert Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[1:3] == ["-m", "regcompare.worker"]


def test_a_queued_run_gets_the_numbers_of_training_alone(shared):
    store, _ = shared
    for config in (TINY, MEDIUM):
        store.request(config)
        alone(config)  # while the worker starts and trains
    for config in (TINY, MEDIUM):
        run = ended(store, config)
        assert (run.status, run.error, run.source) == ("done", None, "trained")
        assert has_the_numbers_of(store, config)
        assert max(run.created, run.started) <= run.finished
        facts = store.record(config.key()).facts
        assert (facts["device"] in ("cpu", "cuda"), facts["versions"].keys() >= {"torch", "python", "regcompare"}) == (True, True)
    assert rows(store, "points") == []


def test_points_come_as_they_are_computed(shared):
    """A trigger notes when each was written: a reader has it within 0.3 s, one by one, at least three a second."""
    store, _ = shared
    with contextlib.closing(sqlite3.connect(store.engine.url.database, timeout=30)) as db, db:
        db.execute("create table written (id integer primary key, time float)")
        db.execute(
            "create trigger note after insert on points begin "
            "insert into written values (new.id, (julianday('now') - 2440587.5) * 86400); end"
        )
    store.request(ENDLESS)
    key, arrived, cursor = ENDLESS.key(), {}, 0

    def read():
        nonlocal cursor
        for point, _, _ in store.points(key, cursor):
            arrived[point] = time.time()
            cursor = point
        return len(arrived) >= 30

    wait("thirty points", read)
    store.cancel(key)
    with contextlib.closing(sqlite3.connect(store.engine.url.database, timeout=30)) as db, db:
        written = dict(db.execute("select id, time from written"))
        db.execute("drop trigger note")
    assert arrived.keys() <= written.keys()
    late = sorted(arrived[id_] - written[id_] for id_ in arrived)
    assert late[len(late) * 9 // 10] < 0.3
    times = sorted(arrived.values())
    assert statistics.median(after - before for before, after in itertools.pairwise(times)) < 1 / 3
    assert len(set(times)) > len(times) / 2
    ended(store, ENDLESS)


def test_a_cancelled_run_stops_within_a_second(shared):
    """And leaves nothing; its worker takes the next one."""
    store, _ = shared
    config = ENDLESS.model_copy(update={"seeds": (0, 1, 2, 3, 4)})
    store.request(config)
    checkpoint_of(store, config)
    assert store.run(config.key()).status == "running"
    assert store.points(config.key())
    began = time.monotonic()
    store.cancel(config.key())
    wait("cancelled", lambda: store.run(config.key()).status == "cancelled")
    assert time.monotonic() - began < 1
    assert config.key() not in rows(store, "points") + rows(store, "artifacts")
    store.delete(TINY.key())
    store.request(TINY)
    assert ended(store, TINY).status == "done"
    assert config.key() not in rows(store, "points") + rows(store, "artifacts")
    assert store.run(config.key()).status == "cancelled"


@pytest.mark.parametrize("how", ["deleted", "cancelled"])
def test_a_run_asked_for_again_at_once(shared, how):
    """While the processes that trained it have not yet noticed: they must not write into the new one."""
    store, _ = shared
    key = MEDIUM.key()
    store.delete(key)
    for _ in range(2):
        store.request(MEDIUM)
        wait("both stacks", lambda: len(store.progress(key)) == 2)
        if how == "deleted":
            store.delete(key)
        else:
            store.cancel(key)
            wait("cancelled", lambda: store.run(key).status == "cancelled")
    store.request(MEDIUM)
    run = ended(store, MEDIUM)
    assert (run.status, run.error) == ("done", None)
    assert has_the_numbers_of(store, MEDIUM)


def test_a_run_that_cannot_learn_says_why(shared):
    """One line with the step, the seed and what to change; asked for again it is tried again."""
    store, _ = shared
    config = RunConfig(optimizer="sgd", lr=10, train_size=400, batch_size=20, epochs=3, seeds=(0, 1, 2, 3))
    for _ in range(2):
        assert store.request(config).status == "queued"
        run = ended(store, config)
        assert run.status == "failed"
        assert run.error.isprintable()
        assert re.search(r"at step \d+ \(epoch \d\.\d\d\): the loss of seed [0-3] is no longer .* Lower --lr to 1 or less", run.error)
        assert config.key() not in rows(store, "points") + rows(store, "artifacts")


def test_images_that_cannot_be_had(shared):
    store, _ = shared
    config = RunConfig(dataset="mnist", train_size=100, epochs=1, seeds=(0,))
    store.request(config)
    run = ended(store, config)
    assert run.status == "failed"
    assert run.error.isprintable()
    assert re.search(r"^mnist is not in .*/MNIST/raw and cannot be downloaded .*--data-dir, or use --dataset mnist-5k", run.error)


# What ends


def test_a_killed_training_process_is_replaced(shared):
    """It takes its neighbour's pool with it; both stacks go on from their checkpoints to the same numbers."""
    store, process = shared
    store.delete(MEDIUM.key())
    store.request(MEDIUM)
    checkpoint_of(store, MEDIUM)
    before = trainers(process.pid)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    run = ended(store, MEDIUM)
    assert (run.status, run.error) == ("done", None)
    assert has_the_numbers_of(store, MEDIUM)
    assert process.poll() is None
    wait("a new pool in place of the old", lambda: len(trainers(process.pid)) == 2 and not {*trainers(process.pid)} & {*before})


def test_a_training_process_killed_while_idle_is_replaced(shared):
    store, process = shared
    store.delete(TINY.key())
    victim = wait("a pool", lambda: trainers(process.pid))[0]
    os.kill(victim, signal.SIGKILL)
    wait("its end", lambda: victim not in members(process.pid))
    store.request(TINY)
    run = ended(store, TINY)
    assert (run.status, run.error) == ("done", None)
    assert process.poll() is None
    assert has_the_numbers_of(store, TINY)


def test_a_second_worker_leaves_at_once(shared):
    store, process = shared
    holder = wait("the first", lambda: store.present(ROLE))
    command = [sys.executable, "-m", "regcompare.worker", "--store", store.url, "--jobs", "2", "--stay"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("another worker serves this store\n")
    assert store.present(ROLE) == holder == [str(process.pid)]
    assert process.poll() is None


def test_a_killed_worker_loses_nothing(store, start):
    """Its training processes notice and end, its run shows as interrupted, the next worker goes on to the same numbers."""
    key, first = MEDIUM.key(), start(store)
    store.request(MEDIUM)
    checkpoint_of(store, MEDIUM)
    assert len(trainers(first.pid)) == 2
    first.kill()
    first.wait()
    killed = time.time()
    # A page server or the next worker calls this every second; here it is the test.
    wait("interrupted", lambda: store.reap() or store.run(key).status == "interrupted", patience=10)
    wait("no process left", lambda: not members(first.pid), patience=5)
    assert store.run(key).status == "interrupted"
    assert key in rows(store, "artifacts")
    assert 0 < min(store.progress(key).values()) < MEDIUM.steps
    silent = time.time() - killed

    start(store)
    run = ended(store, MEDIUM)
    assert (run.status, run.error) == ("done", None)
    assert has_the_numbers_of(store, MEDIUM)
    assert store.record(key).facts["seconds"] > silent  # what was begun before went on after


def test_a_worker_told_to_end_gives_its_runs_back(store, start):
    process = start(store)
    store.request(ENDLESS)
    checkpoint_of(store, ENDLESS)
    process.terminate()
    assert process.wait(10) == 0
    assert store.run(ENDLESS.key()).status == "interrupted"
    assert ENDLESS.key() in rows(store, "artifacts")
    assert store.present(ROLE) == []
    wait("no process left", lambda: not members(process.pid), patience=5)


def test_a_worker_without_work_leaves(idle):
    """No page server lives, nobody said --stay: the one that ten callers started ends by itself, and all its processes."""
    store, _, pid = idle
    wait("no process left", lambda: not members(pid), patience=IDLE_LEAVE + 20)
    assert store.present(ROLE) == []


# One turn


class Ended(Executor):
    """An executor whose every task has ended with the given error."""

    def __init__(self, error):
        self.error = error

    def submit(self, *_):
        future = Future()
        future.set_exception(self.error)
        return future


class Broken(Executor):
    """An executor that has lost a process while it was idle."""

    def submit(self, *_):
        raise BrokenExecutor("killed")


class Busy(Executor):
    """An executor whose tasks never end."""

    def submit(self, *_):
        return Future()


def worker_with(store, executor=None):
    worker = Worker(store.url, jobs=1)
    worker.executor = lambda: executor
    return worker


def test_turns_go_on_while_a_page_server_lives(store):
    worker = worker_with(store)
    store.try_role(f"{SERVER_ROLE}1", "token", now=1000.0)
    assert worker.turn(1000.0)
    needed = 1000.0 + STALE_AFTER - 0.5  # the last beat at which the page server still counted as alive
    assert worker.turn(needed)
    assert worker.turn(needed + IDLE_LEAVE - 0.1)
    assert not worker.turn(needed + IDLE_LEAVE)


def test_a_turn_yields_to_another_worker(store):
    first, second = worker_with(store), worker_with(store)
    first.stay = second.stay = True
    assert first.turn(1000.0)
    assert not second.turn(1001.0)
    assert second.turn(1000.0 + STALE_AFTER)  # the first was silent
    assert not first.turn(1001.0 + STALE_AFTER)


def test_a_turn_is_a_sign_of_life(store):
    """Of the worker and of what it trains; and it sees to runs whose owner is silent."""
    store.request(TINY, now=900.0)
    store.request(MEDIUM, now=901.0)
    store.claim("gone", now=990.0, key=MEDIUM.key())
    worker = worker_with(store, Busy())
    assert worker.turn(1000.0)
    assert [store.run(config.key()).status for config in (TINY, MEDIUM)] == ["running", "interrupted"]
    assert worker.turn(1004.0)
    assert store.reap(1008.0) == []
    assert store.present(ROLE, now=1008.0) == [str(os.getpid())]
    assert store.run(MEDIUM.key()).status == "interrupted"  # one process, one run


def test_a_run_that_loses_its_process_again_and_again_fails(store):
    worker = worker_with(store, Ended(BrokenExecutor("killed")))
    store.request(TINY)
    for turn in range(MAX_ATTEMPTS):
        worker.turn(1000.0 + 2 * turn)  # claims
        assert store.run(TINY.key()).status == "running"
        worker.collect()
    run = store.run(TINY.key())
    assert (run.status, run.error.isprintable()) == ("failed", True)
    assert run.error.startswith(f"The training process ended {MAX_ATTEMPTS} times")


def test_a_pool_that_broke_while_idle_is_replaced(store):
    store.request(TINY)
    worker = worker_with(store, Broken())
    assert worker.turn(1000.0)
    worker.executor = Busy
    assert worker.turn(1001.0)
    assert store.run(TINY.key()).status == "running"
    assert worker.attempts == {TINY.key(): 1}
    store.add_point(TINY.key(), 0, 1, {}, *{owner for _, owner in worker.waiting.values()})


def test_an_unexpected_error_is_one_line(store):
    worker = worker_with(store, Ended(ValueError("first\nsecond")))
    store.request(TINY)
    worker.turn(1000.0)
    worker.collect()
    run = store.run(TINY.key())
    assert run.status == "failed"
    assert run.error.isprintable()
    assert "ValueError: first" in run.error


# What it needs


def test_the_worker_itself_loads_no_torch(shared):
    """Neither imported nor at work: its training processes do."""
    store, process = shared
    program = "import sys, regcompare.worker; sys.exit(any(name in sys.modules for name in ('torch', 'streamlit')))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
    store.request(TINY)
    assert ended(store, TINY).status == "done"
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    assert any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in trainers(process.pid))


def test_a_store_that_cannot_be_opened_is_one_line():
    command = [sys.executable, "-m", "regcompare.worker", "--store", "postgresql://u:secret@h:port/x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr[:-1].isprintable()
    assert done.stderr.startswith("--store must be a database that can be opened, got 'postgresql://u:***@h:port/x'")


def test_a_worker_that_is_somebody_elses_is_not_started(monkeypatch, store):
    """In Docker it is a service of its own."""
    monkeypatch.setenv("REGCOMPARE_WORKER", "external")
    assert not ensure_worker(store)
    assert store.present("") == []


def test_the_log_does_not_grow_for_ever(tmp_path):
    path = tmp_path / "cache" / "worker.log"
    for content, kept in ((b"first\n", b"first\n"), (b"x" * LOG_SIZE, b"first\n" + b"x" * LOG_SIZE), (b"anew\n", b"anew\n")):
        with open_log(path) as output:
            output.write(content)
        assert path.read_bytes() == kept
