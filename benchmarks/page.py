"""The page: start, first paint, every page, reactions while training, click to point, point to screen; also with 10,000 runs.

    make bench                  (or: PYTHONPATH=.:tests .venv/bin/python benchmarks/page.py --only many)

Real Chromium, the real server, worker and training; medians and 95th percentiles of TIMES. Prints a table, with --json one object.
`first` and `live` are measured in a fresh store with the shipped runs, `many` in one that `benchmarks/many.py` fills.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from playwright.sync_api import Browser, Page, sync_playwright
from serving import CHROMIUM_ARGUMENTS, Server, wait_until

from benchmarks import many
from regcompare.config import preset
from regcompare.schema import points
from regcompare.store import Store

TIMES, SESSIONS, MANY = 20, 10, 10_000
PAGES = ("Compare", "Parameters", "Why", "Pitfalls", "Runs", "Lab")
BARS = {  # of the 95th percentile, or of the one number
    "first page drawn, training on both cores": 2.0,
    "other page drawn, training on both cores": 0.5,
    "reaction to a control, training on both cores": 0.5,
    "click to first live point": 0.6,
    "point in the store to screen": 0.25,
    "page server with ten sessions, MB": 250,
    "10,000 runs: page drawn in an open app": 0.7,
    "10,000 runs: filter of the Runs page": 0.4,
    "10,000 runs: Runs from a cold server": 3.0,
    "10,000 runs: Compare from a cold server": 3.0,
    "10 arms of 1,000 points x 8 seeds, drawn again": 1.0,
}
# Times in the page's own clock: the click as it arrives, and the first drawing that holds a point.
WATCH = """() => {
    window.clicked = window.drawn = null;
    const root = document.querySelector('.rc-live');
    document.addEventListener('click', () => { window.clicked ??= performance.now(); }, {capture: true, once: true});
    new MutationObserver((_, me) => { if (+root.dataset.points > 0 && root.dataset.stream !== window.before) {
        window.drawn = performance.now(); me.disconnect(); } }).observe(root, {attributes: true, attributeFilter: ['data-points']});
    window.before = root.dataset.stream; }"""
# When each number of points was first on the screen, in seconds since 1970.
FOLLOW = """() => { window.seen = {};
    const root = document.querySelector('.rc-live');
    new MutationObserver(() => { window.seen[root.dataset.points] ??= +root.dataset.drawn / 1000; })
        .observe(root, {attributes: true, attributeFilter: ['data-points', 'data-drawn']}); }"""
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'
# Of each page what must be there before it counts as drawn.
DRAWN = {"Lab": ".js-plotly-plot .main-svg", "Runs": '[data-testid="stDataFrame"] canvas'}


def settled(page: Page) -> None:
    page.wait_for_selector(IDLE, timeout=60_000)


def drawn(page: Page, name: str) -> None:
    """The page's heading and its first figure or table are there, and its script has ended."""
    if name != "Lab":
        page.get_by_role("heading", name=name, exact=True).wait_for(timeout=60_000)
    page.locator(DRAWN.get(name, ".js-plotly-plot .main-svg")).first.wait_for(timeout=60_000)
    settled(page)


def timed(action: Callable[[], object], done: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    done()
    return time.perf_counter() - began


def megabytes(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def loads_torch(pid: int) -> bool:
    return "torch" in Path(f"/proc/{pid}/maps").read_text()


def click_to_point(page: Page, store: Store, number: int) -> float:
    """Seconds from a click on Train to the first point drawn; the run is cancelled then."""
    seeds = page.get_by_role("textbox", name="Seeds")
    seeds.fill(f"{100 * number}-{100 * number + 7}")
    seeds.press("Enter")
    settled(page)
    page.evaluate(WATCH)
    page.get_by_role("button", name="Train", exact=True).click()
    page.wait_for_function("window.drawn !== null", timeout=30_000)
    seconds = page.evaluate("(window.drawn - window.clicked) / 1000")
    page.get_by_role("button", name="Cancel", exact=True).click()
    wait_until(lambda: not store.runs(["queued", "running"]))
    settled(page)
    return seconds


class Arrivals(threading.Thread):
    """Notes when each point of a run is in the store, looking every two milliseconds."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(daemon=True)
        self.engine, self.key, self.times, self.stopping = sa.create_engine(url), key, {}, False

    def run(self) -> None:
        query = sa.select(sa.func.count()).where(points.c.key == self.key)
        while not self.stopping:
            with self.engine.connect() as db:
                self.times.setdefault(db.scalar(query), time.time())
            time.sleep(0.002)


def train_on_both(store: Store, page: Page) -> list[str]:
    """Two long runs, one a core; returns their keys once both train."""
    keys = [store.request(preset(name, epochs=200, batch_size=32, seeds=(0, 1, 2, 3))).key for name in ("standard-bn", "bn-dropout")]
    wait_until(lambda: all(store.progress(key) for key in keys), 60)
    settled(page)
    return keys


def stop(store: Store, keys: list[str]) -> None:
    for key in keys:
        store.cancel(key)
    wait_until(lambda: not store.runs(["queued", "running"]))


def point_to_screen(page: Page, server: Server, key: str, seconds: float = 12) -> list[float]:
    page.goto(f"{server.url}/?run={key}")
    page.wait_for_function("+document.querySelector('.rc-live')?.dataset.points > 3", timeout=60_000)
    settled(page)
    page.evaluate(FOLLOW)
    arrivals = Arrivals(server.store_url, key)
    arrivals.start()
    page.wait_for_timeout(1000 * seconds)
    arrivals.stopping = True
    arrivals.join()
    first = min(arrivals.times)  # what was there already has no time of arrival
    seen = {int(count): at for count, at in page.evaluate("window.seen").items()}
    waits = []
    for count, came in arrivals.times.items():
        later = [at for shown, at in seen.items() if shown >= count]
        if count > first and later:
            waits.append(min(later) - came)
    return waits


def switch(page: Page, name: str) -> float:
    link = page.get_by_role("link", name=name, exact=True).first
    return timed(link.click, lambda: drawn(page, name))


def react(page: Page, number: int, title: str = ".xtitle") -> float:
    """Another measure on the Compare page, until a figure has the new title."""
    name, words = (("Test loss", "loss"), ("Test accuracy", "accuracy"))[number % 2]
    button = page.get_by_role("radio", name=re.compile(name)).first
    done = f"[...document.querySelectorAll('{title}')].some(e => e.textContent.toLowerCase().includes('{words}'))"
    return timed(button.click, lambda: (page.wait_for_function(done, timeout=30_000), settled(page)))


def search(page: Page, words: str) -> float:
    box, caption = page.get_by_role("textbox", name="Search"), page.get_by_text(re.compile(r"[\d,]+ of [\d,]+ runs"))
    before = caption.inner_text()
    box.fill(words)
    return timed(lambda: box.press("Enter"), lambda: (wait_until(lambda: caption.inner_text() != before, every=0.005), settled(page)))


def live(browser: Browser, folder: Path) -> dict[str, list[float] | float | bool]:
    server = Server(folder)
    began = time.perf_counter()
    server.start()
    found: dict[str, list[float] | float | bool] = {"server start to ready, s": time.perf_counter() - began}
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.goto(server.url)
        drawn(page, "Lab")
        page.get_by_text("More: training, seeds, single layers").click()
        found["page server with one session, MB"] = megabytes(server.process.pid)
        store = Store(server.store_url)
        click_to_point(page, store, 1)  # the worker warms up
        found["click to first live point"] = [click_to_point(page, store, number) for number in range(2, TIMES + 2)]
        keys = train_on_both(store, page)
        found["point in the store to screen"] = point_to_screen(page, server, keys[0])
        first, others = [], []
        for _ in range(TIMES):
            fresh = browser.new_page(viewport={"width": 1280, "height": 1400})
            first.append(timed(lambda fresh=fresh: fresh.goto(server.url), lambda fresh=fresh: drawn(fresh, "Lab")))
            fresh.close()
        found["first page drawn, training on both cores"] = first
        for name in PAGES:
            switch(page, name)  # once for what a server works out once
        for _ in range(TIMES // 4):
            others += [switch(page, name) for name in PAGES]
        found["other page drawn, training on both cores"] = others
        switch(page, "Compare")
        found["reaction to a control, training on both cores"] = [react(page, number) for number in range(TIMES)]
        stop(store, keys)
        sessions = [browser.new_page() for _ in range(SESSIONS - 1)]
        for number, other in enumerate(sessions):
            other.goto(f"{server.url}/{('', 'compare', 'parameters', 'why', 'pitfalls', 'runs')[number % 6]}")
            settled(other)
        found["page server with ten sessions, MB"] = megabytes(server.process.pid)
        found["page server has torch loaded"] = loads_torch(server.process.pid)
        return found
    finally:
        server.end()


def with_many_runs(browser: Browser, folder: Path) -> dict[str, list[float] | float | bool]:
    found: dict[str, list[float] | float | bool] = {}
    server = Server(folder)
    many.fill(server.store_url, MANY, 200)
    for name in ("Runs", "Compare"):
        times = []
        for _ in range(3):
            server.start()
            page = browser.new_page(viewport={"width": 1280, "height": 1400})
            times.append(
                timed(
                    lambda page=page, name=name: page.goto(f"{server.url}/{name.lower()}"), lambda page=page, name=name: drawn(page, name)
                )
            )
            page.close()
            server.stop()
        found[f"10,000 runs: {name} from a cold server"] = times
    server.start()
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.goto(server.url)
        drawn(page, "Lab")
        for name in PAGES:
            switch(page, name)
        found["10,000 runs: page drawn in an open app"] = [switch(page, name) for _ in range(TIMES // 2) for name in ("Runs", "Compare")]
        switch(page, "Runs")
        words = ("dropout", "input-bn mnist-5k")
        found["10,000 runs: filter of the Runs page"] = [search(page, words[number % 2]) for number in range(TIMES)]
        found["10,000 runs: page server, MB"] = megabytes(server.process.pid)
        return found
    finally:
        server.end()


def overlaid(browser: Browser, folder: Path) -> dict[str, list[float] | float | bool]:
    """Compare with ten long arms, until its curves show another measure; all other figures of the page are drawn with them."""
    server = Server(folder)
    keys = many.overlay(server.store_url, 10, 1000)
    server.start()
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.goto(f"{server.url}/compare?arms={','.join(keys)}")
        drawn(page, "Compare")
        times = [react(page, number, ".st-key-compare_curves .ytitle") for number in range(TIMES)]
        return {"10 arms of 1,000 points x 8 seeds, drawn again": times[2:]}  # the first two work the figures out
    finally:
        server.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("live", "many", "overlay"), action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[float] | float | bool] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_ARGUMENTS)
        for name, measure in (("live", live), ("many", with_many_runs), ("overlay", overlaid)):
            if not options.only or name in options.only:
                with tempfile.TemporaryDirectory() as folder:
                    found |= measure(browser, Path(folder))
    if options.json:
        print(json.dumps({"times": found, "bars": BARS}))
        return
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name, value in found.items():
        if isinstance(value, list):
            worst = statistics.quantiles(value, n=20)[-1] if len(value) > 3 else max(value)
            shown = f"median {statistics.median(value):6.2f} s   p95 {worst:6.2f} s   n = {len(value)}"
        else:
            worst = float(value)
            shown = str(value) if isinstance(value, bool) else f"{value:.2f}"
        bar = f"   at most {BARS[name]:g}: {'met' if worst <= BARS[name] else 'NOT met'}" if name in BARS else ""
        print(f"{name:<48}{shown:<44}{bar}")


if __name__ == "__main__":
    main()
