"""The background process, `python -m regcompare.worker`: one turn in a loop - claim, hand on, heartbeat, look, leave.

Never runs inside the page server and imports no torch itself: `train_stack` does, in the training processes. Those are
loky's; one that dies takes its neighbours' pool with it, so the pool is made anew and the runs taken up from their
checkpoints.
"""

import argparse
import contextlib
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy.exc import SQLAlchemyError

from regcompare.config import RegcompareError, one_line
from regcompare.measurements import Measurements, take
from regcompare.store import START_PATIENCE, NotOwner, Store, default_url

POLL = 0.03  # seconds between turns: half of it is what a click waits for its claim, on average
BEAT = 1.0  # seconds between heartbeats
IDLE_LEAVE = 6.0  # seconds without work and without a page server, then the worker leaves
CHECKPOINT_EVERY = 2.0  # seconds between a stack's checkpoints, made at epochs' ends: what a killed process trains again
LOG_SIZE = 1 << 20  # bytes of the log of earlier workers that are kept
MAX_ATTEMPTS = 3  # a run that loses its training process this often is failed, not tried again
ROLE, SERVER_ROLE, STARTING_ROLE = "worker", "server:", "starting"
log = logging.getLogger("regcompare.worker")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train_stack(url: str, key: str, index: int, owner: str, data_dir: str | None = None, device: str = "auto") -> str | None:
    """Train one stack of a claimed run and record it. Runs in a training process; returns a sentence if the run failed.

    It resumes from the stack's checkpoint. It stops, leaving no trace, as soon as the run is not `owner`'s any more.
    """
    import torch

    from regcompare import train as training
    from regcompare.data import load

    training.one_core()
    store = _store(url)
    try:
        run = store.run(key)
        if run is None or index in store.finished_stacks(key):
            return None
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        config = run.config
        data = load(config, Path(data_dir) if data_dir else None, device=chosen)
        saved = store.load_checkpoint(key, index, owner)
        batch_norm = {name: [value] for name, value in (saved or {}).items() if name.startswith("history_bn/")}
        began = float(saved["began"]) if saved else time.time()
        resume = {k: v for k, v in saved.items() if not k.startswith("history_bn/")} if saved else None
        kept_at = float("-inf")  # the first epoch's end is always kept
        for event in training.train(config, data, config.stacks()[index], chosen, resume):
            match event:
                case training.Point(step=step):
                    store.add_point(key, index, step, event.__dict__, owner)
                case training.EpochEnded():
                    _extend(batch_norm, event.batch_norm)
                    if 0 < event.epoch < config.epochs and time.monotonic() - kept_at >= CHECKPOINT_EVERY:
                        kept = {name: _joined(values) for name, values in batch_norm.items()}
                        state = event.checkpoint | kept | {"began": training.np.array(began)}
                        store.save_checkpoint(key, index, state, event.epoch * config.steps_per_epoch, owner)
                        kept_at = time.monotonic()
                case training.Finished():
                    arrays = event.arrays | {f"batch_norm/{n.partition('/')[2]}": _joined(v) for n, v in batch_norm.items()}
                    store.finish_stack(key, index, arrays, facts(device=chosen, began=began, ended=time.time()), owner)
        return None
    except NotOwner:
        store.end_cancelled(key, owner)
        return None
    except RegcompareError as error:
        store.fail(key, str(error), owner)
        return str(error)


def measure(url: str, key: str, name: str, owner: str, data_dir: str | None = None) -> None:
    """Take one measurement of a finished run and record it. Runs in a training process, on the CPU."""
    from regcompare.train import one_core

    one_core()
    store = _store(url)
    found = Measurements(store)
    record = store.record(key, weights=True)
    try:
        if record is not None:
            found.end(owner, take(record, name, data_dir))
    except RegcompareError as error:
        found.end(owner, error=str(error))


def _extend(history: dict[str, list[Any]], arrays: dict[str, Any]) -> None:
    for name, value in arrays.items():
        history.setdefault(f"history_bn/{name}", []).append(value[None])


def _joined(parts: list[Any]) -> Any:
    import numpy as np

    return np.concatenate(parts)


_stores: dict[str, Store] = {}


def _store(url: str) -> Store:
    return _stores.setdefault(url, Store(url))


def facts(device: str, began: float, ended: float) -> dict[str, Any]:
    """What a run file says of its making: versions and the kind of machine, no name of one."""
    versions = {name: version(name) for name in ("torch", "numpy")}
    return {
        "began": began,
        "ended": ended,
        "device": device,
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions | {"python": platform.python_version(), "regcompare": _own_version()},
    }


def _own_version() -> str:
    from regcompare import __version__

    return __version__


def leave_with_parent() -> None:
    """End this training process when its parent is gone: a killed dispatcher cannot tell it to."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def warm_up(url: str) -> int:
    """Load what a training process needs before the first click: torch, its kernels, the embedded images."""
    from regcompare.config import RunConfig
    from regcompare.data import load
    from regcompare.train import one_core, train

    one_core()
    _store(url)
    config = RunConfig(batch_norm=("conv1", "conv2", "fc1", "fc2"), seeds=(0, 1, 2, 3))  # type: ignore[arg-type]
    load(config)
    events = train(config, load(config))
    for _ in range(3):
        next(events)
    return os.getpid()


class Worker:
    """Claims runs and hands their stacks to an executor. `turn` is one round; `loop` only repeats it."""

    def __init__(self, url: str, jobs: int, data_dir: str | None = None, device: str = "auto", stay: bool = False) -> None:
        self.store, self.url, self.jobs, self.data_dir, self.device, self.stay = Store(url), url, jobs, data_dir, device, stay
        self.measurements = Measurements(self.store)
        self.token = uuid.uuid4().hex
        self.pool: Executor | None = None
        self.waiting: dict[Future[str | None], tuple[str, str]] = {}  # future of a stack -> key and owner of its run
        self.attempts: dict[str, int] = {}
        self.stopping = False
        self._last_beat = self._last_needed = 0.0

    def executor(self) -> Executor:
        """The warm pool; a broken one is replaced."""
        if self.pool is None:
            from loky import ProcessPoolExecutor

            self.pool = ProcessPoolExecutor(self.jobs, timeout=None, initializer=leave_with_parent)
            for _ in range(self.jobs):
                self.pool.submit(warm_up, self.url)
        return self.pool

    def turn(self, now: float) -> bool:
        """One round; False when the worker should leave."""
        if now - self._last_beat >= BEAT:
            if not self.store.try_role(ROLE, self.token, now, str(os.getpid())):
                log.info("another worker serves this store")
                return False
            for _, owner in set(self.waiting.values()):
                self.store.beat(owner, now)
                self.measurements.beat(owner, now)
            self.store.reap(now)
            if self.waiting or self.stay or self.store.present(SERVER_ROLE, now):
                self._last_needed = now
            self._last_beat = now
        self.collect()
        # An owner a claim: who still trains a run that was deleted or cancelled must not write into the same run asked for again.
        while len(self.waiting) < self.jobs and (run := self.store.claim(owner := uuid.uuid4().hex, now)):
            log.info("training %s (%s)", run.key, run.label)
            for index in range(len(run.config.stacks())):
                self.waiting[self.submit(train_stack, run.key, index, owner, self.data_dir, self.device)] = run.key, owner
        while len(self.waiting) < self.jobs and (wanted := self.measurements.claim(owner := uuid.uuid4().hex, now)):
            self.waiting[self.submit(measure, *wanted, owner, self.data_dir)] = wanted[0], owner
        return bool(self.waiting) or now - self._last_needed < IDLE_LEAVE

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[str | None]:
        """Hand one piece of work on; to a pool that broke while it was idle, a future that says so."""
        try:
            return self.executor().submit(function, self.url, *arguments)
        except BrokenExecutor as error:
            future: Future[str | None] = Future()
            future.set_exception(error)
            return future

    def collect(self) -> None:
        """Take finished futures off the list; after a lost process, give every run back and start a fresh pool."""
        lost: set[tuple[str, str]] = set()
        for future in [f for f in self.waiting if f.done()]:
            key, owner = self.waiting.pop(future)
            error = future.exception()
            if isinstance(error, BrokenExecutor):
                lost.add((key, owner))
            elif error is not None:
                log.error("run %s: %r", key, error)
                text = one_line(f"Training stopped by an unexpected error: {type(error).__name__}: {error}. Try it again.")
                self.store.fail(key, text, owner)
                self.measurements.end(owner, error=text.replace("Training", "Measuring", 1))
        if lost:
            lost |= set(self.waiting.values())
            self.waiting.clear()
            log.warning("a training process ended; resuming %d runs", len(lost))
            pool, self.pool = self.pool, None
            if pool is not None:
                pool.shutdown(wait=False, kill_workers=True)  # type: ignore[call-arg]
            for key, owner in lost:
                self.attempts[key] = self.attempts.get(key, 0) + 1
                if self.attempts[key] >= MAX_ATTEMPTS:
                    text = f"The training process ended {MAX_ATTEMPTS} times, perhaps for want of memory. Choose fewer seeds."
                    self.store.fail(key, text, owner)
                self.measurements.end(owner)
                self.store.release(owner)  # what the old processes may still write is refused

    def loop(self) -> None:
        """Turns until nothing is left to do or a signal comes; the runs in hand are given back."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._stop)  # the handler only sets a flag: a turn is never cut in two
        self.executor()
        self.store.leave_role(STARTING_ROLE)
        self._last_needed = time.time()
        try:
            while not self.stopping:
                try:
                    if not self.turn(time.time()):
                        break
                except SQLAlchemyError as error:  # a full disk or a database away for a moment must not end the worker
                    log.error("the store does not answer: %s", error)
                    time.sleep(1)
                time.sleep(POLL)
        finally:
            if self.pool is not None:
                self.pool.shutdown(wait=False, kill_workers=True)  # type: ignore[call-arg]
            with contextlib.suppress(SQLAlchemyError):
                for _, owner in set(self.waiting.values()):
                    self.store.release(owner)
                self.store.leave_role(ROLE, self.token)

    def _stop(self, *_: object) -> None:
        self.stopping = True


def open_log(path: Path) -> BinaryIO:
    """The log, to add to it; one that has grown beyond LOG_SIZE begins anew."""
    path.parent.mkdir(exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_SIZE:
        os.truncate(path, 0)  # a worker of another store may write to it too: all of them add at its end
    return path.open("ab")


def ensure_worker(store: Store, now: float | None = None) -> bool:
    """Start a detached worker for the store if none lives and nobody else is starting one; True if this call did."""
    now = now or time.time()
    if store.present(ROLE, now) or os.environ.get("REGCOMPARE_WORKER") == "external":
        return False
    if not store.try_role(STARTING_ROLE, uuid.uuid4().hex, now, patience=START_PATIENCE):
        return False
    log_path = Path(__file__).parent.parent / "cache" / "worker.log"
    command = [sys.executable, "-m", "regcompare.worker"]  # every user of the machine can read it: no URL with a password here
    with open_log(log_path) as output:
        subprocess.Popen(
            command,
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"REGCOMPARE_STORE": store.url},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C in the page server's terminal is not the worker's
        )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m regcompare.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", default=default_url(), help="database URL (default: REGCOMPARE_STORE, or SQLite in cache/)")
    parser.add_argument("--jobs", type=int, default=cores(), help="training processes (default: the cores)")
    parser.add_argument("--data-dir", help="folder that holds MNIST/raw (default: REGCOMPARE_DATA_DIR)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train (default: auto)")
    parser.add_argument("--stay", action="store_true", help="do not leave when idle: for a service")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        worker = Worker(options.store, max(1, options.jobs), options.data_dir, options.device, options.stay)
    except RegcompareError as error:
        raise SystemExit(str(error)) from None
    if not worker.store.try_role(ROLE, worker.token, info=str(os.getpid())):
        log.info("another worker serves this store")
        return
    worker.loop()


if __name__ == "__main__":
    main()
