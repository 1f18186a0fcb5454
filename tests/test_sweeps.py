"""Sweeps: the published points are all there, and a recipe of one's own finds its place."""

import pytest

from regcompare.config import preset
from regcompare.sweeps import SWEEPS, published


@pytest.mark.parametrize("name", SWEEPS)
def test_every_point_is_published_with_eight_seeds(name):
    for point in SWEEPS[name].points:
        assert len(published()[point.config.key()]) == 8
        assert all(0 <= accuracy <= 1 for accuracy in published()[point.config.key()])


@pytest.mark.parametrize("name", SWEEPS)
def test_a_point_finds_its_own_place(name):
    for point in SWEEPS[name].points:
        found = SWEEPS[name].find(point.config)
        assert (found.arm, found.x) == (point.arm, pytest.approx(point.x))


def test_a_recipe_of_ones_own_joins_if_it_differs_in_one_thing_only():
    own = preset("dropout", lr=0.005, epochs=5, seeds=(1, 2, 3))
    assert SWEEPS["lr"].find(own)[:2] == ("dropout", 0.005)
    assert SWEEPS["lr"].find(own.model_copy(update={"batch_size": 32})) is None
    assert SWEEPS["size"].find(own) is None
    assert SWEEPS["size"].find(preset("baseline", dataset="mnist", train_size=700, epochs=91))[:2] == ("baseline", 700)
    assert SWEEPS["size"].find(preset("baseline", train_size=700, epochs=91)) is None  # tested on other images


def test_the_number_of_images_goes_to_all_of_mnist():
    sweep = SWEEPS["size"]
    assert (min(sweep.steps), max(sweep.steps)) == (100, 60_000)
    for point in sweep.points:
        assert point.config.dataset == "mnist"
        assert point.config.n_train == point.x
    assert preset("baseline", dataset="mnist") in [point.config for point in sweep.points]  # no second run for what ships already
