"""Runs, points and artifacts in one SQL database: the only channel between a page and a training process.

SQLAlchemy Core; SQLite in WAL mode by default, PostgreSQL by URL. Knows neither torch nor Streamlit. Times are seconds
since 1970 (UTC), passed in as `now` where a test needs its own.
"""

import json
import os
import re
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from safetensors.numpy import load as load_arrays
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from regcompare.config import RegcompareError, RunConfig, label, preset_of
from regcompare.runfile import Arrays, RunFile, merge_stacks, save_arrays
from regcompare.schema import MIGRATIONS
from regcompare.schema import artifacts as _artifacts
from regcompare.schema import measures as _measures
from regcompare.schema import meta as _meta
from regcompare.schema import points as _points
from regcompare.schema import presence as _presence
from regcompare.schema import runs as _runs

Status = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
OPEN: tuple[Status, ...] = ("queued", "running", "interrupted")
STALE_AFTER = 5.0  # seconds without a heartbeat after which an owner counts as dead
PATIENCE = 30.0  # seconds that a connection waits for another's lock on an SQLite file
START_PATIENCE = 20.0  # seconds that a worker just started has until its first heartbeat


class StoreError(RegcompareError):
    """The store cannot be used; the text says why and what to do."""


class NotOwner(Exception):
    """The run was cancelled, deleted, or taken over by another worker: whoever trains it must stop."""


@dataclass(frozen=True)
class Run:
    """A row of `runs`. `summary` holds the final numbers of a finished run (see `runfile.summarize`)."""

    key: str
    config: RunConfig = field(hash=False)  # the key stands for it
    preset: str | None
    status: Status
    created: float
    started: float | None
    finished: float | None
    error: str | None
    source: str
    cancel: bool
    summary: dict[str, Any] | None = field(hash=False)

    @property
    def label(self) -> str:
        return label(self.config)

    @property
    def file_name(self) -> str:
        """`standard-bn-mnist-5k-0123abcd....safetensors`: readable, and one name a recipe."""
        return f"{self.preset or 'custom'}-{self.config.dataset}-{self.key}.safetensors"


def default_url() -> str:
    """`REGCOMPARE_STORE`, or an SQLite file in the project's `cache/`."""
    return os.environ.get("REGCOMPARE_STORE") or f"sqlite:///{Path(__file__).parent.parent / 'cache' / 'regcompare.db'}"


def published_dir() -> Path:
    """The run files that ship with the project."""
    return Path(__file__).parent.parent / "cache" / "published"


class Store:
    """One database. Cheap to make; every method is one short transaction."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or default_url()
        try:
            parsed = sa.make_url(self.url)
            if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
                raise ValueError("training processes cannot reach what is only in memory")
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self.engine = sa.create_engine(parsed, connect_args={"timeout": 30} if parsed.get_backend_name() == "sqlite" else {})
            if self.engine.dialect.name == "sqlite":
                event.listen(self.engine, "connect", _sqlite_settings)
                event.listen(self.engine, "begin", _sqlite_begin)
            self._migrate()
        except (SQLAlchemyError, OSError, ImportError, ValueError, TypeError) as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise StoreError(
                f"--store must be a database that can be opened, got '{_without_password(self.url)}' ({reason}). "
                "For example: sqlite:///runs.db, or leave it out for the project's cache folder."
            ) from None

    @contextmanager
    def begin(self, write: bool = True) -> Iterator[sa.Connection]:
        """A transaction: committed at its end, rolled back by an exception."""
        with self.engine.connect().execution_options(write=write) as connection, connection.begin():
            yield connection

    def _migrate(self) -> None:
        with self.begin() as db:
            _meta.create(db, checkfirst=True)
            done = int(db.scalar(sa.select(_meta.c.value).where(_meta.c.name == "schema")) or 0)
            if done > len(MIGRATIONS):
                raise StoreError(
                    f"The store {_without_password(self.url)} was made by a newer regcompare. Update, or name another --store."
                )
            for number, migration in enumerate(MIGRATIONS[done:], done + 1):
                migration(db)
                self._put(db, _meta, {"name": "schema"}, {"value": str(number)})

    @staticmethod
    def _put(db: sa.Connection, table: sa.Table, where: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Insert or replace one row by its primary key, in any SQL."""
        condition = sa.and_(*(table.c[name] == value for name, value in where.items()))
        if not db.execute(sa.update(table).where(condition).values(**values)).rowcount:
            db.execute(sa.insert(table).values(**where, **values))

    # Asking for runs

    def request(self, config: RunConfig, now: float | None = None, force: bool = False) -> Run:
        """The run of a recipe: as it is if it is open or done, else queued. With `force` a finished one is queued anew."""
        key, now = config.key(), now or time.time()
        with self.begin() as db:
            row = db.execute(sa.select(_runs).where(_runs.c.key == key)).first()
            if row is None or row.status in ("failed", "cancelled") or (force and row.status == "done"):
                self._forget(db, key)
                values = {"config": config.canonical_json(), "preset": preset_of(config), "status": "queued", "created": now}
                db.execute(sa.insert(_runs).values(key=key, source="trained", cancel=False, **values))
                row = db.execute(sa.select(_runs).where(_runs.c.key == key)).one()
        return _to_run(row)

    def claim(self, owner: str, now: float | None = None, key: str | None = None) -> Run | None:
        """Take the oldest waiting run (or the one named) for `owner`; None if none waits. Only one caller gets a run."""
        now = now or time.time()
        waiting = sa.select(_runs.c.key).where(_runs.c.status.in_(("queued", "interrupted")), _runs.c.cancel.is_(False))
        waiting = waiting.where(_runs.c.key == key) if key else waiting.order_by(_runs.c.created).limit(1)
        with self.begin() as db:
            found = db.scalar(waiting)
            if found is None:
                return None
            changed = db.execute(
                sa.update(_runs)
                .where(_runs.c.key == found, _runs.c.status.in_(("queued", "interrupted")))
                .values(status="running", owner=owner, heartbeat=now, started=sa.func.coalesce(_runs.c.started, now), error=None)
            )
            if not changed.rowcount:
                return None
            row = db.execute(sa.select(_runs).where(_runs.c.key == found)).one()
        return _to_run(row)

    def beat(self, owner: str, now: float | None = None) -> None:
        """Say that the owner of these running runs lives."""
        with self.begin() as db:
            db.execute(sa.update(_runs).where(_runs.c.owner == owner, _runs.c.status == "running").values(heartbeat=now or time.time()))

    def reap(self, now: float | None = None) -> list[str]:
        """Mark running runs whose owner has gone silent as interrupted; returns their keys."""
        silent = sa.and_(_runs.c.status == "running", _runs.c.heartbeat < (now or time.time()) - STALE_AFTER)
        with self.begin(write=False) as db:
            if db.scalar(sa.select(_runs.c.key).where(silent).limit(1)) is None:
                return []
        with self.begin() as db:
            keys = list(db.scalars(sa.select(_runs.c.key).where(silent)))
            for key in keys:
                self._end_without_result(db, key, now or time.time())
        return keys

    def release(self, owner: str) -> None:
        """Mark what `owner` still runs as interrupted: its worker is leaving."""
        with self.begin() as db:
            for key in list(db.scalars(sa.select(_runs.c.key).where(_runs.c.owner == owner, _runs.c.status == "running"))):
                self._end_without_result(db, key, time.time())

    def _end_without_result(self, db: sa.Connection, key: str, now: float) -> None:
        cancelled = db.scalar(sa.select(_runs.c.cancel).where(_runs.c.key == key))
        if cancelled:
            self._drop_work(db, key)
        end = {"status": "cancelled", "finished": now} if cancelled else {"status": "interrupted"}
        db.execute(sa.update(_runs).where(_runs.c.key == key, _runs.c.status == "running").values(owner=None, **end))

    def cancel(self, key: str, now: float | None = None) -> None:
        """Stop a run: at once if it waits, at its next point if it trains. A finished run stays as it is."""
        with self.begin() as db:
            db.execute(sa.update(_runs).where(_runs.c.key == key, _runs.c.status == "running").values(cancel=True))
            waiting = sa.update(_runs).where(_runs.c.key == key, _runs.c.status.in_(("queued", "interrupted")))
            if db.execute(waiting.values(status="cancelled", finished=now or time.time())).rowcount:
                self._drop_work(db, key)

    def delete(self, key: str) -> None:
        """Remove a run and all that belongs to it; whoever trains it stops at its next point."""
        with self.begin() as db:
            self._forget(db, key)

    def _forget(self, db: sa.Connection, key: str) -> None:
        self._drop_work(db, key)
        for table in (_artifacts, _measures):
            db.execute(sa.delete(table).where(table.c.key == key))
        db.execute(sa.delete(_runs).where(_runs.c.key == key))

    @staticmethod
    def _drop_work(db: sa.Connection, key: str) -> None:
        """Points, checkpoints and stack results: what only an unfinished run needs."""
        db.execute(sa.delete(_points).where(_points.c.key == key))
        unfinished = sa.or_(_artifacts.c.name.startswith("checkpoint:"), _artifacts.c.name.startswith("stack:"))
        db.execute(sa.delete(_artifacts).where(_artifacts.c.key == key, unfinished))

    # What a training process writes

    def _own(self, db: sa.Connection, key: str, owner: str) -> None:
        row = db.execute(sa.select(_runs.c.owner, _runs.c.status, _runs.c.cancel).where(_runs.c.key == key)).first()
        if row is None or row.owner != owner or row.status != "running":
            raise NotOwner(key)
        if row.cancel:
            raise NotOwner(key)

    def add_point(self, key: str, stack: int, step: int, value: Mapping[str, Any], owner: str) -> None:
        """Record a point of one stack.

        Raises:
            NotOwner: the run is no longer this owner's to train.
        """
        with self.begin() as db:
            self._own(db, key, owner)
            db.execute(sa.insert(_points).values(key=key, stack=stack, step=step, value=json.dumps(value)))

    def save_checkpoint(self, key: str, stack: int, arrays: Arrays, step: int, owner: str) -> None:
        """Record a stack's checkpoint at `step`.

        Raises:
            NotOwner: the run is no longer this owner's to train.
        """
        with self.begin() as db:
            self._own(db, key, owner)
            value = save_arrays(arrays | {"step": np.array(step)})
            self._put(db, _artifacts, {"key": key, "name": f"checkpoint:{stack}"}, {"value": value})

    def load_checkpoint(self, key: str, stack: int, owner: str) -> Arrays | None:
        """The checkpoint of a stack, its points after that step removed; None if there is none, then no point is left.

        Raises:
            NotOwner: the run is no longer this owner's to train.
        """
        with self.begin() as db:
            self._own(db, key, owner)
            value = db.scalar(sa.select(_artifacts.c.value).where(_artifacts.c.key == key, _artifacts.c.name == f"checkpoint:{stack}"))
            arrays = load_arrays(value) if value else None
            step = int(arrays["step"]) if arrays else -1
            db.execute(sa.delete(_points).where(_points.c.key == key, _points.c.stack == stack, _points.c.step > step))
        return arrays

    def finished_stacks(self, key: str) -> set[int]:
        """The stacks of a running run that are done already."""
        with self.begin(write=False) as db:
            names = db.scalars(sa.select(_artifacts.c.name).where(_artifacts.c.key == key, _artifacts.c.name.startswith("stack:")))
            return {int(name.partition(":")[2]) for name in names}

    def finish_stack(self, key: str, stack: int, arrays: Arrays, facts: Mapping[str, Any], owner: str) -> bool:
        """Record a stack's result; with the last one the run becomes done, in the same transaction. True if it did.

        Raises:
            NotOwner: the run is no longer this owner's to train.
        """
        with self.begin() as db:
            self._own(db, key, owner)
            points = db.execute(
                sa.select(_points.c.step, _points.c.value).where(_points.c.key == key, _points.c.stack == stack).order_by(_points.c.step)
            )
            result = RunFile.from_points([(step, json.loads(value)) for step, value in points], arrays, dict(facts))
            self._put(db, _artifacts, {"key": key, "name": f"stack:{stack}"}, {"value": result.to_bytes()})
            config = RunConfig.model_validate_json(db.scalar(sa.select(_runs.c.config).where(_runs.c.key == key)) or "")
            parts = db.execute(
                sa.select(_artifacts.c.name, _artifacts.c.value).where(_artifacts.c.key == key, _artifacts.c.name.startswith("stack:"))
            )
            stacks = {int(name.partition(":")[2]): value for name, value in parts}
            if len(stacks) < len(config.stacks()):
                return False
            whole = merge_stacks(config, [RunFile.from_bytes(stacks[index], trusted=True) for index in sorted(stacks)])
            self._drop_work(db, key)
            self._write_result(db, key, whole)
            db.execute(sa.update(_runs).where(_runs.c.key == key).values(status="done", finished=time.time(), owner=None, source="trained"))
        return True

    def fail(self, key: str, message: str, owner: str) -> None:
        """End a run that cannot go on; nothing happens if it is no longer this owner's."""
        with self.begin() as db:
            mine = sa.update(_runs).where(_runs.c.key == key, _runs.c.owner == owner, _runs.c.status == "running")
            if db.execute(mine.values(status="failed", error=message, finished=time.time(), owner=None)).rowcount:
                self._drop_work(db, key)

    def end_cancelled(self, key: str, owner: str) -> None:
        """Make a cancelled run's end visible; called by the process that stopped training it."""
        with self.begin() as db:
            mine = sa.and_(_runs.c.key == key, _runs.c.owner == owner, _runs.c.status == "running", _runs.c.cancel.is_(True))
            if db.execute(sa.update(_runs).where(mine).values(status="cancelled", finished=time.time(), owner=None)).rowcount:
                self._drop_work(db, key)

    def _write_result(self, db: sa.Connection, key: str, run_file: RunFile) -> None:
        """The numbers that pages read and the weights, apart: reading the one must not cost the other."""
        weights = {name: value for name, value in run_file.arrays.items() if name.startswith("weights/")}
        record = RunFile({name: value for name, value in run_file.arrays.items() if name not in weights}, run_file.facts)
        self._put(db, _artifacts, {"key": key, "name": "record"}, {"value": zlib.compress(record.to_bytes(), 1)})
        if weights:
            self._put(db, _artifacts, {"key": key, "name": "weights"}, {"value": save_arrays(weights)})
        db.execute(sa.update(_runs).where(_runs.c.key == key).values(summary=json.dumps(run_file.summary())))

    # Reading

    def run(self, key: str) -> Run | None:
        with self.begin(write=False) as db:
            row = db.execute(sa.select(_runs).where(_runs.c.key == key)).first()
        return _to_run(row) if row else None

    def runs(self, statuses: Sequence[Status] | None = None) -> list[Run]:
        """All runs, or those of some statuses, the newest first."""
        query = sa.select(_runs).order_by(_runs.c.created.desc(), _runs.c.key)
        with self.begin(write=False) as db:
            rows = db.execute(query.where(_runs.c.status.in_(statuses)) if statuses else query).all()
        return [_to_run(row) for row in rows]

    def version(self) -> str:
        """Changes whenever a run starts, ends, comes or goes: a key for caches of what `runs` returns."""
        sums = [sa.func.sum(column) for column in (_runs.c.created, _runs.c.started, _runs.c.finished)]
        facts = sa.select(_runs.c.status, sa.func.count(), *sums).group_by(_runs.c.status).order_by(_runs.c.status)
        with self.begin(write=False) as db:
            return repr([tuple(row) for row in db.execute(facts)])

    def points(self, key: str, after: int = 0) -> list[tuple[int, int, dict[str, Any]]]:
        """Points of an unfinished run written after the cursor: (cursor, stack, values), in the order they were written."""
        query = sa.select(_points.c.id, _points.c.stack, _points.c.value).where(_points.c.key == key, _points.c.id > after)
        with self.begin(write=False) as db:
            return [(id_, stack, json.loads(value)) for id_, stack, value in db.execute(query.order_by(_points.c.id))]

    def progress(self, key: str) -> dict[int, int]:
        """Steps done by each stack of an unfinished run."""
        query = sa.select(_points.c.stack, sa.func.max(_points.c.step)).where(_points.c.key == key).group_by(_points.c.stack)
        with self.begin(write=False) as db:
            return {stack: step for stack, step in db.execute(query)}

    def record(self, key: str, weights: bool = False) -> RunFile | None:
        """The result of a finished run; its weights only on request. None if the run is not done."""
        with self.begin(write=False) as db:
            query = sa.select(_artifacts.c.value).where(_artifacts.c.key == key)
            value = db.scalar(query.where(_artifacts.c.name == "record"))
            extra = db.scalar(query.where(_artifacts.c.name == "weights")) if weights and value else None
        if value is None:
            return None
        record = RunFile.from_bytes(zlib.decompress(value), trusted=True)
        return RunFile(record.arrays | load_arrays(extra), record.facts) if extra else record

    # Run files in and out

    def import_file(self, content: bytes, source: str = "imported", now: float | None = None) -> Run:
        """Add a run file's run; one that is here already and done stays.

        Raises:
            RunFileError: it is no run file of this program; the text says what is wrong.
        """
        run_file = RunFile.from_bytes(content)
        config = run_file.config
        key = config.key()
        with self.begin() as db:
            row = db.execute(sa.select(_runs.c.status).where(_runs.c.key == key)).first()
            if row is None or row.status != "done":
                self._forget(db, key)
                created = float(run_file.facts.get("finished") or now or time.time())
                seconds = float(run_file.facts["seconds"])
                values = {"config": config.canonical_json(), "preset": preset_of(config), "status": "done", "created": created}
                values |= {"started": created - seconds, "finished": created, "source": source, "cancel": False}
                db.execute(sa.insert(_runs).values(key=key, **values))
                self._write_result(db, key, run_file)
            row = db.execute(sa.select(_runs).where(_runs.c.key == key)).one()
        return _to_run(row)

    def export_file(self, key: str) -> bytes | None:
        """A finished run as the bytes of a run file, weights included; None if it is not done."""
        record = self.record(key, weights=True)
        return record and record.to_bytes()

    def import_published(self, folder: Path | None = None) -> int:
        """Add the run files that ship with the project, each once in a store's life; returns how many were new."""
        paths = sorted((folder or published_dir()).glob("*.safetensors"))
        with self.begin(write=False) as db:
            known = set(db.scalars(sa.select(_meta.c.name).where(_meta.c.name.startswith("published:"))))
        fresh = [path for path in paths if f"published:{path.name}" not in known]
        for path in fresh:
            self.import_file(path.read_bytes(), source="published")
            with self.begin() as db:
                self._put(db, _meta, {"name": f"published:{path.name}"}, {"value": "1"})
        return len(fresh)

    # Who is there

    def try_role(self, role: str, token: str, now: float | None = None, info: str = "", patience: float = STALE_AFTER) -> bool:
        """Take or keep a role that one process at a time may have; True if it is the token's now."""
        now = now or time.time()
        with self.begin() as db:
            row = db.execute(sa.select(_presence).where(_presence.c.role == role)).first()
            if row is not None and row.token != token and row.heartbeat > now - patience:
                return False
            self._put(db, _presence, {"role": role}, {"token": token, "heartbeat": now, "info": info})
        return True

    def leave_role(self, role: str, token: str | None = None) -> None:
        """Give up a role; with a token, only if it is that token's."""
        held = _presence.c.role == role
        with self.begin() as db:
            db.execute(sa.delete(_presence).where(sa.and_(held, _presence.c.token == token) if token else held))

    def present(self, prefix: str, now: float | None = None, within: float = STALE_AFTER) -> list[str]:
        """The infos of live holders of roles that start with `prefix`."""
        query = sa.select(_presence.c.info).where(_presence.c.role.startswith(prefix))
        with self.begin(write=False) as db:
            return list(db.scalars(query.where(_presence.c.heartbeat > (now or time.time()) - within)))

    def close(self) -> None:
        self.engine.dispose()


@lru_cache(maxsize=20_000)  # reading many runs again parses only those that changed
def _to_run(row: Any) -> Run:
    summary = json.loads(row.summary) if row.summary else None
    config = RunConfig.model_validate_json(row.config)
    shared = (row.status, row.created, row.started, row.finished, row.error, row.source, row.cancel)
    return Run(row.key, config, row.preset, *shared, summary)


def _without_password(url: str) -> str:
    url = re.sub("(?s)(://[^:/@]*:).*@", r"\1***@", url)  # to the last @: a password may hold one
    return re.sub("(?i)(password=)[^&]*", r"\1***", url)


def _sqlite_settings(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions by itself: `_sqlite_begin` does, and takes the write lock at once.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={int(PATIENCE * 1000)}")
    # The switch to WAL does not wait for another opener's lock, whatever busy_timeout says. A file switched once stays so.
    end = time.monotonic() + PATIENCE
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
                break  # a file system without shared memory: SQLite keeps its older journal, slower and as safe
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _sqlite_begin(connection: sa.Connection) -> None:
    # A read lock that becomes a write lock can fail at once under WAL; a writer asks for it before it reads.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("write", True) else "BEGIN")


__all__ = ["NotOwner", "Run", "Store", "StoreError", "default_url", "published_dir"]
