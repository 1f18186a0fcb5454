"""Small studies that change one thing in several steps: what each regularizer buys, and where. Recipes only."""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from regcompare.config import DEFAULT_SEEDS, FACTORIAL, HIDDEN_PLACES, SPLIT_SIZES, RunConfig, make_config, preset
from regcompare.store import published_dir

STEPS_AIM = 1_000  # training steps at each number of images, so that few images do not mean little training
EPOCHS = (5, 200)  # least and most of them, whatever the steps


class Point(NamedTuple):
    """One recipe of a sweep: the arm it belongs to, and where it stands on the axis."""

    arm: str
    x: float
    config: RunConfig


class Sweep(NamedTuple):
    """What is changed, how the axis is called and scaled, the question it answers, and its recipes.

    `make(arm, x, seeds)` is the recipe of an arm at a place of the axis, `place(config)` where a recipe would stand.
    """

    title: str
    axis: str
    log: bool
    question: str
    arms: tuple[str, ...]
    steps: tuple[float, ...]
    make: Callable[[str, float, tuple[int, ...]], RunConfig]
    place: Callable[[RunConfig], float]

    @property
    def points(self) -> list[Point]:
        """The recipes that are published, eight seeds each."""
        return [Point(arm, x, self.make(arm, x, DEFAULT_SEEDS)) for arm in self.arms for x in self.steps]

    def find(self, config: RunConfig) -> Point | None:
        """Where any recipe stands in this sweep, whatever its seeds; None if it differs in more than what is changed."""
        x = self.place(config)
        return next((Point(arm, x, config) for arm in self.arms if self.make(arm, x, config.seeds) == config), None)


def published_path() -> Path:
    """The results of the sweeps that ship with the project."""
    return published_dir() / "sweeps.json"


@lru_cache(maxsize=1)
def published() -> dict[str, list[float]]:
    """Test accuracy by seed of each published point, by the run's key; empty if the file is not there."""
    path = published_path()
    return {row["key"]: row["test_accuracy"] for row in json.loads(path.read_text())} if path.exists() else {}


def _by_lr(arm: str, lr: float, seeds: tuple[int, ...]) -> RunConfig:
    return preset(arm, lr=lr, epochs=5, seeds=seeds)


def _by_rate(arm: str, rate: float, seeds: tuple[int, ...]) -> RunConfig:
    base = "baseline" if arm == "dropout" else "standard-bn"
    return preset(base, epochs=15, dropout=dict.fromkeys(HIDDEN_PLACES, rate), seeds=seeds)


def _by_size(arm: str, size: float, seeds: tuple[int, ...]) -> RunConfig:
    full = SPLIT_SIZES["mnist"][0]
    config = preset(arm, dataset="mnist", train_size=None if size >= full else int(size), seeds=seeds)
    return make_config(config.model_dump() | {"epochs": int(np.clip(round(STEPS_AIM / config.steps_per_epoch), *EPOCHS))})


def _by_batch(arm: str, size: float, seeds: tuple[int, ...]) -> RunConfig:
    return preset(arm, batch_size=int(size), epochs=2, seeds=seeds)


SWEEPS = {
    "lr": Sweep(
        "Learning rate",
        "Learning rate",
        True,
        "Does batch norm allow larger steps? Five epochs of mnist-5k each.",
        FACTORIAL,
        (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
        _by_lr,
        lambda config: config.lr,
    ),
    "rate": Sweep(
        "Dropout rate",
        "Dropout rate of the hidden layers",
        False,
        "How much dropout is too much for so small a net? Fifteen epochs of mnist-5k each; the pixels are kept.",
        ("dropout", "bn-dropout"),
        (0.0, 0.1, 0.2, 0.3, 0.5, 0.7),
        _by_rate,
        lambda config: config.dropout.conv1,
    ),
    "size": Sweep(
        "Number of training images",
        "Training images",
        True,
        f"Who needs a regularizer when images are few? The first of MNIST's 60,000; about {STEPS_AIM:,} steps each, "
        f"at least {EPOCHS[0]} epochs and at most {EPOCHS[1]}.",
        FACTORIAL,
        (100, 300, 1000, 3000, 10_000, 60_000),
        _by_size,
        lambda config: config.n_train,
    ),
    "batch": Sweep(
        "Batch size",
        "Images in a batch",
        True,
        "How many images do the statistics need? Two epochs of mnist-5k each, so a smaller batch means more steps.",
        ("baseline", "standard-bn"),
        (2, 4, 8, 16, 64),
        _by_batch,
        lambda config: config.batch_size,
    ),
}
