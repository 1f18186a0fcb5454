"""Measurements of finished nets: asked for by a page, taken by the worker, kept beside the run. All their SQL; no torch.

What is measured, and how, is in `probes` and `pitfalls`; `MEASURES` names it for pages and the worker.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays

from regcompare.config import PRESETS, BadInput, RegcompareError
from regcompare.runfile import Arrays, RunFile, save_arrays
from regcompare.schema import measures
from regcompare.store import STALE_AFTER, Run, Store, published_dir


class Kind(NamedTuple):
    """A measurement: its function in `probes` or `pitfalls`, whether it trains the recipe itself (else it needs weights), options."""

    function: str
    trains: bool = False
    options: Mapping[str, Any] = MappingProxyType({})


MEASURES = {
    "activation_drift": Kind("activation_drift", trains=True),
    "silencing": Kind("silencing", options={"shares": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "masks": 10}),
    "unit_correlation": Kind("unit_correlation"),
    "sparsity": Kind("sparsity"),
    "first_filters": Kind("first_filters"),
    "variance_shift": Kind("variance_shift"),
    "reestimate": Kind("reestimate"),
    "other_normalization": Kind("other_normalization"),
    "own_statistics": Kind("own_statistics"),
    "train_mode": Kind("train_mode"),
    "train_mode_2": Kind("train_mode", options={"batch_size": 2}),
    "logits_dropout": Kind("logits_dropout", trains=True),
}


class Measurement(NamedTuple):
    """State of one measurement of one run; `arrays` when done, `error` when failed."""

    status: Literal["absent", "queued", "running", "done", "failed"]
    arrays: Arrays | None = None
    error: str | None = None


class Measurements:
    """The measurements in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def ask(self, key: str, name: str, now: float | None = None) -> None:
        """Have a run measured, unless that is done or under way; one that failed is tried again.

        Raises:
            BadInput: there is no measurement of that name.
        """
        if name not in MEASURES:
            raise BadInput("a measurement", name, "one of " + ", ".join(MEASURES), "Choose one of these.")
        mine = sa.and_(measures.c.key == key, measures.c.name == name)
        with self.store.begin() as db:
            db.execute(sa.delete(measures).where(mine, measures.c.error.is_not(None)))
            if db.execute(sa.select(measures.c.key).where(mine)).first() is None:
                db.execute(sa.insert(measures).values(key=key, name=name, asked=now or time.time()))

    def find(self, key: str, name: str) -> Measurement:
        with self.store.begin(write=False) as db:
            row = db.execute(sa.select(measures).where(measures.c.key == key, measures.c.name == name)).first()
        if row is None:
            return Measurement("absent")
        if row.value is not None:
            return Measurement("done", load_arrays(row.value))
        if row.error:
            return Measurement("failed", error=row.error)
        return Measurement("running" if row.owner else "queued")

    def of_study(self, runs: Sequence[Run], name: str) -> list[tuple[Run, Arrays]]:
        """What is measured of these runs; if nothing is, of other finished presets: a measurement says more than none."""
        found = [(run, state.arrays) for run in runs if (state := self.find(run.key, name)).arrays is not None]
        if found:
            return [(run, arrays) for run, arrays in found if arrays is not None]
        others = {run.key: run for run in self.store.runs(["done"]) if run.preset}
        with self.store.begin(write=False) as db:
            rows = db.execute(sa.select(measures.c.key, measures.c.value).where(measures.c.name == name, measures.c.value.is_not(None)))
            values = {key: load_arrays(value) for key, value in rows if key in others}
        order = {preset: place for place, preset in enumerate(PRESETS)}
        return [(others[key], values[key]) for key in sorted(values, key=lambda key: order[others[key].preset or ""])]

    def claim(self, owner: str, now: float | None = None, key: str | None = None, name: str | None = None) -> tuple[str, str] | None:
        """Take the oldest that waits, or the one named, as (key, name); None if none does. An owner gone silent has lost its claim."""
        now = now or time.time()
        free = sa.or_(measures.c.owner.is_(None), measures.c.heartbeat < now - STALE_AFTER)
        waiting = sa.and_(measures.c.value.is_(None), measures.c.error.is_(None), free)
        if key and name:
            waiting = sa.and_(waiting, measures.c.key == key, measures.c.name == name)
        with self.store.begin(write=False) as db:  # looked at thirty times a second: no write lock for that
            if db.execute(sa.select(measures.c.key).where(waiting).limit(1)).first() is None:
                return None
        with self.store.begin() as db:
            row = db.execute(sa.select(measures.c.key, measures.c.name).where(waiting).order_by(measures.c.asked).limit(1)).first()
            if row is None:
                return None
            mine = sa.and_(measures.c.key == row.key, measures.c.name == row.name)
            db.execute(sa.update(measures).where(mine).values(owner=owner, heartbeat=now))
        return row.key, row.name

    def beat(self, owner: str, now: float | None = None) -> None:
        """Say that the owner lives."""
        with self.store.begin() as db:
            db.execute(sa.update(measures).where(measures.c.owner == owner).values(heartbeat=now or time.time()))

    def end(self, owner: str, arrays: Arrays | None = None, error: str | None = None) -> None:
        """Record what the owner measured or why it cannot be; with neither, it waits for another."""
        values: dict[str, Any] = {"owner": None, "value": save_arrays(arrays) if arrays else None, "error": error}
        with self.store.begin() as db:
            db.execute(sa.update(measures).where(measures.c.owner == owner).values(values))

    def waiting(self) -> bool:
        """Is any asked for and not taken?"""
        with self.store.begin(write=False) as db:
            open_ = sa.and_(measures.c.value.is_(None), measures.c.error.is_(None))
            return db.execute(sa.select(measures.c.key).where(open_).limit(1)).first() is not None

    def export(self, key: str, name: str, folder: Path) -> None:
        """Write one that is done as a file that `import_published` reads."""
        found = self.find(key, name)
        if found.arrays is not None:
            (folder / f"{key}.{name}.safetensors").write_bytes(save_arrays(found.arrays))

    def import_published(self, folder: Path | None = None) -> int:
        """Add the measurements that ship with the project to the runs that are here; returns how many were new."""
        with self.store.begin(write=False) as db:
            known = {tuple(row) for row in db.execute(sa.select(measures.c.key, measures.c.name))}
        runs = {run.key for run in self.store.runs(["done"])}
        count = 0
        for path in sorted((folder or published_dir() / "measures").glob("*.safetensors")):
            key, name, _ = path.name.split(".")
            if name not in MEASURES or key not in runs or (key, name) in known:
                continue
            try:
                content = save_arrays(load_arrays(path.read_bytes()))
            except (SafetensorError, OSError):
                continue  # a damaged file costs its measurement, not the page
            with self.store.begin() as db:  # looked at again under the write lock: another process may import the same now
                mine = sa.and_(measures.c.key == key, measures.c.name == name)
                if db.execute(sa.select(measures.c.key).where(mine)).first() is None:
                    db.execute(sa.insert(measures).values(key=key, name=name, asked=time.time(), value=content))
                    count += 1
        return count


def take(record: RunFile, name: str, data_dir: str | None = None, device: str = "cpu") -> Arrays:
    """Measure a run. Runs in a training process.

    Raises:
        RegcompareError: the run came without weights, the images are not there, or this net has nothing to measure so.
    """
    from regcompare import pitfalls, probes
    from regcompare.data import load

    config, kind = record.config, MEASURES[name]
    data = load(config, Path(data_dir) if data_dir else None, device=device)
    function = getattr(probes, kind.function, None) or getattr(pitfalls, kind.function)
    if kind.trains:
        return function(config, data, **kind.options)
    weights = probes.weights_of(record.arrays)
    arrays = {"kernels": function(weights)} if name == "first_filters" else function(config, data, weights, **kind.options)
    if not arrays:
        raise RegcompareError("This net has no layer that this is measured at. Choose an arm with batch norm.")
    return arrays
