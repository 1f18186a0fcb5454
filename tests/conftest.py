"""What every test shares: real data, read once; a store of its own; the app in a real server and a real browser."""

import os
import shutil

import pytest
from hypothesis import settings
from serving import CHROMIUM_ARGUMENTS, ROOT, Server

# Skips that are right where the thing is not there; any other skip fails a run under REGCOMPARE_NO_SKIPS (.ci/run).
RIGHT_SKIPS = ("needs real MNIST", "needs a CUDA device")

# Two test processes on two cores: more threads in each only wait for each other. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("calm", deadline=None, database=None)  # a busy machine must not fail a law
settings.load_profile("calm")


@pytest.fixture(scope="session")
def mnist_5k():
    from regcompare.config import RunConfig
    from regcompare.data import load

    return load(RunConfig())


@pytest.fixture
def store_url(tmp_path, monkeypatch):
    """A store of the test's own, named as a user would name it."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("REGCOMPARE_STORE", url)
    return url


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server for the journeys that need none of their own."""
    one = Server(tmp_path_factory.mktemp("server")).start()
    yield one
    one.end()


@pytest.fixture
def fresh_server(tmp_path):
    one = Server(tmp_path)
    yield one
    one.end()


@pytest.fixture(scope="session")
def browser():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield one
        one.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A screenshot of every open page when a journey fails."""
    report = (yield).get_result()
    item.failed_in = getattr(item, "failed_in", False) or report.failed
    if report.failed and "page" in item.funcargs:
        folder = ROOT / "test-output"
        folder.mkdir(exist_ok=True)
        for number, page in enumerate(item.funcargs["page"].context.pages):
            page.screenshot(path=folder / f"{item.name}-{number}.png")


_skipped = []


def pytest_runtest_logreport(report):
    if report.skipped:
        _skipped.append((report.nodeid, report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)))


def pytest_sessionfinish(session):
    wrong = [(name, why) for name, why in _skipped if not any(right in why for right in RIGHT_SKIPS)]
    if wrong and os.environ.get("REGCOMPARE_NO_SKIPS"):
        for name, why in wrong:
            print(f"\nskipped, but should have run: {name}: {why}")
        session.exitstatus = 1
