"""Live points over real HTTP: in order, at once, with no gap and no repeat, one reader for all. Run: pytest tests/test_live.py"""

import asyncio
import http.client
import itertools
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from statistics import median
from typing import NamedTuple

import numpy as np
import plotly
import pytest
import sqlalchemy as sa
import uvicorn
from serving import wait_until
from starlette.applications import Starlette
from starlette.requests import Request

from regcompare import live as live_module
from regcompare.config import preset
from regcompare.live import PLOTLY_JS, PLOTLY_ROUTE, POLL, Feed, Live, encode_history, send_at_once, shared_store
from regcompare.runfile import METRICS, RunFile
from regcompare.store import Store
from regcompare.worker import ROLE, SERVER_ROLE

numbers = itertools.count()


def on_a_loop_of_its_own(coroutine):
    """Run it in a thread: the browser tests of the same process leave a loop running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def recipe():
    """A recipe that no other test has: 40 steps."""
    return preset("baseline", train_size=100, batch_size=10, epochs=4, seeds=(next(numbers),))


class Server:
    """The routes in a real server, on a free port, in a thread; the store can be reached from the test too."""

    def __init__(self, url):
        self.url = url
        self.live = Live(lambda: self.url)
        app = Starlette(routes=self.live.routes(), lifespan=self.live.lifespan)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(20)
        self.socket.close()
        assert not self.thread.is_alive()

    def get(self, path, headers=None):
        """Status, headers and body of a request that ends."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request("GET", path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()


class Event(NamedTuple):
    """One server-sent event, and when its last line was read."""

    name: str
    data: object
    id: int | None
    at: float


class Viewer(threading.Thread):
    """Reads a run's stream as a browser does, event by event."""

    def __init__(self, server, key, query="", headers=None):
        super().__init__(daemon=True)
        self.events, self.comments, self.over = [], 0, False
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        self.connection.request("GET", f"/api/runs/{key}/stream{query}", headers=headers or {})
        self.socket = self.connection.sock
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200
        assert self.answer.headers["content-type"].startswith("text/event-stream")
        self.start()

    def run(self):
        fields = {}
        try:
            while line := self.answer.readline().decode():
                name, _, value = line.rstrip("\n").partition(": ")
                if line == "\n" and "event" in fields:
                    number = int(fields["id"]) if "id" in fields else None
                    self.events.append(Event(fields["event"], json.loads(fields["data"]), number, time.time()))
                    fields = {}
                elif line.startswith(":"):
                    self.comments += 1
                else:
                    fields[name] = value
            self.over = True
        except (OSError, ValueError, AttributeError):
            pass  # the test has hung up

    def leave(self):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.join(20)
        self.connection.close()

    def points(self):
        """All points in the order of their coming."""
        return [point for event in list(self.events) if event.name == "points" for _, point in event.data]

    def steps(self):
        return [point["step"] for point in self.points()]

    def statuses(self):
        return [event.data["status"] for event in list(self.events) if event.name == "status"]

    def said(self):
        """The last status, whatever came after it."""
        return next((event.data for event in reversed(self.events) if event.name == "status"), {})

    def names(self):
        return [event.name for event in list(self.events)]

    def cursor(self):
        return max(event.id for event in self.events if event.id is not None)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server and one store for all; each test has runs of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGCOMPARE_WORKER", "external")  # else the waiting runs below would be trained
        one = Server(f"sqlite:///{tmp_path_factory.mktemp('live')}/store.db")
        yield one
        one.stop()


@pytest.fixture
def store(server):
    with closing(Store(server.url)) as one:
        yield one


@pytest.fixture
def viewers(server):
    """Open viewers that are hung up at the end."""
    opened = []

    def view(key, query="", headers=None):
        opened.append(Viewer(server, key, query, headers))
        return opened[-1]

    yield view
    for one in opened:
        if one.is_alive():
            one.leave()


class Trainer:
    """Writes a run into the store as a training process does."""

    def __init__(self, store, config=None, owner="trainer"):
        self.store, self.owner = store, owner
        self.config = config or recipe()
        self.key = store.request(self.config).key
        assert store.claim(owner, key=self.key)

    def point(self, step, value=0.5, tested=True):
        values = {metric: [value] for metric in METRICS} | {"step": step, "epoch": step / 10, "sent": time.time()}
        if not tested:
            values |= {"test_loss": None, "test_accuracy": None}
        self.store.add_point(self.key, 0, step, values, self.owner)

    def points(self, *steps):
        for step in steps:
            self.point(step)

    def finish(self):
        arrays = {f"final/{metric}": np.array([0.5]) for metric in METRICS}
        facts = {"began": 1.0, "ended": 2.0, "device": "cpu"}
        assert self.store.finish_stack(self.key, 0, arrays, facts, self.owner)


# In order, at once


def test_points_arrive_in_order_and_at_once(store, viewers):
    """From one process to a viewer in another thread of the network; half a second is what a reader takes for live."""
    trainer = Trainer(store)
    viewer = viewers(trainer.key)

    def train():
        with closing(Store(store.url)) as own:
            trainer.store = own
            for step in range(1, 31):
                trainer.point(step)
                time.sleep(0.05)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join(60)
    wait_until(lambda: len(viewer.points()) == 30)
    assert viewer.steps() == list(range(1, 31))
    delays = [event.at - point["sent"] for event in viewer.events if event.name == "points" for _, point in event.data]
    assert all(delay > 0 for delay in delays)
    assert median(delays) < 0.5
    ids = [event.id for event in viewer.events if event.name == "points"]
    assert ids == sorted(set(ids))
    wait_until(lambda: viewer.said()["done"] == 30)
    status = viewer.said()
    assert (status["status"], status["total"], status["error"]) == ("running", 40, None)
    assert 0 < status["left"] < 10  # ten of forty steps remain, at twenty a second


def test_a_late_viewer_gets_everything(store, viewers):
    trainer = Trainer(store)
    trainer.points(1, 2, 5)
    viewer = viewers(trainer.key)
    wait_until(lambda: len(viewer.points()) == 3)
    trainer.points(10)
    wait_until(lambda: len(viewer.points()) == 4)
    assert viewer.steps() == [1, 2, 5, 10]
    assert viewer.points()[0]["train_loss"] == [0.5]


def test_stacks_are_told_apart(store, viewers):
    config = preset("baseline", train_size=100, batch_size=10, epochs=4, seeds=range(1_000, 1_008))
    trainer = Trainer(store, config)
    viewer = viewers(trainer.key)
    for step, stack in ((1, 1), (1, 0), (2, 0)):
        store.add_point(trainer.key, stack, step, {"step": step}, trainer.owner)
    wait_until(lambda: len(viewer.points()) == 3)
    assert [(stack, point["step"]) for event in viewer.events if event.name == "points" for stack, point in event.data] == [
        (1, 1),
        (0, 1),
        (0, 2),
    ]
    wait_until(lambda: viewer.said().get("done") == 3)
    assert viewer.said()["total"] == 80


# No gap, no repeat


@pytest.mark.parametrize("way", ["header", "query", "both"])
def test_a_dropped_connection_goes_on_where_it_was(server, store, viewers, way):
    """What came while nobody looked is there; a browser that reconnects keeps its old address, so the header is right."""
    trainer = Trainer(store)
    first = viewers(trainer.key)
    trainer.points(1, 2)
    wait_until(lambda: len(first.points()) == 2)
    early = first.cursor()
    trainer.points(3)
    wait_until(lambda: len(first.points()) == 3)
    last = first.cursor()
    assert last > early
    first.leave()
    trainer.points(4, 5)
    query = {"header": "", "query": f"?cursor={last}", "both": f"?cursor={early}"}[way]
    second = viewers(trainer.key, query, {} if way == "query" else {"Last-Event-ID": str(last)})
    trainer.points(6)
    wait_until(lambda: 6 in second.steps())
    assert first.steps() + second.steps() == [1, 2, 3, 4, 5, 6]


def test_a_viewer_with_everything_gets_nothing_twice(store, viewers):
    trainer = Trainer(store)
    first = viewers(trainer.key)
    trainer.points(1, 2)
    wait_until(lambda: len(first.points()) == 2)
    second = viewers(trainer.key, f"?cursor={first.cursor()}")  # beside the first, out of what the reader holds
    wait_until(second.statuses)
    trainer.points(3)
    wait_until(lambda: second.points() and first.steps()[-1] == 3)
    assert (first.steps(), second.steps()) == ([1, 2, 3], [3])


def test_points_that_come_again_after_a_resume(server, store, viewers):
    """The new one has a later cursor, so that it wins, for the one who watched and for the one who comes."""
    trainer = Trainer(store)
    watching = viewers(trainer.key)
    trainer.points(1, 2)
    store.save_checkpoint(trainer.key, 0, {"x": np.zeros(1)}, 2, trainer.owner)
    trainer.points(3, 4)
    wait_until(lambda: len(watching.points()) == 4)
    store.release(trainer.owner)
    wait_until(lambda: "interrupted" in watching.statuses())
    again = Trainer(store, trainer.config, "another")
    assert store.load_checkpoint(again.key, 0, again.owner)["step"] == 2
    again.point(3, 0.25)
    wait_until(lambda: len(watching.points()) == 5)
    assert watching.steps() == [1, 2, 3, 4, 3]
    assert watching.points()[-1]["train_loss"] == [0.25]
    assert not watching.over
    coming = viewers(trainer.key)
    wait_until(lambda: coming.points()[-1:] == watching.points()[-1:])
    watching.leave()
    coming.leave()
    feed = server.live.feeds[trainer.key]
    wait_until(lambda: feed.viewers == 0 and feed.task.done())
    last = viewers(trainer.key)  # with a reader of its own, which finds only what the store still holds
    wait_until(lambda: last.steps() == [1, 2, 3])


# One store


def test_threads_of_a_server_share_one_store(tmp_path):
    """Its pages, its presence and its streams may all ask first."""
    gate = threading.Barrier(4)

    def ask(_):
        gate.wait()
        return shared_store(f"sqlite:///{tmp_path / 's.db'}")

    with ThreadPoolExecutor(4) as pool:
        assert len({id(store) for store in pool.map(ask, range(4))}) == 1


# One reader


@contextmanager
def counted(url):
    """Statements that ask the server's store for points."""
    found, engine = [], shared_store(url).engine

    def count(_connection, _cursor, statement, *_):
        if "FROM points" in statement and "points.id >" in statement:
            found.append(statement)

    sa.event.listen(engine, "before_cursor_execute", count)
    yield found
    sa.event.remove(engine, "before_cursor_execute", count)


def test_viewers_share_one_reader(server, store, viewers):
    """A reader sleeps between two looks, so one cannot ask more often than this; five would ask five times as often."""
    trainer = Trainer(store)
    five = [viewers(trainer.key) for _ in range(5)]
    wait_until(lambda: all(one.statuses() for one in five))
    with counted(server.url) as found:
        began = time.monotonic()
        time.sleep(0.6)
        asked, took = len(found), time.monotonic() - began
    assert 1 <= asked <= took / POLL + 2
    trainer.points(1, 2)
    wait_until(lambda: all(one.steps() == [1, 2] for one in five))
    assert server.live.feeds[trainer.key].viewers == 5


def test_a_reader_ends_with_its_last_viewer(server, store, viewers):
    trainer = Trainer(store)
    one, other = viewers(trainer.key), viewers(trainer.key)
    wait_until(lambda: one.statuses() and other.statuses())
    feed = server.live.feeds[trainer.key]
    one.leave()
    wait_until(lambda: feed.viewers == 1)
    trainer.points(1)
    wait_until(lambda: other.steps() == [1])
    other.leave()
    wait_until(lambda: feed.viewers == 0 and feed.task.done())
    with counted(server.url) as found:
        time.sleep(4 * POLL)
    assert not found
    viewers(recipe_in(store))
    assert trainer.key not in server.live.feeds  # and is forgotten with the next request


def recipe_in(store):
    """A waiting run."""
    return store.request(recipe()).key


def test_a_slow_viewer_holds_up_nobody(store, monkeypatch):
    """One that takes nothing on, at whatever event it stopped: the others go on."""
    monkeypatch.setattr(live_module, "KEEP_ALIVE", 0.05)
    trainer = Trainer(store)

    async def watch():
        feed = Feed(store, trainer.key)
        slow, quick = feed.stream(0), feed.stream(0)
        async with asyncio.timeout(20):
            while not (await anext(slow)).startswith(b":"):
                pass
            await asyncio.to_thread(trainer.points, 1)
            async with asyncio.timeout(3):
                while b"event: points" not in await anext(quick):
                    pass
        await slow.aclose()
        await quick.aclose()
        await feed.task

    on_a_loop_of_its_own(watch())


def test_a_viewer_that_stops_reading_is_dropped_and_goes_on_by_cursor(server, store, viewers, monkeypatch):
    """Its memory is given back; what it missed is there when it returns."""
    monkeypatch.setattr(live_module, "TAKE_WITHIN", 0.3)
    trainer = Trainer(store)
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", server.port))
        stuck.sendall(f"GET /api/runs/{trainer.key}/stream HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        feed = wait_until(lambda: server.live.feeds.get(trainer.key))
        wait_until(lambda: feed.viewers == 1)
        for step in range(1, 13):  # more than the system's buffers hold
            store.add_point(trainer.key, 0, step, {"step": step, "pad": "x" * 1_000_000}, trainer.owner)
        wait_until(lambda: feed.viewers == 0)
    third = store.points(trainer.key)[2][0]
    back = viewers(trainer.key, f"?cursor={third}")
    wait_until(lambda: len(back.steps()) == 9)


def test_the_points_are_encoded_once_for_viewers_in_step(store):
    trainer = Trainer(store)
    feed = Feed(store, trainer.key)
    feed.points = [(number, json.dumps([0, {"step": number}])) for number in range(1, 5)]
    assert feed._since(2, 0) is feed._since(2, 1)
    assert b'"step": 4' in feed._since(2, 3)
    assert b'"step": 3' not in feed._since(2, 3)
    assert feed._since(4, 0) == feed._since(2, 4) == b""


def test_a_finished_run_is_encoded_once_for_all_who_come(server, viewers, monkeypatch):
    run = [run for run in shared_store(server.url).runs() if run.source == "published"][1]
    counts = []
    monkeypatch.setattr(live_module, "encode_history", lambda record: counts.append(1) or encode_history(record))
    for _ in range(3):
        viewer = viewers(run.key)
        wait_until(lambda viewer=viewer: viewer.over)
        assert viewer.names() == ["status", "history", "end"]
    assert len(counts) == 1


# How a stream ends


def test_a_finished_run_comes_whole(server, viewers):
    """Status, the history, the end; no points, and nothing after it."""
    run = next(run for run in shared_store(server.url).runs() if run.source == "published")
    viewer = viewers(run.key)
    wait_until(lambda: viewer.over)
    status, history, end = viewer.events
    assert (status.name, history.name, end.name, end.data) == ("status", "history", "end", {})
    assert (status.data["status"], status.data["done"]) == ("done", run.config.steps * 2)
    assert history.data == json.loads(encode_history(shared_store(server.url).record(run.key)))
    assert len(history.data["epoch"]) > 100
    assert len(history.data["train_loss"][0]) == len(run.config.seeds)


def test_a_run_that_finishes_while_it_is_watched(server, store, viewers):
    trainer = Trainer(store)
    viewer = viewers(trainer.key)
    trainer.point(1, 0.5)
    trainer.point(2, 0.25, tested=False)
    wait_until(lambda: len(viewer.points()) == 2)
    trainer.finish()
    wait_until(lambda: viewer.over)
    assert viewer.names()[-3:] == ["status", "history", "end"]
    assert viewer.statuses()[-1] == "done"
    history = viewer.events[-2].data
    assert (history["step"], history["epoch"]) == ([1, 2], [0.1, 0.2])
    assert (history["train_loss"], history["test_loss"]) == ([[0.5], [0.25]], [[0.5], None])
    wait_until(lambda: not server.live.feeds[trainer.key].viewers)


def cancel_waiting(store, key, _owner):
    store.release("trainer")
    store.cancel(key)


def cancel_training(store, key, owner):
    store.cancel(key)
    store.end_cancelled(key, owner)


ENDS = {
    "cancelled": cancel_training,
    "cancelled while it waits": cancel_waiting,
    "failed": lambda store, key, owner: store.fail(key, "There is no MNIST here.", owner),
    "deleted": lambda store, key, _owner: store.delete(key),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_run_that_ends_without_a_result(store, viewers, how):
    trainer = Trainer(store)
    viewer = viewers(trainer.key)
    trainer.points(1)
    wait_until(lambda: viewer.points() and viewer.statuses())
    ENDS[how](store, trainer.key, trainer.owner)
    wait_until(lambda: viewer.over)
    assert viewer.names()[-2:] == ["status", "end"]
    assert "history" not in viewer.names()
    assert viewer.statuses()[-1] == how.split()[0]
    assert viewer.events[-2].data.get("error") == ("There is no MNIST here." if how == "failed" else None)
    if how != "deleted":  # who comes later is told the same
        late = viewers(trainer.key)
        wait_until(lambda: late.over)
        assert (late.names(), late.statuses()) == (["status", "end"], [how.split()[0]])


def test_a_run_asked_for_again_is_a_new_stream(store):
    """Whoever still hangs at the end of the last one; its end is not the new one's."""
    config = recipe()
    server = Live(lambda: store.url)

    async def stream():
        scope = {"type": "http", "path_params": {"key": config.key()}, "headers": [], "query_string": b""}
        return aiter((await server.stream(Request(scope))).body_iterator)

    async def watch():
        store.request(config)
        hanging = await stream()
        await anext(hanging)
        await asyncio.to_thread(store.cancel, config.key())
        async with asyncio.timeout(20):
            while b"event: end" not in await anext(hanging):
                pass
            await asyncio.to_thread(store.request, config)
            fresh = await stream()
            while b"event: status" not in (chunk := await anext(fresh)):
                pass
        await hanging.aclose()
        await fresh.aclose()
        return chunk

    chunk = on_a_loop_of_its_own(watch())
    assert b'"status": "queued"' in chunk
    assert b"event: end" not in chunk


# What a status says


def test_the_queue(store, viewers):
    """Asked for before all others, so nothing is before the first, and one before the second."""
    first, second = (store.request(recipe(), now=float(now)).key for now in (1, 2))
    one, other = viewers(first), viewers(second)
    wait_until(lambda: one.statuses() and other.statuses())
    assert [viewer.events[0].data["ahead"] for viewer in (one, other)] == [0, 1]
    assert one.events[0].data["status"] == "queued"
    assert (one.events[0].data["worker"], one.events[0].data["left"]) == (False, None)
    store.try_role(ROLE, "token")
    wait_until(lambda: one.said()["worker"])
    store.leave_role(ROLE, "token")
    store.claim("somebody", key=first)
    wait_until(lambda: one.said()["status"] == "running" and other.said()["ahead"] == 0)


def test_silence_is_filled(store, viewers, monkeypatch):
    """A comment now and then, so that a dead connection is noticed; it is no event."""
    monkeypatch.setattr(live_module, "KEEP_ALIVE", 0.1)
    viewer = viewers(recipe_in(store))
    wait_until(lambda: viewer.comments >= 3)
    assert viewer.names() == ["status"]
    assert not viewer.over


# Refusals


@pytest.mark.parametrize("key", ["0123456789abcdef", "x" * 400, "%22%0A<b>"])
def test_an_unknown_run(server, key):
    status, headers, body = server.get(f"/api/runs/{key}/stream")
    assert status == 404
    assert headers["content-type"] == "application/json"
    assert body.decode().isprintable()
    assert len(body) < 200
    assert json.loads(body)["error"].endswith("The Runs page lists all.")


@pytest.mark.parametrize("cursor", ["x", "1.5", "1e3", "0x10", "--1", "9" * 5_000])
def test_a_bad_cursor(server, store, cursor):
    key = recipe_in(store)
    for status, _, body in (
        server.get(f"/api/runs/{key}/stream?cursor={cursor}"),
        server.get(f"/api/runs/{key}/stream?cursor=1", {"Last-Event-ID": cursor}),
    ):
        assert status == 400
        assert json.loads(body)["error"].startswith("cursor must be a whole number.")


@pytest.mark.parametrize("cursor", ["", "0", "-1"])
def test_a_cursor_before_all_points(store, viewers, cursor):
    trainer = Trainer(store)
    trainer.points(1)
    viewer = viewers(trainer.key, f"?cursor={cursor}")
    wait_until(lambda: viewer.steps() == [1])


def test_a_store_that_is_away(server, store, tmp_path, monkeypatch):
    (tmp_path / "no_database").write_text("x" * 5_000)
    key = recipe_in(store)
    monkeypatch.setattr(server, "url", f"sqlite:///{tmp_path}/no_database")
    status, _, body = server.get(f"/api/runs/{key}/stream")
    assert (status, json.loads(body)["error"]) == (503, "The store cannot be read now. Try again.")


# History, plotly.js, presence


def test_a_history_is_json_with_null_where_nothing_was_measured():
    measured = np.array([[0.1, 0.2], [np.nan, np.nan], [0.3, 1 / 3]], np.float32)
    arrays = {"history/step": np.array([1, 2, 3]), "history/epoch": np.array([1 / 3, 0.5, 1])}
    arrays |= {"history/train_loss": np.ones((3, 2), np.float32), "history/train_accuracy": np.zeros((3, 2), np.float32)}
    text = encode_history(RunFile(arrays | {"history/test_loss": measured, "history/test_accuracy": measured}, {}))

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    found = json.loads(text, parse_constant=refuse)
    assert found == {
        "epoch": [0.33333, 0.5, 1],
        "step": [1, 2, 3],
        "train_loss": [[1, 1]] * 3,
        "train_accuracy": [[0, 0]] * 3,
        "test_loss": [[0.1, 0.2], None, [0.3, 0.333333]],
        "test_accuracy": [[0.1, 0.2], None, [0.3, 0.333333]],
    }


def test_plotly_is_served_once_for_all_time(server):
    """Its address carries its version, so a browser may keep it."""
    assert plotly.__version__ in PLOTLY_ROUTE
    status, headers, body = server.get(PLOTLY_ROUTE)
    assert status == 200
    assert headers["content-type"].startswith("text/javascript")
    assert headers["cache-control"] == "public, max-age=31536000, immutable"
    assert body == PLOTLY_JS.read_bytes()
    assert b"plotly.js v" in body[:200]


def test_points_are_never_kept_by_a_cache(store, viewers):
    assert viewers(recipe_in(store)).answer.headers["cache-control"] == "no-store"


def test_a_server_is_present_while_it_lives(tmp_path):
    """Two servers of one store do not push each other out; each takes its presence with it."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    one, other = Server(url), Server(url)
    with closing(Store(url)) as store:
        try:
            wait_until(lambda: store.present(SERVER_ROLE) == [str(os.getpid())] * 2)
        finally:
            one.stop()
        assert len(store.present(SERVER_ROLE)) == 1
        other.stop()
        assert store.present(SERVER_ROLE) == []


def test_a_server_lives_without_its_store(tmp_path):
    """It starts, answers and ends; the store may come back."""
    (tmp_path / "no_database").write_text("x" * 5_000)
    one = Server(f"sqlite:///{tmp_path}/no_database")
    assert one.get("/api/runs/x/stream")[0] == 503
    one.stop()


def test_a_server_sends_what_it_has_at_once(tmp_path):
    """Streamlit's listening socket leaves Nagle's algorithm on: each answer's body then waited 40 ms for its header's receipt."""

    async def in_a_server_that_starts():
        async with Live(lambda: f"sqlite:///{tmp_path / 'store.db'}").lifespan(None):
            with closing(socket.create_connection(listening.getsockname())), closing(listening.accept()[0]) as connection:
                return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert on_a_loop_of_its_own(in_a_server_that_starts())


def test_looking_for_sockets_leaves_no_file_open(tmp_path):
    with (tmp_path / "no_socket").open("w"):
        before = os.listdir("/dev/fd")
        send_at_once()
        assert len(os.listdir("/dev/fd")) == len(before)
