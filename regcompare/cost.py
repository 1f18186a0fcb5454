"""How long a recipe will train: from finished runs of the same kind of net, scaled by its steps and stacks."""

import itertools
import statistics
from collections.abc import Sequence
from functools import lru_cache

from regcompare.config import RunConfig
from regcompare.store import Run

# Measured: a step of K replicates costs as a line in K that is (K + 1.2) / 5.2 of a step of four.
FIXED_SHARE = 1.2
# Measured: and as a line in the images of a step, which begins at what seven images cost.
FIXED_IMAGES = 7
PUBLISHED_JOBS = 2  # training processes of the machine that made the published runs
SECONDS_PER_UNIT = 0.0033  # of a net with batch norm, where nothing has been trained yet


def work(config: RunConfig, jobs: int) -> float:
    """Units of time that a recipe takes on `jobs` processes: steps of 64 images, by rounds of stacks."""
    sizes = [len(stack) + FIXED_SHARE for stack in config.stacks()]
    rounds = sum(max(sizes[i : i + jobs]) for i in range(0, len(sizes), jobs))
    images = config.epochs * config.n_train + FIXED_IMAGES * config.steps
    return images / (64 + FIXED_IMAGES) * rounds


def kind(config: RunConfig) -> tuple[object, ...]:
    """What decides the cost of a step: which layers are there."""
    return config.normalized_places, tuple(config.dropout.rates())


def expected_seconds(config: RunConfig, runs: Sequence[Run], jobs: int) -> float:
    """Seconds that training will take, free machine supposed; runs of this machine and this kind of net count first."""
    rates: dict[tuple[str, bool], list[float]] = {}
    own = kind(config)
    for run in runs:
        if run.summary and run.summary["seconds"] > 0:
            its_kind, rate = _rate(run, jobs)
            for alike in {its_kind == own, False}:
                rates.setdefault((run.source, alike), []).append(rate)
    found = next((rates[place] for place in itertools.product(("trained", "published"), (True, False)) if place in rates), None)
    return work(config, jobs) * (statistics.median(found) if found else SECONDS_PER_UNIT)


@lru_cache(maxsize=20_000)  # a page asks at every change of its recipe
def _rate(run: Run, jobs: int) -> tuple[tuple[object, ...], float]:
    """The kind of a finished run's net, and the seconds it took for a unit of work."""
    seconds = run.summary["seconds"] if run.summary else 0.0
    return kind(run.config), seconds / work(run.config, PUBLISHED_JOBS if run.source == "published" else jobs)


def duration(seconds: float) -> str:
    """`about 35 s`, `about 4 min`."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
