"""A study on the command line: several arms through joblib, progress from the store, results as a table or as JSON."""

import json
import math
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from regcompare.config import RunConfig
from regcompare.runfile import METRICS, RunFile
from regcompare.stats import Comparison, Interaction, compare_all, difference, estimate, interaction, nats, percent
from regcompare.store import Run, Store
from regcompare.tables import arms
from regcompare.worker import train_stack

COMPARED = ("test_accuracy", "test_loss")  # each a family of its own
WATCH = 0.25  # seconds between looks at the store while training


@dataclass(frozen=True)
class Result:
    """An arm of a study after the command: its run, whether it was there already, its record if it is done."""

    run: Run
    cached: bool
    record: RunFile | None


def run_study(
    arms: Sequence[RunConfig],
    store_url: str | None = None,
    jobs: int = 1,
    data_dir: str | None = None,
    device: str = "auto",
    force: bool = False,
    quiet: bool = False,
) -> list[Result]:
    """Train what the store does not hold and return every arm's result, in order.

    Raises:
        RegcompareError: the store or the data cannot be used.
    """
    store = Store(store_url)
    store.import_published()
    runs = [store.request(config, force=force) for config in arms]
    cached = {run.key for run in runs if run.status == "done"}
    missing = [run for run in runs if run.key not in cached]
    if missing:
        _train(store, missing, jobs, data_dir, device, quiet)
    results = []
    for config in arms:
        run = store.run(config.key())
        if run is None:  # somebody deleted it meanwhile
            run = store.request(config)
        results.append(Result(run, run.key in cached, store.record(run.key)))
    return results


def _train(store: Store, runs: Sequence[Run], jobs: int, data_dir: str | None, device: str, quiet: bool) -> None:
    """Claim and train; wait for what another process already trains, and take it over if that process dies."""
    _fail_early(runs, data_dir)
    owner = uuid.uuid4().hex
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(store, owner, runs, stop, quiet), daemon=True)
    watcher.start()
    try:
        while True:
            claimed = [run for run in runs if store.claim(owner, key=run.key)]
            if claimed:
                stacks = [(run.key, index) for run in claimed for index in range(len(run.config.stacks()))]
                work = (delayed(train_stack)(store.url, key, index, owner, data_dir, device) for key, index in stacks)
                Parallel(n_jobs=min(jobs, len(stacks)))(work)
            current = [store.run(run.key) for run in runs]
            if not any(run is not None and run.status in ("queued", "running", "interrupted") for run in current):
                return
            time.sleep(WATCH)
    except (BrokenExecutor, OSError) as error:
        print(f"A training process ended ({type(error).__name__}). The same command goes on from the last checkpoint.", file=sys.stderr)
    finally:
        stop.set()
        watcher.join()
        store.release(owner)


def _fail_early(runs: Sequence[Run], data_dir: str | None) -> None:
    """Make each data set's tensors here, once: not in every process, and a missing file is one line."""
    from regcompare.data import load

    for config in {run.config.dataset: run.config for run in runs}.values():
        load(config, Path(data_dir) if data_dir else None)


def _watch(store: Store, owner: str, runs: Sequence[Run], stop: threading.Event, quiet: bool) -> None:
    """Heartbeat for the runs in hand, and a progress bar an arm on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        bars: dict[str, TaskID] = {}
        for run in runs:
            bars[run.key] = progress.add_task(run.label, total=run.config.steps * len(run.config.stacks()))
        while not stop.wait(WATCH):
            now = time.time()
            store.beat(owner, now)
            store.reap(now)
            for run in runs:
                progress.update(bars[run.key], completed=sum(store.progress(run.key).values()))
        for run in runs:
            found = store.run(run.key)
            if found and found.status == "done":
                progress.update(bars[run.key], completed=run.config.steps * len(run.config.stacks()))


def export(results: Sequence[Result], folder: Path, store_url: str | None = None) -> None:
    """Write a run file for each finished arm."""
    store = Store(store_url)
    for result in results:
        if content := store.export_file(result.run.key):
            (folder / result.run.file_name).write_bytes(content)


def write_report(results: Sequence[Result], path: Path, store_url: str | None = None) -> None:
    """Write the finished arms as one HTML page; with none finished there is nothing to write."""
    from regcompare.measurements import Measurements
    from regcompare.report import PROBLEM1, report

    measurements = Measurements(Store(store_url))
    measurements.import_published()
    done = [(result.run, result.record) for result in results if result.record is not None]
    if done:
        runs = [run for run, _ in done]
        measures = {name: measurements.of_study(runs, name) for name in PROBLEM1}
        path.write_text(report(runs, [record for _, record in done], measures), encoding="utf-8")
    elif not path.stat().st_size:
        path.unlink()


def to_json(results: Sequence[Result]) -> str:
    """The object of the contract (DESIGN, Commands)."""
    runs = [result.run for result in results]
    found = [one for metric in COMPARED for one in compare_all(arms(runs, metric), metric)]
    together = interaction(arms(runs, COMPARED[0]), COMPARED[0])
    content = {
        "runs": [_run_object(result) for result in results],
        "comparisons": [{"a": one.a, "b": one.b, **_test_object(one)} for one in found],
        "interaction": together and _test_object(together),
    }
    return json.dumps(content, allow_nan=False)


def _test_object(one: Comparison | Interaction) -> dict[str, Any]:
    value = one.difference if isinstance(one, Comparison) else one.estimate
    tested: dict[str, Any] = {
        "metric": one.metric,
        "difference": value.mean,
        "ci95": None if value.low is None else [value.low, value.high],
    }
    tested |= {"n": value.n, "p": one.p}
    if isinstance(one, Comparison):
        more = {"paired": one.paired, "p_wilcoxon": one.p_wilcoxon, "effect": one.effect, "seeds_needed": one.needed}
        tested |= {"p_holm": one.p_holm, **more}
    return tested | {"verdict": one.verdict}


def _run_object(result: Result) -> dict[str, Any]:
    run, record = result.run, result.record
    summary = run.summary or dict.fromkeys(("seconds", "images_per_second", "parameters", *METRICS))
    return {
        "key": run.key,
        "preset": run.preset,
        "config": run.config.model_dump(mode="json"),
        "status": run.status,
        "cached": result.cached,
        "seeds": list(run.config.seeds),
        **summary,
        "history": _history(record) if record else [],
        "batch_norm": _batch_norm(record) if record else {},
    }


def _history(record: RunFile) -> list[dict[str, Any]]:
    steps, epochs = record.arrays["history/step"].tolist(), record.arrays["history/epoch"].tolist()
    columns = {metric: record.history(metric).astype(float).tolist() for metric in METRICS}
    return [
        {"step": step, "epoch": epochs[i]} | {m: None if math.isnan(values[i][0]) else values[i] for m, values in columns.items()}
        for i, step in enumerate(steps)
    ]


def _batch_norm(record: RunFile) -> dict[str, dict[str, Any]]:
    places: dict[str, dict[str, Any]] = {}
    for name, values in record.arrays.items():
        if name.startswith("batch_norm/"):
            _, place, array = name.split("/")
            places.setdefault(place, {})[array] = values[-1].astype(float).tolist()
    return {place: places[place] for place in record.config.normalized_places}


def to_table(results: Sequence[Result]) -> str:
    """Arms with means, 95 % intervals over seeds, and n."""
    table = Table(title="Final values, eval mode on the whole split: mean ± half the 95 % interval over seeds (Student's t)")
    for heading in ("arm", "test accuracy, %", "test loss, nats", "train accuracy, %", "gap, points", "seconds"):
        table.add_column(heading, justify="left" if heading == "arm" else "right")
    for result in results:
        run, summary = result.run, result.run.summary
        if summary is None:
            table.add_row(run.label, run.status, *[""] * 4)
            continue
        accuracy, loss, trained = (estimate(summary[m]) for m in ("test_accuracy", "test_loss", "train_accuracy"))
        seconds = f"{summary['seconds']:.1f}{' (cached)' if result.cached else ''}"
        table.add_row(
            run.label,
            percent(accuracy),
            nats(loss),
            percent(trained),
            percent(difference(summary["train_accuracy"], summary["test_accuracy"]), signed=True),
            seconds,
        )
    out = StringIO()
    console = Console(file=out, width=max(150, Console().width))
    console.print(table)
    compared = arms([result.run for result in results], COMPARED[0])
    for one in compare_all(compared, COMPARED[0]):
        console.print(one.verdict, highlight=False)
    if together := interaction(compared, COMPARED[0]):
        console.print(together.verdict, highlight=False)
    return out.getvalue()
