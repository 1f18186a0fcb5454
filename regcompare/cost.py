"""How long a recipe will train: from finished runs of the same kind of net, scaled by its steps and stacks."""

import statistics
from collections.abc import Sequence

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
    done = [run for run in runs if run.summary and run.summary["seconds"] > 0]
    alike = [run for run in done if kind(run.config) == kind(config)]
    groups = ([r for r in group if r.source == source] for source in ("trained", "published") for group in (alike, done))
    chosen = next((group for group in groups if group), [])
    rates = [
        run.summary["seconds"] / work(run.config, PUBLISHED_JOBS if run.source == "published" else jobs) for run in chosen if run.summary
    ]
    return work(config, jobs) * (statistics.median(rates) if rates else SECONDS_PER_UNIT)


def duration(seconds: float) -> str:
    """`about 35 s`, `about 4 min`."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
