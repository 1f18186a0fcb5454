"""Make what ships in cache/published: run files of the five arms at three settings, measurements of their nets, and the sweeps.

    python -m benchmarks.publish --data-dir FOLDER_WITH_MNIST

About an hour and a half on two cores. What the store or sweeps.json holds already is not made again. Weights
(2 MB a run) are kept for the arms at the default setting on MNIST, which users open nets from; the rest go without, to keep a
clone small.
"""

import argparse
import json
import time
import uuid

from joblib import Parallel, delayed

from regcompare.config import DEFAULT_SEEDS, DROPOUT_FIRST, NOTEBOOK_NET, PRESETS, RunConfig, make_config, preset
from regcompare.measurements import MEASURES, Measurements
from regcompare.runfile import RunFile
from regcompare.store import Store, published_dir
from regcompare.study import run_study
from regcompare.sweeps import SWEEPS, published, published_path
from regcompare.worker import cores, measure

SETTINGS = {
    "mnist-5k, its defaults": {"dataset": "mnist-5k"},
    "mnist, its defaults": {"dataset": "mnist"},
    "mnist as in the notebook that this began with": {"dataset": "mnist", "epochs": 2, "lr": 0.01},
}
WITH_WEIGHTS = "mnist, its defaults"
EXTRAS = (NOTEBOOK_NET, DROPOUT_FIRST)
LIMIT = 20_000_000  # bytes, all files together


def arms(setting: dict[str, object]) -> list[RunConfig]:
    return [make_config(preset(name).model_dump() | {"epochs": None} | setting | {"seeds": DEFAULT_SEEDS}) for name in PRESETS]


def publish_runs(url: str, data_dir: str | None) -> None:
    folder = published_dir()
    folder.mkdir(parents=True, exist_ok=True)
    for title, setting in SETTINGS.items():
        for result in run_study(arms(setting), url, jobs=cores(), data_dir=data_dir):
            record = Store(url).record(result.run.key, weights=True)
            if record is None:
                raise SystemExit(f"{result.run.label}: {result.run.status}. {result.run.error or ''}")
            kept = {name: values for name, values in record.arrays.items() if title == WITH_WEIGHTS or not name.startswith("weights/")}
            (folder / result.run.file_name).write_bytes(RunFile(kept, record.facts).to_bytes())
        print(f"{title}: done", flush=True)
    for config in EXTRAS:
        run = run_study([config], url, jobs=cores(), data_dir=data_dir)[0].run
        record = Store(url).record(run.key, weights=config == NOTEBOOK_NET)
        if record is None:
            raise SystemExit(f"{run.label}: {run.status}. {run.error or ''}")
        (folder / run.file_name).write_bytes(record.to_bytes())


def publish_measures(url: str, data_dir: str | None, names: list[str]) -> None:
    Store(url).import_published()
    Measurements(Store(url)).import_published()
    keys = [config.key() for config in arms(SETTINGS[WITH_WEIGHTS])]
    found = Measurements(Store(url))
    wanted = [(key, name) for name in names for key in keys]
    wanted += [(NOTEBOOK_NET.key(), "other_normalization"), (DROPOUT_FIRST.key(), "variance_shift"), (DROPOUT_FIRST.key(), "reestimate")]
    wanted = [(key, name) for key, name in wanted if found.find(key, name).status != "done"]
    Parallel(n_jobs=cores())(delayed(take_one)(url, key, name, data_dir) for key, name in wanted)
    folder = published_dir() / "measures"
    folder.mkdir(exist_ok=True)
    for key in [*keys, *(config.key() for config in EXTRAS)]:
        for name in names:
            found.export(key, name, folder)


def take_one(url: str, key: str, name: str, data_dir: str | None) -> None:
    found, owner = Measurements(Store(url)), uuid.uuid4().hex
    found.ask(key, name)
    if found.claim(owner, key=key, name=name):
        began = time.perf_counter()
        measure(url, key, name, owner, data_dir)
        state = found.find(key, name)
        print(f"{name} of {key}: {state.status} {state.error or ''} after {time.perf_counter() - began:.0f} s", flush=True)


def publish_sweeps(url: str, data_dir: str | None) -> None:
    Store(url).import_published()  # all of MNIST is among them
    rows = []
    for name, sweep in SWEEPS.items():
        found = {key: published()[key] for point in sweep.points if (key := point.config.key()) in published()}
        missing = [point.config for point in sweep.points if point.config.key() not in found]
        for result in run_study(missing, url, jobs=cores(), data_dir=data_dir, quiet=True) if missing else []:
            if result.run.summary is None:
                raise SystemExit(f"{result.run.label}: {result.run.status}. {result.run.error or ''}")
            found[result.run.key] = result.run.summary["test_accuracy"]
        rows += [{"key": key, "test_accuracy": accuracy} for key, accuracy in found.items()]
        print(f"sweep {name}: done", flush=True)
    published_path().write_text(json.dumps(rows, separators=(",", ":")) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--store", default="sqlite:///cache/publish.db")
    parser.add_argument("--only", choices=("runs", "measures", "sweeps"), action="append")
    parser.add_argument("--measures", default=",".join(MEASURES), help="which measurements, separated by commas")
    options = parser.parse_args()
    parts = options.only or ["runs", "measures", "sweeps"]
    if "runs" in parts:
        publish_runs(options.store, options.data_dir)
    if "measures" in parts:
        publish_measures(options.store, options.data_dir, options.measures.split(","))
    if "sweeps" in parts:
        publish_sweeps(options.store, options.data_dir)
    total = sum(path.stat().st_size for path in published_dir().rglob("*") if path.is_file())
    print(f"{total / 1e6:.1f} MB in {published_dir().name}/")
    if total > LIMIT:
        raise SystemExit(f"The files hold {total / 1e6:.1f} MB together; they must stay under {LIMIT / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
