"""Make the published run files: train the five arms at three settings and write them to cache/published.

    python benchmarks/publish.py --data-dir FOLDER_WITH_MNIST

About 20 minutes on two cores. What the store holds already is not trained again. Weights (2 MB a run) are kept for the
arms at the default setting on MNIST, which users open nets from; the rest go without, to keep a clone small.
"""

import argparse

from regcompare.config import DEFAULT_SEEDS, PRESETS, RunConfig, make_config, preset
from regcompare.runfile import RunFile
from regcompare.store import Store, published_dir
from regcompare.study import run_study
from regcompare.worker import cores

SETTINGS = {
    "mnist-5k, its defaults": {"dataset": "mnist-5k"},
    "mnist, its defaults": {"dataset": "mnist"},
    "mnist as in the notebook that this began with": {"dataset": "mnist", "epochs": 2, "lr": 0.01},
}
WITH_WEIGHTS = "mnist, its defaults"
LIMIT = 20_000_000  # bytes, all files together


def arms(setting: dict[str, object]) -> list[RunConfig]:
    return [make_config(preset(name).model_dump() | {"epochs": None} | setting | {"seeds": DEFAULT_SEEDS}) for name in PRESETS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--store", default="sqlite:///cache/publish.db")
    options = parser.parse_args()
    folder = published_dir()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    total = 0
    for title, setting in SETTINGS.items():
        for result in run_study(arms(setting), options.store, jobs=cores(), data_dir=options.data_dir):
            record = Store(options.store).record(result.run.key, weights=True)
            if record is None:
                raise SystemExit(f"{result.run.label}: {result.run.status}. {result.run.error or ''}")
            kept = {name: values for name, values in record.arrays.items() if title == WITH_WEIGHTS or not name.startswith("weights/")}
            content = RunFile(kept, record.facts).to_bytes()
            (folder / result.run.file_name).write_bytes(content)
            total += len(content)
        print(f"{title}: done, {total / 1e6:.1f} MB so far")
    if total > LIMIT:
        raise SystemExit(f"The files hold {total / 1e6:.1f} MB together; they must stay under {LIMIT / 1e6:.0f} MB.")


if __name__ == "__main__":
    main()
