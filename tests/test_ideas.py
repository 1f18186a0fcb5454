"""The cautions: said of the recipes that need them, and of no other."""

import pytest

from regcompare.config import PRESETS, preset
from regcompare.ideas import CO_ADAPTATION, COVARIATE_SHIFT, VARIANCE_SHIFT, cautions


@pytest.mark.parametrize("name", PRESETS)
def test_presets_need_none(name):
    assert cautions(preset(name)) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": (4,)}, "1 seed: luck and effect cannot be told apart"),
        ({"seeds": (4, 5)}, "2 seeds: an interval from two values"),
        ({"batch_size": 2}, "Batch norm on batches of 2"),
        ({"dropout_order": "before"}, "Dropout right before batch norm"),
        ({"dropout": {"fc1": 0.7}}, "More than 60 % silenced"),
        ({"batch_norm": (), "lr": 0.1}, "Learning rate 0.1 with adam and no batch norm"),
    ],
)
def test_each_is_said_once_with_a_way_out(changes, says):
    found = cautions(preset("bn-dropout", **changes))
    assert len(found) == 1
    assert found[0].startswith(says)


def test_what_needs_batch_norm_is_not_said_without():
    assert cautions(preset("dropout", batch_size=2)) == []


@pytest.mark.parametrize("idea", [CO_ADAPTATION, COVARIATE_SHIFT, VARIANCE_SHIFT])
def test_every_idea_has_an_example_or_a_cause_and_its_source(idea):
    assert len(idea.text) > 200
    assert all("20" in source for source in idea.sources)
