"""The app in a real server, for the browser tests and the benchmarks."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def wait_until(holds, seconds=20.0, every=0.02):
    """The first true value of `holds()`; fails after `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := holds():
            return value
        time.sleep(every)
    raise AssertionError(f"not within {seconds:g} s: {holds}")


class Server:
    """The real app on a free port, with a store of its own."""

    def __init__(self, folder, **environment):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.url, self.store_url = f"http://127.0.0.1:{self.port}", f"sqlite:///{folder / 'store.db'}"
        self.log = folder / "server.log"  # a pipe nobody reads would stop the server when it is full
        self.environment = os.environ | {"REGCOMPARE_STORE": self.store_url} | environment
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(self.port), "--server.address", "127.0.0.1"]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=output, stderr=output, start_new_session=True)
        wait_until(self.healthy, 60)
        return self

    def healthy(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2) as answer:
                return answer.read() == b"ok"
        except OSError:
            return False

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait(20)

    def processes(self):
        """Process numbers of all that was started for this store (Linux), by command line."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may end while it is looked at
                if f"REGCOMPARE_STORE={self.store_url}\0".encode() in (entry / "environ").read_bytes() + b"\0":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode().replace("\0", " ")
        return found

    def workers(self):
        """Process numbers of this store's workers."""
        return [pid for pid, command in self.processes().items() if "-m regcompare.worker" in command]

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.workers():
            os.killpg(pid, signal.SIGKILL)
