"""The tables of a store and their history: what `store` and `measurements` read and write."""

from collections.abc import Callable

import sqlalchemy as sa

schema = sa.MetaData()
meta = sa.Table("meta", schema, sa.Column("name", sa.String(200), primary_key=True), sa.Column("value", sa.Text, nullable=False))
runs = sa.Table(
    "runs",
    schema,
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("preset", sa.String(32)),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("created", sa.Float, nullable=False, index=True),
    sa.Column("started", sa.Float),
    sa.Column("finished", sa.Float),
    sa.Column("owner", sa.String(64)),
    sa.Column("heartbeat", sa.Float),
    sa.Column("cancel", sa.Boolean, nullable=False, default=False),
    sa.Column("error", sa.Text),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("summary", sa.Text),
)
points = sa.Table(
    "points",
    schema,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.String(32), nullable=False),
    sa.Column("stack", sa.Integer, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("value", sa.Text, nullable=False),
    sa.UniqueConstraint("key", "stack", "step"),
    sqlite_autoincrement=True,
)
artifacts = sa.Table(
    "artifacts",
    schema,
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
presence = sa.Table(
    "presence",
    schema,
    sa.Column("role", sa.String(64), primary_key=True),
    sa.Column("token", sa.String(64), nullable=False),
    sa.Column("heartbeat", sa.Float, nullable=False),
    sa.Column("info", sa.Text),
)

measures = sa.Table(
    "measures",
    schema,
    sa.Column("key", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("asked", sa.Float, nullable=False, index=True),
    sa.Column("owner", sa.String(64)),
    sa.Column("heartbeat", sa.Float),
    sa.Column("error", sa.Text),
    sa.Column("value", sa.LargeBinary),
)


def _first(db: sa.Connection) -> None:
    schema.create_all(db, [meta, runs, points, artifacts, presence])


def _add_measures(db: sa.Connection) -> None:
    measures.create(db)


# Numbered and append-only; each runs with its record in one transaction.
MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_first, _add_measures)
