"""The first second: from a click on Train to the first live point on the screen, and what the page server holds.

    make bench

Real Chromium, the real server, worker and training, the worker warm; medians and 95th percentiles of CLICKS clicks, each on
a recipe that is new to the store. Prints a table, with --json one object.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from serving import CHROMIUM_ARGUMENTS, Server, wait_until

from regcompare.store import Store

CLICKS, SESSIONS = 20, 10
BARS = {"click to first live point, s, median": 0.6, "page server with ten sessions, MB": 250}
# Times in the page's own clock: the click as it arrives, and the first drawing that holds a point.
WATCH = """() => {
    window.clicked = window.drawn = null;
    const root = document.querySelector('.rc-live');
    document.addEventListener('click', () => { window.clicked ??= performance.now(); }, {capture: true, once: true});
    new MutationObserver((_, me) => { if (+root.dataset.points > 0 && root.dataset.stream !== window.before) {
        window.drawn = performance.now(); me.disconnect(); } }).observe(root, {attributes: true, attributeFilter: ['data-points']});
    window.before = root.dataset.stream; }"""


def settled(page: Page) -> None:
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=30_000)


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


def measure() -> dict[str, float | bool]:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(Path(folder))
        began = time.perf_counter()
        server.start()
        ready = time.perf_counter() - began
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_ARGUMENTS)
            page = browser.new_page(viewport={"width": 1280, "height": 1400})
            page.goto(server.url)
            settled(page)
            page.get_by_text("More: training, seeds, single layers").click()
            one = megabytes(server.process.pid)
            store = Store(server.store_url)
            click_to_point(page, store, 1)  # the worker warms up
            times = [click_to_point(page, store, number) for number in range(2, CLICKS + 2)]
            others = [browser.new_page() for _ in range(SESSIONS - 1)]
            for number, other in enumerate(others):
                other.goto(f"{server.url}/{('', 'compare', 'parameters', 'runs')[number % 4]}")
                settled(other)
            return {
                "server start to ready, s": ready,
                "click to first live point, s, median": statistics.median(times),
                "click to first live point, s, p95": statistics.quantiles(times, n=20)[-1],
                "page server with one session, MB": one,
                "page server with ten sessions, MB": megabytes(server.process.pid),
                "page server has torch loaded": loads_torch(server.process.pid),
            }
        finally:
            server.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure()
    if options.json:
        print(json.dumps(found))
        return
    print(f"{CLICKS} clicks, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name, value in found.items():
        bar = f"   bar {BARS[name]:g}" if name in BARS else ""
        print(f"{name:<42}{value if isinstance(value, bool) else f'{value:.2f}':>8}{bar}")


if __name__ == "__main__":
    main()
