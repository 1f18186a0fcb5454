"""Figures: the numbers they draw by equality, odd input, looks that can be told apart, words. Run: pytest tests/test_figures.py"""

import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest

from regcompare import figures
from regcompare.config import PLACES, PRESETS, RunConfig, preset
from regcompare.figures import (
    METRIC_TITLES,
    OTHER_STYLES,
    PLACE_TITLES,
    STYLES,
    ArmResult,
    Curve,
    arm_names,
    arm_results,
    curve,
    rgba,
    silent_shares,
    style_of,
)
from regcompare.layers import WIDTHS
from regcompare.runfile import BN_ARRAYS, METRICS, RunFile
from regcompare.stats import FACTORIAL, Arm, Estimate, band, compare_all, estimate

TINY = {"train_size": 100, "batch_size": 50, "epochs": 2}
WHITE, DARK = "#ffffff", "#12161d"


def record_of(config, activations=PLACES):
    """A run file by hand. At step t seed k has accuracy 0.5 + t/10 + k/100; batch norm at epoch e holds e + channel/10 + k."""
    seeds = np.arange(len(config.seeds))
    steps = np.array([1, 2, 4])
    rows = 0.5 + steps[:, None] / 10 + seeds / 100
    arrays = {"history/step": steps, "history/epoch": steps / 2}
    arrays |= {f"history/{metric}": rows.astype(np.float32) for metric in METRICS}
    for metric in ("test_loss", "test_accuracy"):
        arrays[f"history/{metric}"] = np.where([[False], [True], [False]], np.nan, rows).astype(np.float32)
    arrays |= {f"final/{metric}": rows[-1] for metric in METRICS}
    for place in config.normalized_places:
        values = np.arange(config.epochs + 1)[:, None, None] + seeds[None, :, None] + np.arange(WIDTHS[place]) / 10
        arrays |= {f"batch_norm/{place}/{array}": values.astype(np.float32) for array in BN_ARRAYS}
    for place in activations:  # a quarter of the first seed's, half of the second's, … are zero
        values = np.tile(np.arange(1, 9, dtype=np.float32), (len(seeds), 1))
        for k in seeds:
            values[k, : min(8, 2 * (k + 1))] = 0
        arrays[f"activations/{place}"] = values
    return RunFile(arrays, {"config": config.model_dump(mode="json"), "seconds": 1.0, "format": 1})


def made(name, seeds=(0, 1, 2), **changes):
    return record_of(preset(name, **TINY | changes, seeds=seeds))


FIVE = [made(name) for name in PRESETS]
NORMALIZED = made("input-bn")
OWN = record_of(RunConfig(**TINY, batch_norm=("conv1", "fc2"), seeds=(0, 1, 2)))
UNMEASURED = RunFile(NORMALIZED.arrays | {f"history/{m}": np.full((3, 3), np.nan, np.float32) for m in METRICS}, NORMALIZED.facts)
CASES = {
    "no arm": [],
    "one arm, one seed": [made("input-bn", (7,))],
    "one seed, no batch norm": [made("baseline", (7,))],
    "no batch norm": [made("baseline"), made("dropout")],
    "with and without": [made("baseline"), made("standard-bn")],
    "five arms": FIVE,
    "a recipe of one's own": [OWN, made("baseline")],
    "other seeds": [made("baseline"), made("dropout", (4, 5)), made("bn-dropout", (0,))],
    "one name twice": [made("standard-bn"), made("standard-bn", lr=0.01), made("standard-bn", epochs=5), made("baseline")],
    "one run twice": [NORMALIZED, NORMALIZED],
    "no activations": [record_of(NORMALIZED.config, ()), record_of(FIVE[0].config, ())],
    "some activations": [record_of(NORMALIZED.config, ("input", "fc2")), made("baseline")],
    "nothing measured": [UNMEASURED],
    "one measured": [UNMEASURED, made("baseline")],
}


def results_of(records, metric="test_accuracy"):
    return arm_results([(record.config, record.summary()) for record in records], metric)


def arms_of(records, metric="test_accuracy"):
    """As sides of a comparison."""
    names = arm_names([record.config for record in records])
    return [Arm(name, record.config.seeds, record.summary()[metric]) for name, record in zip(names, records, strict=True)]


def curves_of(records, metric):
    return [curve(record, metric) for record in records]


# Every figure with its words: what draws it, what says it
FIGURES = {
    "overview": (lambda r, m: figures.overview(results_of(r, m), m), lambda r, m: figures.overview_alt(results_of(r, m), m)),
    "curves": (lambda r, m: figures.curves(curves_of(r, m), m), lambda r, m: figures.curves_alt(curves_of(r, m), m)),
    "forest": (
        lambda r, m: figures.forest(compare_all(arms_of(r, m), m)),
        lambda r, m: figures.forest_alt(compare_all(arms_of(r, m), m)),
    ),
    "interaction_plot": (lambda r, m: figures.interaction_plot(arms_of(r, m), m), None),
    "activations": (lambda r, m: figures.activations(r), lambda r, m: figures.activations_alt(r)),
    "violins": (lambda r, m: figures.violins(r, "running_var"), lambda r, m: figures.violins_alt(r, "running_var")),
    "violins late": (lambda r, m: figures.violins(r, "weight", 99), lambda r, m: figures.violins_alt(r, "weight", 99)),
    "drift": (lambda r, m: figures.drift(r, "running_mean"), lambda r, m: figures.drift_alt(r, "running_mean")),
}
MEASURED = ("overview", "curves", "forest", "interaction_plot")  # those of one metric


# Odd input


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_comes_with_its_frame_whatever_goes_in(name, case):
    for metric in ("test_accuracy", "test_loss")[: 1 + (name in MEASURED)]:
        figure = FIGURES[name][0](CASES[case], metric)
        assert isinstance(figure, go.Figure)
        assert figure.layout.height >= 100
        assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"
        assert figure.data or figure.layout.annotations[0].text.endswith(".")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [name for name, (_, say) in FIGURES.items() if say])
def test_the_words_come_too(name, case):
    """They end, hold no gap where a number should be, and name each arm."""
    records = CASES[case]
    text = FIGURES[name][1](records, "test_accuracy")
    assert text.endswith(".")
    assert not re.search(r"nan|None|: ?[.;]|\. \.|  |\.\.", text)
    compared = len(records) > 1 or name != "forest"
    assert all(arm in text for arm in _names_in(name, records)) or not compared


def _names_in(name, records):
    """A curve is made by itself, so it has its short name; the others are told apart."""
    configs = [record.config for record in records]
    return [arm_names([config])[0] for config in configs] if name == "curves" else arm_names(configs)


@pytest.mark.parametrize("name", ["overview", "curves", "activations"])
@pytest.mark.parametrize("metric", METRIC_TITLES)
def test_a_mean_carries_its_n(name, metric):
    text = FIGURES[name][1]([made("standard-bn"), made("baseline", (0,))], metric)
    first, second = text.split("baseline")
    assert "(n = 3)" in first
    assert "±" in first
    assert "(n = 1, no interval)" in second
    assert "±" not in second


# The numbers to draw


def test_an_arms_result():
    record = made("dropout", (3, 5))
    summary = {"test_accuracy": [0.5, 0.75], "test_loss": [2.0, 3.0]}
    expected = ArmResult("dropout", STYLES["dropout"], [0.5, 0.75], estimate([0.5, 0.75]), record.config)
    assert arm_results([(record.config, summary)]) == [expected]
    assert arm_results([(record.config, summary)], "test_loss")[0].seeds == [2, 3]


def test_a_curve_leaves_out_what_was_not_measured():
    found = curve(NORMALIZED, "test_accuracy")
    assert found.epoch.tolist() == [0.5, 2]  # the middle one of three points has no test value
    assert found.mean == pytest.approx([0.61, 0.91])
    assert found.half == pytest.approx([4.302653 * 0.01 / 3**0.5] * 2, rel=1e-4)
    assert (found.name, found.style, found.n) == ("input-bn", STYLES["input-bn"], 3)
    assert curve(NORMALIZED, "train_accuracy").epoch.tolist() == [0.5, 1, 2]
    assert curve(made("baseline", (3,)), "train_loss").half is None


def test_silent_shares():
    """Two of eight zeros in the first seed, four in the second; the input is no unit that could be silent."""
    shares = silent_shares(made("baseline", (0, 1)))
    assert list(shares) == ["conv1", "conv2", "fc1", "fc2"]
    assert shares["conv1"] == estimate([0.25, 0.5])
    assert silent_shares(record_of(OWN.config, ())) == {}


def test_colours_with_alpha():
    assert rgba("#0a9a73", 0.3) == "rgba(10,154,115,0.3)"


def test_names_are_short_where_that_tells_them_apart():
    base, other = preset("baseline", **TINY), preset("dropout", **TINY)
    assert arm_names([base, other]) == ["baseline", "dropout"]
    assert arm_names([base, preset("baseline", **TINY, lr=0.1), other]) == [
        "baseline (mnist-5k, first 100, 2 epochs, lr 0.001, batch 50)",
        "baseline (mnist-5k, first 100, 2 epochs, lr 0.1, batch 50)",
        "dropout",
    ]
    near = preset("baseline", **TINY, lr=0.0010000001)  # the same to the digits shown
    assert len(set(arm_names([base, near]))) == 2
    assert arm_names([]) == []


# On the right scale


def test_overview_data():
    figure = figures.overview(results_of([made("baseline"), made("dropout", (0,))]))
    alone, alone_mean, dots, mean = figure.data  # the first arm is the top row, so it comes last
    assert list(dots.x) == pytest.approx([90, 91, 92])
    assert all(0 < y - 1 < 0.5 for y in dots.y)  # beside its own row
    assert list(mean.x) == pytest.approx([91])
    assert list(mean.error_x.array) == pytest.approx([100 * estimate([0.90, 0.91, 0.92]).half])
    assert (list(alone.x), list(alone_mean.x), alone_mean.error_x.array) == ([90], [90], None)
    assert figure.layout.yaxis.ticktext == ("dropout<br>n = 1", "baseline<br>n = 3")
    assert figure.layout.xaxis.title.text == "Test accuracy, %"
    losses = figures.overview(results_of([made("baseline")], "test_loss"), "test_loss")
    assert list(losses.data[0].x) == pytest.approx([0.90, 0.91, 0.92])
    assert losses.layout.xaxis.title.text == "Test loss, nats"


@pytest.mark.parametrize(("metric", "scale"), [("test_accuracy", 100), ("train_loss", 1)])
def test_curves_data(metric, scale):
    item = Curve("x", STYLES["dropout"], np.array([1.0, 2.0]), np.array([0.5, 0.7]), np.array([0.1, 0.2]), 4)
    around, line = figures.curves([item], metric).data
    assert (list(around.x), list(around.y)) == ([1, 2, 2, 1], pytest.approx([0.6 * scale, 0.9 * scale, 0.5 * scale, 0.4 * scale]))
    assert (list(line.x), list(line.y)) == ([1, 2], pytest.approx([0.5 * scale, 0.7 * scale]))
    assert line.name == "x (n = 4)"
    (alone,) = figures.curves([item._replace(half=None)], metric).data  # one seed: a line and no band
    assert alone.mode == "lines+markers"


def test_the_axis_of_curves_shows_every_line():
    high = curve(made("baseline"), "test_accuracy")
    low, top = figures.curves([high, high._replace(mean=high.mean - 0.5)], "test_accuracy").layout.yaxis.range
    assert low < 100 * (high.mean.min() - 0.5)
    assert 100 * high.mean.max() < top <= 100.5


def test_forest_data():
    """The interval as it is, in points; filled only where a verdict names a better arm."""
    far = [Arm("a", range(4), [0.5, 0.51, 0.52, 0.53]), Arm("b", range(4), [0.9, 0.92, 0.91, 0.93]), Arm("c", range(4), [0.91] * 4)]
    found = compare_all(far, "test_accuracy")
    traces = dict(zip([(one.a, one.b) for one in found], reversed(figures.forest(found).data), strict=True))
    for one in found:
        trace = traces[one.a, one.b]
        assert list(trace.x) == pytest.approx([100 * one.difference.mean])
        assert trace.x[0] + trace.error_x.array[0] == pytest.approx(100 * one.difference.high)
        assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(100 * one.difference.low)
        assert trace.marker.symbol == ("diamond-open" if one.verdict.startswith("No difference") else "diamond")
    assert {trace.marker.symbol for trace in traces.values()} == {"diamond", "diamond-open"}


def test_the_interaction_plot():
    arms = [Arm(name, (0, 1), [mean, mean + 0.01]) for name, mean in zip(FACTORIAL, (0.90, 0.95, 0.93, 0.96), strict=True)]
    without, with_norm = figures.interaction_plot(arms, "test_accuracy").data
    assert list(without.x) == list(with_norm.x) == ["no dropout", "dropout"]
    assert list(without.y) == pytest.approx([90.5, 93.5])
    assert list(with_norm.y) == pytest.approx([95.5, 96.5])
    assert list(without.error_y.array) == pytest.approx([100 * estimate([0, 0.01]).half] * 2)
    missing = figures.interaction_plot(arms[:3], "test_accuracy")
    assert not missing.data
    assert "bn-dropout" in missing.layout.annotations[0].text


def test_violins_show_the_epoch_asked_for():
    """The values are epoch + seed + channel/10, so an epoch on adds one; past the end the last one stays."""
    first, second, last = (figures.violins([NORMALIZED], "weight", epoch).data[0].y for epoch in (0, 1, 2))
    assert list(first) == pytest.approx([0, 1, 2])  # the input has one channel, and there are three seeds
    assert list(second) == pytest.approx([1, 2, 3])
    assert list(figures.violins([NORMALIZED], "weight").data[0].y) == list(last)
    assert list(figures.violins([NORMALIZED], "weight", 99).data[0].y) == list(last)


def test_the_hover_names_seed_and_channel():
    trace = figures.violins([made("standard-bn", (4, 9))], "bias", 0).data[0]
    at = [(seed, channel) for seed, channel in trace.customdata]
    assert at[:2] + at[-1:] == [(4, 0), (4, 1), (9, 5)]
    assert trace.y[at.index((9, 5))] == pytest.approx(1 + 5 / 10)


def test_drift_data():
    band, line = figures.drift([made("input-bn", (0,))], "weight").data[:2]
    assert list(line.x) == list(line.y) == [0, 1, 2]
    assert len(band.x) == 6
    wide = figures.drift([NORMALIZED], "weight").data[0]
    assert (max(wide.y), min(wide.y)) == pytest.approx((2 + 1.9, 0.1))  # of 0, 1, 2 the middle 90 %


def test_activations_data():
    """What is exactly zero is left out of the violin and counted below it."""
    figure = figures.activations([made("baseline", (0, 1))])
    assert len(figure.data) == len(PLACE_TITLES)
    assert sorted(figure.data[0].y) == [3, 4, 5, 5, 6, 6, 7, 7, 8, 8]
    assert figure.layout.xaxis.ticktext == ("38 %",)  # six of sixteen


def test_activations_that_were_not_kept():
    figure = figures.activations(CASES["some activations"])
    assert [trace.name for trace in figure.data].count("input-bn") == 2
    assert figure.layout.xaxis2.ticktext == ("not kept", "50 %")
    assert [trace.showlegend for trace in figure.data].count(True) == 2


# A density is shown only where it stands on enough channels


@pytest.mark.parametrize(("place", "channels"), WIDTHS.items())
def test_few_channels_are_points(place, channels):
    figure = figures.violins([NORMALIZED], "weight")
    trace = figure.data[list(PLACE_TITLES).index(place)]
    assert len(trace.y) == 3 * channels
    if channels <= 6:
        assert isinstance(trace, go.Box)
        assert trace.boxpoints == "all"
        assert trace.line.color == trace.fillcolor == "rgba(0,0,0,0)"  # no box, no whiskers: the points alone
        assert trace.pointpos == 0
    else:
        assert isinstance(trace, go.Violin)
        assert trace.points is False
        assert trace.spanmode == "hard"  # no density where there is no value


def test_the_border_is_six_channels():
    kinds = [type(figures._violin("x", OWN.config, np.zeros((3, channels)), True)) for channels in (1, 6, 7)]
    assert kinds == [go.Box, go.Box, go.Violin]


@pytest.mark.parametrize("draw", [figures.violins, figures.drift])
def test_each_arm_is_listed_once_and_stands_alone(draw):
    """Two runs of one preset are two violins with two names, not one on top of the other."""
    records = CASES["one name twice"]
    figure = draw(records, "weight")
    listed = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert listed == arm_names([record.config for record in records])[:3]
    assert len(set(listed)) == 3


# Looks


def test_the_presets_can_be_told_apart_by_each_of_three_signs():
    assert list(STYLES) == list(PRESETS)
    for sign in ("color", "dash", "symbol"):
        assert len({getattr(style, sign) for style in STYLES.values()}) == len(PRESETS)
    assert len({style.color for style in (*STYLES.values(), *OTHER_STYLES)}) == len(STYLES) + len(OTHER_STYLES)


def test_a_recipe_looks_the_same_each_time_and_everywhere():
    own = RunConfig(batch_norm="conv1", epochs=3)
    again = RunConfig.model_validate_json(own.canonical_json())
    assert style_of(own) == style_of(again)
    assert style_of(own) in OTHER_STYLES
    assert len({style_of(RunConfig(batch_norm="conv1", epochs=n)) for n in range(1, 60)}) == len(OTHER_STYLES)
    for name in PRESETS:
        assert style_of(preset(name, epochs=3, seeds=(5,))) == STYLES[name]


def luminance(color):
    """WCAG 2.2, relative luminance."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return sum(
        w * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4) for w, v in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", [WHITE, DARK])
@pytest.mark.parametrize("color", [style.color for style in (*STYLES.values(), *OTHER_STYLES)] + [figures.PAIR_COLOR])
def test_lines_can_be_seen(color, ground):
    """WCAG 1.4.11 asks 3:1 of what carries meaning."""
    assert contrast(color, ground) >= 3
    assert contrast(WHITE, "#000000") == pytest.approx(21)


def test_the_dark_ground_is_the_themes():
    theme = Path(__file__).parent.parent.joinpath(".streamlit/config.toml").read_text()
    grounds = re.findall('backgroundColor *= *"(#[0-9a-f]+)"', theme)
    assert not grounds or {WHITE, DARK} >= set(grounds[:2])


def test_an_arm_has_one_colour_on_every_figure():
    record = made("dropout")
    mean = figures.overview(results_of([record])).data[1]
    line = figures.curves(curves_of([record], "test_loss"), "test_loss").data[1]
    assert mean.marker.color == line.line.color == figures.activations([record]).data[0].line.color == STYLES["dropout"].color
    assert mean.marker.symbol == line.marker.symbol == "triangle-up"
    assert line.line.dash == "dashdot"


# The sentences


def test_the_sentence_names_the_best_and_each_difference_to_the_control():
    summaries = {"baseline": [0.5, 0.6, 0.7], "dropout": [0.6, 0.7, 0.9], "standard-bn": [0.4, 0.5, 0.6]}
    configs = {name: preset(name, **TINY, seeds=(0, 1, 2)) for name in summaries}
    results = arm_results([(configs[name], {"test_accuracy": values}) for name, values in summaries.items()])
    text = figures.overview_sentence(results, configs["baseline"])
    assert text.startswith("On 1,000 test images **dropout** has the highest mean accuracy, 73.33 ± 37.95 (n = 3) %.")
    assert "against **baseline**, in points: dropout +13.33 ± 14.34, standard-bn -10.00 ± 0.00 (n = 3;" in text


def test_only_arms_of_the_same_seeds_are_called_paired():
    """As Compare allows any arms: another number of seeds must not raise, and other seeds must not be called pairs."""
    records = [made("baseline"), made("dropout", (4, 5)), made("standard-bn", (7, 8, 9)), made("input-bn")]
    text = figures.overview_sentence(results_of(records), records[0].config)
    paired = text.partition("Paired by seed")[2]
    assert "input-bn +0.00" in paired
    assert "dropout" not in paired
    assert "standard-bn" not in paired


# Cases of which one is the control, and another has its seeds
CONTROLLED = {"no batch norm", "with and without", "five arms", "a recipe of one's own", "one name twice", "no activations"}
CONTROLLED |= {"some activations", "one measured"}


@pytest.mark.parametrize("case", CASES)
def test_the_sentence_always_comes(case):
    records = CASES[case]
    text = figures.overview_sentence(results_of(records), FIVE[0].config)
    assert text.endswith(".")
    assert not re.search(r"nan|None|: ?[.;(]", text)
    assert ("Paired by seed, against **baseline**" in text) == (case in CONTROLLED)


def test_one_seed_is_said_to_be_luck():
    records = [made("baseline", (0,)), made("dropout", (0,))]
    text = figures.overview_sentence(results_of(records), records[0].config)
    assert "dropout +0.00 (n = 1; one seed gives no interval" in text
    assert "±" not in text


def test_violins_in_a_sentence():
    """Medians by hand: epoch + the middle seed + the middle channel."""
    short, plain = made("standard-bn"), made("baseline")
    text = figures.violins_sentence([short, plain], 2)
    assert text == (
        "Median γ after epoch 2 (it starts at 1): standard-bn (n = 3 seeds): conv 1 3.25, conv 2 3.75, dense 1 8.95, dense 2 7.15; "
        "baseline (n = 3 seeds): no batch norm."
    )
    assert "its end, epoch 2" in figures.violins_sentence([short], 5)
    assert "no arm" in figures.violins_sentence([], 5)


def test_alternatives_by_hand():
    record = made("standard-bn", (0,))
    assert "standard-bn conv 1: median 2.250, 5 to 95 % from 2.025 to 2.475" in figures.violins_alt([record], "weight")
    assert "standard-bn conv 1: median 0.250" in figures.violins_alt([record], "weight", 0)
    assert "standard-bn conv 1: from 0.250 to 2.250" in figures.drift_alt([record], "weight")
    assert "dropout ends at 91.00 ± 2.48 (n = 3) %" in figures.curves_alt(curves_of([made("dropout")], "test_accuracy"), "test_accuracy")
    assert "dropout ends at 0.9100 ± 0.0248 (n = 3) nats" in figures.curves_alt(curves_of([made("dropout")], "test_loss"), "test_loss")
    assert "conv 1 37.50 ± 158.83 (n = 2)" in figures.activations_alt([made("dropout", (0, 1))])
    assert figures.in_words(Estimate(0.5, 0.4, 0.6, 3), "train_accuracy") == "50.00 ± 10.00 (n = 3) %"


def test_the_published_runs():
    """Real runs, as a new user sees them first."""
    folder = Path(__file__).parent.parent / "cache" / "published"
    records = [RunFile.from_bytes(path.read_bytes()) for path in sorted(folder.glob("*-mnist-5k-*.safetensors"))]
    assert len(records) == len(PRESETS)
    for name, (draw, say) in FIGURES.items():
        assert len(draw(records, "test_accuracy").data) >= 2, name
        text = say(records, "test_accuracy") if say else " ".join(PRESETS)
        assert all(preset in text for preset in PRESETS), name
    best = max(record.final("test_accuracy").mean() for record in records)
    assert f"{100 * best:.2f} ±" in figures.overview_sentence(results_of(records), records[0].config)


def long_curve(points=1000, seeds=8, peak=537):
    """A curve with one point that stands out."""
    values = np.linspace(0.5, 0.9, points)[:, None] + np.linspace(-0.01, 0.01, seeds)
    values[peak] += 0.3
    values[peak + 40] -= 0.3
    mean, half = band(values)
    return Curve("long", style_of(preset("baseline")), np.arange(points) / 10, mean, half, seeds)


def test_a_long_curve_is_thinned_and_keeps_its_extremes():
    curve = long_curve()
    places = figures.drawn_points(curve)
    assert {0, 537, 577, 999} <= set(places.tolist())
    assert len(places) <= 402
    figure = figures.curves([curve, long_curve(50, peak=5)], "test_accuracy")
    line = next(trace for trace in figure.data if trace.name == "long (n = 8)")
    assert max(line.y) == pytest.approx(100 * curve.mean[537])
    assert "of 1,050 points: the lowest and highest of each stretch" in figure.layout.xaxis.title.text
    assert "stretch" not in figures.curves([long_curve(400, peak=5)], "test_accuracy").layout.xaxis.title.text
