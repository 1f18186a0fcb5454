"""Points of a running net, pushed to every viewer as server-sent events; Starlette, no Streamlit.

One reader per run asks the store; all of a run's viewers share what it found, already encoded. A viewer names the last
point it has (`Last-Event-ID`, or `?cursor=`) and gets what came after it, so a dropped connection leaves no gap. Events:

    points   [[stack, point], ...]; a step that comes again (a run resumed) replaces the earlier one
    status   {status, done, total, left: seconds or null, error, ahead: runs before it, worker: is there one}
    history  {epoch: [T], train_loss: [T][K], ...}: a finished run, whole; replaces all points
    end      the stream is over; do not come back
"""

import asyncio
import contextlib
import importlib
import json
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import plotly
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Send

from regcompare.config import RegcompareError
from regcompare.measurements import Measurements
from regcompare.memory import give_back, one_arena
from regcompare.runfile import METRICS, RunFile
from regcompare.store import Run, Store, default_url
from regcompare.worker import ROLE, SERVER_ROLE, ensure_worker

POLL = 0.05  # seconds between looks at the store for a run that has viewers
STATUS_EVERY = 0.25
KEEP_ALIVE = 10.0  # seconds of silence after which a comment goes out, so that a dead connection is noticed
TAKE_WITHIN = 10.0  # seconds that a viewer may leave what it was sent in the pipe; then it is dropped and may come back
PRESENCE = 1.5
PLOTLY_JS = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
PLOTLY_ROUTE = f"/api/plotly-{plotly.__version__}.js"


_building = threading.Lock()


def shared_store(url: str) -> Store:
    """One store for all viewers and pages of a server, with the published runs in it."""
    with _building:  # a cache alone lets two threads build the same one
        return _build_store(url)


@lru_cache(maxsize=4)
def _build_store(url: str) -> Store:
    store = Store(url)
    store.import_published()
    Measurements(store).import_published()
    return store


def event(name: str, data: str, cursor: int | None = None) -> bytes:
    identity = f"id: {cursor}\n" if cursor is not None else ""
    return f"{identity}event: {name}\ndata: {data}\n\n".encode()


class Feed:
    """The one reader of a run. It works while it has viewers."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key
        self.points: list[tuple[int, str]] = []  # cursor, encoded [stack, point]
        self.cursor = 0
        self.status = ""
        self.final: bytes | None = None  # what ends the stream: the whole history of a finished run, and the end
        self.viewers = 0
        self.changed = asyncio.Condition()
        self.task: asyncio.Task[None] | None = None
        self._encoded: tuple[int, int, bytes] = (0, 0, b"")  # the points from one count to another as the event they were sent as
        self._pace: tuple[float, int] | None = None  # time and steps when this reader first saw the run train

    async def read(self) -> None:
        next_status = 0.0
        while self.viewers:
            now = time.monotonic()
            fresh = await run_in_threadpool(self.store.points, self.key, self.cursor)
            status, final = self.status, None
            if now >= next_status:
                status, final = await run_in_threadpool(self._look)
                next_status = now + STATUS_EVERY
            if fresh or status != self.status or final:
                async with self.changed:
                    self.points += [(cursor, json.dumps([stack, value])) for cursor, stack, value in fresh]
                    self.cursor = self.points[-1][0] if self.points else 0
                    self.status, self.final = status, final
                    self.changed.notify_all()
            if final:
                return
            await asyncio.sleep(POLL)

    def _look(self) -> tuple[str, bytes | None]:
        """Status as JSON, and what ends the stream if the run has ended."""
        self.store.reap()
        run = self.store.run(self.key)
        if run is None:
            return "", event("status", json.dumps({"status": "deleted"})) + event("end", "{}")
        total = run.config.steps * len(run.config.stacks())
        facts: dict[str, Any] = {"status": run.status, "error": run.error, "total": total, "done": total, "left": None}
        if run.status in ("queued", "running", "interrupted"):
            done = sum(self.store.progress(self.key).values())
            waiting = self.store.runs(["queued", "interrupted"]) if run.status == "queued" else []
            ahead = sum(other.created < run.created for other in waiting)
            facts |= {"done": done, "left": self._left(run.status, done, total), "ahead": ahead}
            facts["worker"] = bool(self.store.present(ROLE))
            return json.dumps(facts), None
        history = _history(self.store, run) if run.status == "done" else b""
        return json.dumps(facts), event("status", json.dumps(facts)) + history + event("end", "{}")

    def _left(self, status: str, done: int, total: int) -> float | None:
        """Seconds that remain at the pace seen so far; None until that is a second's worth."""
        if status != "running":
            self._pace = None
            return None
        now = time.monotonic()
        if self._pace is None or done < self._pace[1]:
            self._pace = (now, done)
        began, first = self._pace
        return (total - done) * (now - began) / (done - first) if now - began > 1 and done > first else None

    def _since(self, sent: int, cursor: int) -> bytes:
        """The points after the first `sent` that came after the cursor, as one event; empty if there is none."""
        points = self.points[sent:]
        behind = bool(points) and points[0][0] <= cursor
        if not behind and self._encoded[:2] == (sent, len(self.points)):
            return self._encoded[2]  # most viewers wait for the same points
        fresh = [(id_, text) for id_, text in points if id_ > cursor]
        encoded = event("points", "[" + ",".join(text for _, text in fresh) + "]", fresh[-1][0]) if fresh else b""
        if not behind:
            self._encoded = sent, len(self.points), encoded
        return encoded

    async def stream(self, cursor: int) -> AsyncIterator[bytes]:
        """What a viewer with this cursor has not seen, and then what comes."""
        self.viewers += 1
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self.read())
        shown, sent = "", 0
        try:
            yield b"retry: 500\n\n"
            while True:
                fresh, sent = self._since(sent, cursor), len(self.points)
                status, final = self.status, self.final
                if fresh:
                    yield fresh
                if final:
                    yield final
                    return
                if status != shown:
                    yield event("status", status)
                    shown = status
                silent = False
                async with self.changed:
                    if sent == len(self.points) and status == self.status and not self.final:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(self.changed.wait(), KEEP_ALIVE)
                            continue
                        silent = True
                if silent:  # said outside the lock: a viewer that takes nothing on must not hold up the others
                    yield b": still here\n\n"
                    if self.task.done():
                        return  # the reader failed; the viewer comes back and starts another
        finally:
            self.viewers -= 1


class ViewerResponse(StreamingResponse):
    """A stream that does not wait for ever: a viewer that stops reading is dropped, and goes on by its cursor when it returns."""

    async def stream_response(self, send: Send) -> None:
        async def soon(message: Message) -> None:
            async with asyncio.timeout(TAKE_WITHIN):
                await send(message)

        async with contextlib.aclosing(self.body_iterator):  # type: ignore[type-var]
            with contextlib.suppress(TimeoutError):
                await super().stream_response(soon)


@lru_cache(maxsize=16)
def _history(store: Store, run: Run) -> bytes:
    """What viewers of a finished run get; worked out once, however many come."""
    record = store.record(run.key)
    return event("history", encode_history(record)) if record else b""


def encode_history(record: RunFile) -> str:
    """A finished run's history as JSON; test values that were not measured are null."""
    columns: dict[str, Any] = {"epoch": record.arrays["history/epoch"].round(5).tolist(), "step": record.arrays["history/step"].tolist()}
    for metric in METRICS:
        values = record.history(metric).astype(float).round(6)
        columns[metric] = [None if np.isnan(row).any() else row.tolist() for row in values]
    return json.dumps(columns)


def send_at_once() -> None:
    """Turn off Nagle's algorithm on the sockets this process listens on; connections inherit it.

    asyncio does it only for sockets made with an explicit protocol, and Streamlit's is not: the body of every answer then waits
    for the receipt of its header, up to 40 ms.
    """
    for number in os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else ():
        with contextlib.suppress(OSError):  # one that was open for the listing only
            if not stat.S_ISSOCK(os.fstat(int(number)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(number))) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Live:
    """The routes and the presence of one page server."""

    def __init__(self, url: Callable[[], str] = default_url) -> None:
        self.url = url
        self.feeds: dict[str, Feed] = {}

    def routes(self) -> list[Route]:
        return [Route("/api/runs/{key}/stream", self.stream), Route(PLOTLY_ROUTE, self.plotly_js)]

    async def plotly_js(self, _request: Request) -> Response:
        """plotly.js as the plotly package ships it: no content network is needed."""
        return FileResponse(PLOTLY_JS, media_type="text/javascript", headers={"Cache-Control": "public, max-age=31536000, immutable"})

    async def stream(self, request: Request) -> Response:
        key = request.path_params["key"]
        try:
            cursor = int(request.headers.get("last-event-id") or request.query_params.get("cursor") or 0)
        except ValueError:
            return JSONResponse({"error": "cursor must be a whole number. Leave it out to get every point."}, 400)
        try:
            store = await run_in_threadpool(shared_store, self.url())
            if await run_in_threadpool(store.run, key) is None:
                return JSONResponse({"error": f"There is no run '{key[:40]}'. The Runs page lists all."}, 404)
        except (RegcompareError, SQLAlchemyError):
            return JSONResponse({"error": "The store cannot be read now. Try again."}, 503)
        for old in [k for k, f in self.feeds.items() if not f.viewers and (f.task is None or f.task.done())]:
            del self.feeds[old]
        if key not in self.feeds or self.feeds[key].final:  # asked for again: whoever still takes the old end in keeps it to himself
            self.feeds[key] = Feed(store, key)
        feed = self.feeds[key]
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return ViewerResponse(feed.stream(cursor), media_type="text/event-stream", headers=headers)

    @asynccontextmanager
    async def lifespan(self, _app: Any) -> AsyncIterator[None]:
        """Say that this server is here, so that the worker stays; see to dead workers and waiting runs."""
        one_arena()
        send_at_once()
        role, token = SERVER_ROLE + uuid.uuid4().hex[:8], uuid.uuid4().hex
        warming = threading.Thread(target=self._warm_up, daemon=True)
        warming.start()
        task = asyncio.create_task(self._presence(role, token))
        try:
            yield None
        finally:
            task.cancel()
            with contextlib.suppress(Exception):
                await run_in_threadpool(shared_store(self.url()).leave_role, role, token)

    def _warm_up(self) -> None:
        """Load what the first page needs while its reader is still on the way: the libraries of the figures, and the runs."""
        with contextlib.suppress(RegcompareError, SQLAlchemyError, OSError):  # the page says what is wrong
            importlib.import_module("regcompare.report")
            shared_store(self.url()).runs()

    async def _presence(self, role: str, token: str) -> None:
        while True:
            with contextlib.suppress(RegcompareError, SQLAlchemyError, OSError):  # a store that is away comes back
                await run_in_threadpool(self._look_after, role, token)
            await asyncio.sleep(PRESENCE)

    def _look_after(self, role: str, token: str) -> None:
        store = shared_store(self.url())
        store.try_role(role, token, info=str(os.getpid()))
        store.reap()
        give_back()
        if store.runs(["queued", "interrupted"]) or Measurements(store).waiting():
            ensure_worker(store)
