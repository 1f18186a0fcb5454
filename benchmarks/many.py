"""A store of many finished runs, for measuring pages: copies of the shipped ones under other learning rates.

python -m benchmarks.many sqlite:///many.db --runs 10000 --points 200
"""

import argparse
import json
import time

import numpy as np
import sqlalchemy as sa

from regcompare.config import PRESETS, make_config, preset_of
from regcompare.runfile import METRICS, RunFile
from regcompare.schema import artifacts, points, runs
from regcompare.store import Store

CHUNK = 500


def fill(url: str, how_many: int, points_each: int) -> None:
    """Add copies of the shipped runs until the store holds `how_many`; the last ten keep points as a run in training has them."""
    store = Store(url)
    store.import_published()
    shipped = [run for run in store.runs() if run.preset in PRESETS]
    with store.begin(write=False) as db:
        records = {
            run.key: db.scalar(sa.select(artifacts.c.value).where(artifacts.c.key == run.key, artifacts.c.name == "record"))
            for run in shipped
        }
    now, left = time.time(), how_many - len(store.runs())
    for start in range(0, left, CHUNK):
        rows, kept = [], []
        for number in range(start, min(start + CHUNK, left)):
            source = shipped[number % len(shipped)]
            config = make_config(source.config.model_dump() | {"lr": round(0.02 + number * 1e-6, 6)})
            made = now - left + number
            times = {"created": made, "started": made, "finished": made + 60}
            rows.append(
                {"key": config.key(), "config": config.canonical_json(), "preset": preset_of(config), "status": "done", "source": "trained"}
                | times
                | {"cancel": False, "summary": json.dumps(source.summary)}
            )
            kept.append({"key": config.key(), "name": "record", "value": records[source.key]})
        with store.begin() as db:
            db.execute(sa.insert(runs), rows)
            db.execute(sa.insert(artifacts), kept)
            value = json.dumps({"step": 0, "epoch": 0.1, "train_loss": [1.0] * 8, "train_accuracy": [0.5] * 8})
            for row in rows[:10]:
                db.execute(
                    sa.insert(points), [{"key": row["key"], "stack": 0, "step": step, "value": value} for step in range(1, points_each + 1)]
                )
    store.close()


def overlay(url: str, arms: int, points_each: int) -> list[str]:
    """Add `arms` finished runs of eight seeds whose histories hold `points_each` points, all measured; returns their keys."""
    store = Store(url)
    store.import_published()
    shipped = [run for run in store.runs() if run.preset in PRESETS and run.config.steps >= points_each]
    keys = []
    for number in range(arms):
        record = store.record(shipped[number % len(shipped)].key)
        assert record is not None
        config = make_config(record.config.model_dump() | {"lr": 0.03 + number / 1000})
        steps = np.linspace(1, config.steps, points_each).astype(np.int64)
        arrays = dict(record.arrays) | {"history/step": steps, "history/epoch": steps / config.steps_per_epoch}
        for metric in METRICS:
            kept = ~np.isnan(record.history(metric)).any(1)
            arrays[f"history/{metric}"] = np.stack(
                [np.interp(steps, record.arrays["history/step"][kept], column) for column in record.history(metric)[kept].T], 1
            ).astype(np.float32)
        facts = record.facts | {"config": json.loads(config.canonical_json())}
        keys.append(store.import_file(RunFile(arrays, facts).to_bytes()).key)
    store.close()
    return keys


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", help="database URL")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=200, help="points of each of ten runs in 500")
    options = parser.parse_args()
    fill(options.store, options.runs, options.points)


if __name__ == "__main__":
    main()
