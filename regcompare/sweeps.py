"""Small studies that change one thing in several steps: what each regularizer buys, and where. Recipes only."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from regcompare.config import FACTORIAL, HIDDEN_PLACES, RunConfig, make_config, preset
from regcompare.store import published_dir

STEPS_AIM = 1_000  # training steps at each number of images, so that few images do not mean little training


class Point(NamedTuple):
    """One recipe of a sweep: the arm it belongs to, and where it stands on the axis."""

    arm: str
    x: float
    config: RunConfig


class Sweep(NamedTuple):
    """What is changed, how the axis is called and scaled, and the question it answers."""

    title: str
    axis: str
    log: bool
    question: str
    points: tuple[Point, ...]


def published_path() -> Path:
    """The results of the sweeps that ship with the project."""
    return published_dir() / "sweeps.json"


@lru_cache(maxsize=1)
def published() -> dict[str, list[float]]:
    """Test accuracy by seed of each published point, by the run's key; empty if the file is not there."""
    path = published_path()
    return {row["key"]: row["test_accuracy"] for row in json.loads(path.read_text())} if path.exists() else {}


def _learning_rates() -> Iterator[Point]:
    for name in FACTORIAL:
        for lr in (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1):
            yield Point(name, lr, preset(name, lr=lr, epochs=5))


def _dropout_rates() -> Iterator[Point]:
    for name, base in (("dropout", "baseline"), ("bn-dropout", "standard-bn")):
        for rate in (0.0, 0.1, 0.2, 0.3, 0.5, 0.7):
            yield Point(name, rate, preset(base, epochs=15, dropout=dict.fromkeys(HIDDEN_PLACES, rate)))


def _train_sizes() -> Iterator[Point]:
    for name in FACTORIAL:
        for size in (100, 250, 500, 1000, 2000, 4000):
            config = preset(name, train_size=size)
            yield Point(name, size, _with(config, epochs=min(200, round(STEPS_AIM / config.steps_per_epoch))))


def _with(config: RunConfig, **changes: Any) -> RunConfig:
    return make_config(config.model_dump() | changes)


def sweeps() -> dict[str, Sweep]:
    """All sweeps by name, on `mnist-5k`, eight seeds a point."""
    return {
        "lr": Sweep(
            "Learning rate",
            "Learning rate",
            True,
            "Does batch norm allow larger steps? Five epochs each.",
            tuple(_learning_rates()),
        ),
        "rate": Sweep(
            "Dropout rate",
            "Dropout rate of the hidden layers",
            False,
            "How much dropout is too much for so small a net? Fifteen epochs each; the pixels are kept.",
            tuple(_dropout_rates()),
        ),
        "size": Sweep(
            "Number of training images",
            "Training images",
            True,
            f"Who needs a regularizer when images are few? About {STEPS_AIM:,} steps each (at most 200 epochs).",
            tuple(_train_sizes()),
        ),
    }
