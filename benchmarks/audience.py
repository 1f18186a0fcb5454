"""A class on one server: 30 pages watch one live run, 10 use other pages, 100 bare readers take its stream.

    make bench            (or: PYTHONPATH=.:tests .venv/bin/python benchmarks/audience.py --minutes 30)

Browsers of a class run on their own machines. Here one watching and one browsing page are real Chromium; the others are
stand-ins that speak the same protocols and draw nothing: a Streamlit session over its websocket, and the run's event stream.
Server, training, Chromium and stand-ins share this machine's cores. Training alone is timed before and after.
"""

import argparse
import asyncio
import json
import multiprocessing
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import websockets
from page import Arrivals, drawn, megabytes, point_to_screen, settled, stop, switch
from playwright.sync_api import sync_playwright
from serving import CHROMIUM_ARGUMENTS, Server, wait_until
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from regcompare.config import preset
from regcompare.store import Store

WATCHERS, BROWSERS, READERS = 30, 10, 100
PAGES = ("compare", "parameters", "why", "pitfalls", "runs", "")
LOOKED_AT = ("Compare", "Runs", "Why", "Lab")  # in Chromium
PAUSE = 3.0  # seconds that somebody looks at a page
MEMORY_AT = (0, 0.25, 0.5, 0.75, 1)
ALONE = 15.0  # seconds that training is timed without an audience
GROWTH, GROWTH_FROM = "page server, MB a minute over the second half", 10  # minutes; in fewer, newcomers are most of it
BARS = {
    "point in the store to screen, p95": 0.5,
    "point in the store to a bare reader, p95": 0.5,
    "page reaction in Chromium, p95": 1.0,
    "page reaction of stand-ins, p95": 1.0,
    "training slowed by, share": 0.15,
    GROWTH: 0.25,  # 7 MB in half an hour
}


async def read_stream(port: int, key: str, seen: dict[int, float] | None) -> None:
    """Take a run's stream for ever; `seen` gets when each point's cursor came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)  # a line may hold all points so far
    writer.write(f"GET /api/runs/{key}/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    while line := await reader.readline():
        if seen is not None and line.startswith(b"id: "):
            seen[int(line[4:])] = time.time()
    writer.close()


async def session(port: int, name: str, query: str, times: list[float] | None, pages: tuple[str, ...], wait: float = 0.0) -> None:
    """A Streamlit session: opens a page and stays, or goes on through `pages`; `times` gets how long each took."""
    await asyncio.sleep(wait)  # nobody clicks in step
    address = f"ws://127.0.0.1:{port}/_stcore/stream"
    async with websockets.connect(address, subprotocols=["streamlit"], max_size=None) as socket:  # type: ignore[list-item]
        while True:
            for page in pages or (name,):
                ask = BackMsg()
                ask.rerun_script.page_name = page
                ask.rerun_script.query_string = query
                began = time.perf_counter()
                await socket.send(ask.SerializeToString())
                while True:
                    answer = ForwardMsg.FromString(await socket.recv())  # type: ignore[arg-type]
                    if answer.WhichOneof("type") == "script_finished":
                        break
                if times is not None:
                    times.append(time.perf_counter() - began)
                await asyncio.sleep(PAUSE)
            if not pages:
                await asyncio.get_running_loop().create_future()


def stand_ins(port: int, key: str, seconds: float, out: Any) -> None:
    """All but the two real pages, in one process; puts reaction times, and the times that cursors came to some readers."""

    async def crowd() -> tuple[list[float], list[dict[int, float]]]:
        times: list[float] = []
        seen: list[dict[int, float]] = [{} for _ in range(10)]
        tasks = [read_stream(port, key, seen[n] if n < len(seen) else None) for n in range(READERS)]
        for _ in range(WATCHERS - 1):
            tasks += [session(port, "", f"run={key}", None, ()), read_stream(port, key, None)]
        tasks += [session(port, "", "", times, PAGES[n % 6 :] + PAGES[: n % 6], PAUSE * n / BROWSERS) for n in range(BROWSERS - 1)]
        running = [asyncio.create_task(task) for task in tasks]
        done, _ = await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()  # a stand-in that failed is a failed measurement
        for task in running:
            task.cancel()
        return times, seen

    out.put(asyncio.run(crowd()))


def pace(store: Store, key: str, seconds: float) -> float:
    """Steps a second."""
    began, first = time.perf_counter(), sum(store.progress(key).values())
    time.sleep(seconds)
    return (sum(store.progress(key).values()) - first) / (time.perf_counter() - began)


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def grown(memory: list[float], minutes: float) -> float:
    """Slope over the second half of `memory`, looked at in even steps over `minutes`."""
    half = memory[len(memory) // 2 :]
    return statistics.linear_regression(range(len(half)), half).slope * (len(memory) - 1) / minutes if len(half) > 1 else float("nan")


def measure(folder: Path, minutes: float) -> dict[str, float]:
    server = Server(folder)
    server.start()
    store = Store(server.store_url)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_ARGUMENTS)
            browsing, watching = (browser.new_page(viewport={"width": 1280, "height": 1400}) for _ in range(2))
            browsing.goto(server.url)
            drawn(browsing, "Lab")
            for name in LOOKED_AT:
                switch(browsing, name)  # a browser's first sight of a page loads its code: benchmarks/page.py times that
            # 200 epochs of mnist-5k end after three minutes, of MNIST after half an hour.
            images = {"dataset": "mnist-5k", "batch_size": 16} if minutes < 2 else {"dataset": "mnist", "batch_size": 64}
            key = store.request(preset("standard-bn", epochs=200, seeds=(0, 1, 2, 3), **images)).key
            wait_until(lambda: sum(store.progress(key).values()) > 20, 60)
            alone = [pace(store, key, ALONE)]
            arrivals = Arrivals(server.store_url, key)
            arrivals.start()
            queue = multiprocessing.get_context("spawn").Queue()
            crowd = multiprocessing.get_context("spawn").Process(target=stand_ins, args=(server.port, key, 60 * minutes, queue))
            crowd.start()
            time.sleep(8)  # all are in
            began, first, memory = time.perf_counter(), sum(store.progress(key).values()), [megabytes(server.process.pid)]
            screen, reactions = [], []
            while time.perf_counter() - began < 60 * minutes - 25:
                if not crowd.is_alive():
                    raise SystemExit("A stand-in failed; its error is above.")
                screen += point_to_screen(watching, server, key, 8)
                for name in LOOKED_AT:
                    reactions.append(switch(browsing, name))
                    settled(browsing)
                memory.append(megabytes(server.process.pid))
            steps = sum(store.progress(key).values()) - first
            together = steps / (time.perf_counter() - began)
            times, seen = queue.get(timeout=60)
            crowd.join()
            arrivals.stopping = True
            arrivals.join()
            watching.close()
            alone.append(pace(store, key, ALONE))
            lags = [at - arrivals.times[number] for one in seen for number, at in one.items() if number in arrivals.times]
            lags = [lag for lag in lags if lag < 60 * minutes]
            stop(store, [key])
            browser.close()
        return {
            "point in the store to screen, p95": p95(screen),
            "point in the store to screen, median": statistics.median(screen),
            "point in the store to a bare reader, p95": p95(lags),
            "page reaction in Chromium, p95": p95(reactions),
            "page reaction of stand-ins, p95": p95(times),
            "training slowed by, share": 1 - together / statistics.mean(alone),
            **{f"page server after {part} of the time, MB": memory[round(part * (len(memory) - 1))] for part in MEMORY_AT},
            **({GROWTH: grown(memory, minutes)} if minutes >= GROWTH_FROM else {}),
            "minutes": minutes,
        }
    finally:
        store.close()
        server.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.5, help="from 2 on the run is one on MNIST's 60,000 images")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.minutes)
    if options.json:
        print(json.dumps({"figures": found, "bars": BARS}))
        return
    print(f"{platform.system()} {platform.machine()}: {WATCHERS} watching, {BROWSERS} browsing, {READERS} bare readers")
    for name, value in found.items():
        bar = f"   at most {BARS[name]:g}: {'met' if value <= BARS[name] else 'NOT met'}" if name in BARS else ""
        print(f"{name:<44}{value:10.2f}{bar}")


if __name__ == "__main__":
    main()
