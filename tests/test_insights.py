"""Figures of measurements: the right numbers on the right scale, words with n, and no fault on odd input."""

import numpy as np
import plotly.graph_objects as go
import pytest
from serving import ROOT

from regcompare import insights
from regcompare.config import FACTORIAL, HIDDEN_PLACES, preset
from regcompare.insights import Measured, SweepPoint
from regcompare.measurements import Measurements
from regcompare.store import Store

KEYED = {"shift": "activation_drift", "silencing": "silencing", "sparsity": "sparsity", "filters": "first_filters"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The measurements that ship, by name: a list over the arms of the factorial."""
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('insights') / 's.db'}")
    store.import_published(ROOT / "cache" / "published")
    found = Measurements(store)
    found.import_published(ROOT / "cache" / "published" / "measures")
    configs = [preset(name, dataset="mnist") for name in FACTORIAL]

    def of(name):
        states = [(config, found.find(config.key(), name).arrays) for config in configs]
        return [Measured(config, arrays) for config, arrays in states if arrays is not None]

    return of


@pytest.mark.parametrize("kind", [*KEYED, "dots", "costs"])
def test_nothing_measured_is_a_figure_with_a_sentence(kind):
    figure = getattr(insights, kind)([], "y") if kind == "dots" else getattr(insights, kind)([])
    assert isinstance(figure, go.Figure)
    assert figure.layout.annotations[0].text == "Nothing is measured yet."


@pytest.mark.parametrize(("kind", "name"), KEYED.items())
def test_the_published_ones_are_drawn(published, kind, name):
    items = published(name)
    assert len(items) == 4
    figure = getattr(insights, kind)(items)
    assert len(figure.data) >= 4
    one = getattr(insights, kind)(items[:1])
    assert 0 < len(one.data) < len(figure.data)


def test_silencing_begins_at_the_final_accuracy_in_percent(published):
    items = published("silencing")
    lines = {trace.name: trace.y for trace in insights.silencing(items).data if trace.name}
    for item in items:
        first = lines[f"{item.name} (n = 8)"][0]
        assert first == pytest.approx(100 * item.arrays["accuracy"][0].mean())
        assert 97 < first < 99.5
    words = insights.silencing_sentence(items)
    assert words.count("(n = 8)") == 8  # what is left and what is lost, of four arms


def test_the_way_of_the_median_by_hand():
    """Medians 0, 1, -1 with a spread of 2 at every look: 3 / 2."""
    values = np.zeros((3, 2, 3))
    values[:, :, 1] = np.array([0, 1, -1])[:, None]
    values[:, :, 0], values[:, :, 2] = values[:, :, 1] - 1, values[:, :, 1] + 1
    arrays = {"steps": np.arange(3)} | {place: values for place in HIDDEN_PLACES}
    found = insights.travelled(Measured(preset("baseline", seeds=(0, 1)), arrays), "fc1")
    assert (found.mean, found.n) == (1.5, 2)


def test_dots_leave_out_places_that_were_not_measured_and_seeds_without_a_value():
    config = preset("baseline", seeds=(0, 1, 2))
    item = Measured(config, {"conv1": np.array([1.0, 2.0, 3.0]), "fc1": np.array([np.nan, 1.0, 1.0])})
    figure = insights.dots([item], "y")
    cloud, means = figure.data
    assert len(cloud.x) == 5
    assert list(means.y) == [2.0, 1.0]
    assert "dense 1 1.000 ± 0.000 (n = 2)" in insights.dots_sentence([item], "Value")
    assert "conv 2" not in insights.dots_sentence([item], "Value")


def test_a_cost_is_wrong_minus_right_by_seed():
    item = Measured(preset("dropout", seeds=(0, 1)), {"right": np.array([0.9, 0.8]), "wrong": np.array([0.8, 0.6])})
    one = insights.cost("dropout", item)
    assert one.change.mean == pytest.approx(-0.15)
    assert insights.costs_sentence([one]).startswith("dropout: right 85.00 ± ")
    marks = [trace for trace in insights.costs([one]).data if trace.mode == "markers"]
    assert [mark.x[0] for mark in marks] == pytest.approx([85, 70])


def test_a_sweep_sorts_its_points_and_names_its_n():
    config = preset("baseline")
    points = [SweepPoint("baseline", x, config, [0.9 + x, 0.8 + x]) for x in (0.02, 0.01)] + [SweepPoint("dropout", 0.01, config, [0.5])]
    figure = insights.sweep(points, "Rate", True, {"baseline": config, "dropout": preset("dropout")})
    lines = {trace.name: trace for trace in figure.data if trace.name}
    assert list(lines["baseline (n = 2)"].x) == [0.01, 0.02]
    assert list(lines["dropout (n = 1)"].y) == [50]
    assert "At rate 0.01: baseline 86.00 ± " in insights.sweep_sentence(points, "Rate")
    assert insights.sweep([], "Rate", False, {}).layout.annotations[0].text == "No point of this sweep is trained yet."
