"""The time a recipe will take: what makes it longer, and whose runs count. Run: pytest tests/test_cost.py"""

import itertools
import re
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regcompare.config import PRESETS, RunConfig, preset
from regcompare.cost import PUBLISHED_JOBS, duration, expected_seconds, kind, work
from regcompare.store import Run, Store


def ran(config, seconds, source="trained"):
    """A finished run that took so long."""
    done = {"created": 0.0, "started": 0.0, "finished": seconds, "error": None, "source": source, "cancel": False}
    return Run(config.key(), config, None, "done", **done, summary={"seconds": seconds})


def waiting(config):
    return Run(config.key(), config, None, "queued", 0.0, None, None, None, "trained", False, None)


BASE = preset("standard-bn", epochs=5)
KNOWN = ran(BASE, 50)


def seconds_of(config, runs=(KNOWN,), jobs=2):
    return expected_seconds(config, runs, jobs)


# What makes it longer


@pytest.mark.parametrize("runs", [(), (KNOWN,), (ran(preset("baseline"), 9, "published"),)])
@pytest.mark.parametrize(
    "values",
    [
        [{"epochs": n} for n in (1, 2, 10, 200)],
        [{"train_size": n} for n in (100, 1_000, 3_999)],
        [{"dataset": name} for name in ("mnist-5k", "mnist")],
        [{"seeds": tuple(range(n))} for n in (1, 2, 3, 4, 9, 17, 64)],
        [{"batch_size": n} for n in (2048, 512, 64, 8, 2)],
    ],
)
def test_more_takes_longer(runs, values):
    """More passes, images, nets; and for the same images more, smaller steps."""
    found = [seconds_of(preset("standard-bn", **{"epochs": 5} | changes), runs) for changes in values]
    assert all(one < other for one, other in itertools.pairwise(found))


def test_a_step_takes_longer_with_its_images():
    """A step of 128 images takes more than one of 64 and less than two."""
    steps = [work(RunConfig(batch_size=b), 1) / RunConfig(batch_size=b).steps for b in (2, 64, 128, 256)]
    assert all(one < other for one, other in itertools.pairwise(steps))
    assert steps[1] < steps[2] < 2 * steps[1]


def test_a_batch_larger_than_the_images_costs_no_more():
    few = {"train_size": 100, "epochs": 5}
    assert work(RunConfig(**few, batch_size=4096), 1) == pytest.approx(work(RunConfig(**few, batch_size=100), 1))


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 5))
def test_work_is_positive_and_never_falls_with_seeds_nor_rises_with_jobs(n, jobs, more):
    one = RunConfig(seeds=tuple(range(n)), epochs=1)
    larger = RunConfig(seeds=tuple(range(min(64, n + more))), epochs=1)
    assert 0 < work(one, jobs) <= work(larger, jobs)
    assert work(one, jobs + more) <= work(one, jobs)


def test_epochs_count_once_each():
    assert seconds_of(preset("standard-bn", epochs=15)) == pytest.approx(3 * seconds_of(BASE))


def test_processes_share_the_stacks():
    """Eight seeds are two stacks: one after the other on one process, at once on two, and no faster on four."""
    assert work(BASE, 1) == pytest.approx(2 * work(BASE, 2))
    assert work(BASE, 4) == work(BASE, 2)


# Whose runs count


def test_what_was_measured_is_expected_again():
    assert seconds_of(BASE) == pytest.approx(50)
    assert expected_seconds(BASE, [KNOWN], 1) == pytest.approx(50)  # the same process count then and now


def test_published_runs_had_their_own_number_of_processes():
    assert PUBLISHED_JOBS == 2
    published = [ran(BASE, 50, "published")]
    assert expected_seconds(BASE, published, 2) == pytest.approx(50)
    assert expected_seconds(BASE, published, 1) == pytest.approx(100)


PUBLISHED_ALIKE, PUBLISHED_OTHER = ran(BASE, 10, "published"), ran(preset("dropout", epochs=5), 20, "published")
HERE_ALIKE, HERE_OTHER = ran(preset("standard-bn", epochs=10), 80), ran(preset("baseline", epochs=5), 30)


@pytest.mark.parametrize(
    ("runs", "seconds"),
    [
        ([PUBLISHED_OTHER], 20),
        ([PUBLISHED_OTHER, PUBLISHED_ALIKE], 10),
        ([PUBLISHED_OTHER, PUBLISHED_ALIKE, HERE_OTHER], 30),
        ([PUBLISHED_OTHER, PUBLISHED_ALIKE, HERE_OTHER, HERE_ALIKE], 40),  # half the epochs of that run
    ],
)
def test_the_nearest_runs_win(runs, seconds):
    """This machine before another, and there the same kind of net before another; whatever the order."""
    for order in itertools.permutations(runs):
        assert seconds_of(BASE, order) == pytest.approx(seconds)


def test_of_several_the_median():
    """One run beside a busy neighbour does not spoil it."""
    runs = [ran(preset("standard-bn", epochs=5, lr=lr), seconds) for lr, seconds in ((0.1, 10), (0.2, 11), (0.3, 900))]
    assert seconds_of(BASE, runs) == pytest.approx(11)


def test_the_kind_of_a_net_is_its_layers():
    same = [preset("bn-dropout"), preset("bn-dropout", epochs=1, dataset="mnist", lr=0.1)]
    assert kind(same[0]) == kind(same[1])
    assert kind(RunConfig(dropout={"fc1": 0.2})) == kind(RunConfig(dropout={"fc1": 0.7}))
    assert len({kind(preset(name)) for name in PRESETS}) == len(PRESETS)


# Nothing to go by


@pytest.mark.parametrize(
    "runs", [[], [waiting(BASE)], [ran(BASE, 0)], [ran(BASE, 50, "imported")]], ids=["none", "waiting", "no time", "another machine"]
)
@pytest.mark.parametrize("name", PRESETS)
def test_there_is_always_a_number(runs, name):
    """A run that took no time, or on a machine nobody knows, says nothing."""
    config = preset(name, epochs=1, train_size=20, seeds=(0,))
    assert 0 < expected_seconds(config, runs, 2) == expected_seconds(config, [], 2)
    assert 5 < expected_seconds(BASE, runs, 2) < 500


def test_the_published_runs_foretell_each_other(tmp_path):
    """Each arm's MNIST time from its times on the 5,000 images, within a factor of two."""
    with closing(Store(f"sqlite:///{tmp_path / 's.db'}")) as store:
        store.import_published()
        runs = store.runs()
    assert {run.source for run in runs} == {"published"}
    known, asked = ([run for run in runs if run.config.dataset == name] for name in ("mnist-5k", "mnist"))
    assert len(known) == 5 <= len(asked)
    for run in asked:
        assert 0.5 < expected_seconds(run.config, known, PUBLISHED_JOBS) / run.summary["seconds"] < 2, run.file_name


# In words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "about 1 s"),
        (0.001, "about 1 s"),
        (1.4, "about 1 s"),
        (1.6, "about 2 s"),
        (89.4, "about 89 s"),
        (89.999, "about 90 s"),
        (90, "about 2 min"),
        (149, "about 2 min"),
        (151, "about 3 min"),
        (5_399, "about 90 min"),
        (5_400, "about 1.5 h"),
        (36_000, "about 10.0 h"),
    ],
)
def test_the_words(seconds, words):
    assert duration(seconds) == words


@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_the_words_keep_the_order(one, other):
    """A longer time never reads as a shorter one, but for what rounding takes."""

    def read(words):
        value, unit = re.fullmatch(r"about ([\d.]+) (s|min|h)", words).groups()
        return float(value) * {"s": 1, "min": 60, "h": 3600}[unit]

    low, high = sorted((one, other))
    assert read(duration(low)) <= read(duration(high)) * 1.0001
    assert read(duration(high)) == pytest.approx(high, rel=0.35, abs=1)
