"""Numbers to Plotly figures: pure functions. Knows neither Streamlit nor SQL; draws on a clear ground, so for light and dark.

Each figure has a twin that says it in words (`..._alt`), from the same numbers, for those who cannot see it.
"""

import itertools
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from regcompare.config import CLASSES, FACTORIAL, PRESETS, RunConfig, arm_names, label, preset_of
from regcompare.runfile import RunFile
from regcompare.stats import ALPHA, MIN_SEEDS, Arm, Comparison, Estimate, band, difference, estimate, nats, percent


class Style(NamedTuple):
    """How an arm looks on every page: colour, and dash and marker for those who cannot tell the colours."""

    color: str
    dash: str
    symbol: str


# Okabe & Ito (2008), readable for the colour-blind; the shades keep 3:1 contrast on white and on the dark ground.
STYLES: dict[str, Style] = dict(
    zip(
        PRESETS,
        (
            Style("#7f8794", "solid", "circle"),
            Style("#2a86c8", "dash", "square"),
            Style("#b8639b", "dot", "diamond"),
            Style("#d9660a", "dashdot", "triangle-up"),
            Style("#0a9a73", "longdash", "star"),
        ),
        strict=True,
    )
)
# Recipes of one's own; the key picks one, so a recipe looks the same everywhere.
OTHER_STYLES = (
    Style("#a88a00", "longdashdot", "cross"),
    Style("#5a6fd6", "dash", "x"),
    Style("#c2453f", "dot", "pentagon"),
    Style("#6b8e23", "dashdot", "hexagon"),
)
METRIC_TITLES = {
    "test_accuracy": "Test accuracy",
    "test_loss": "Test loss",
    "train_accuracy": "Training accuracy",
    "train_loss": "Training loss",
}
BN_TITLES = {"weight": "weight γ", "bias": "bias β", "running_mean": "running mean", "running_var": "running variance"}
PLACE_TITLES = {"input": "input", "conv1": "conv 1", "conv2": "conv 2", "fc1": "dense 1", "fc2": "dense 2"}
PAIR_COLOR = "#7f8794"  # a pair of arms has no arm's colour
STRETCHES = 100  # of a long curve
FEW_CHANNELS = 6  # up to here a density would be a lie: the points themselves are shown
GRID = "rgba(128,128,128,.22)"


def style_of(config: RunConfig) -> Style:
    """The look of a recipe: its preset's, or one that its key picks."""
    name = preset_of(config)
    return STYLES[name] if name else OTHER_STYLES[int(config.key(), 16) % len(OTHER_STYLES)]


def _names(records: Sequence[RunFile]) -> list[str]:
    return arm_names([record.config for record in records])


def rgba(color: str, alpha: float) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def base(figure: go.Figure, height: int, legend: bool = True) -> go.Figure:
    figure.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 36, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=legend,
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "title": None},
        hoverlabel={"namelength": -1},
        uirevision="keep",
    )
    figure.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)
    figure.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, automargin=True)
    return figure


def columns(figure: go.Figure, height: int, legend: bool, bottom: int) -> go.Figure:
    """`base` for a row of subplots, with room for labels set beforehand: to measure them plotly.js would draw all twice."""
    base(figure, height, legend)
    figure.update_layout(margin={"t": 72 if legend else 36, "l": 64, "b": bottom}, legend_y=1.12)
    return figure.update_xaxes(automargin=False).update_yaxes(automargin=False)


def empty(message: str, height: int = 320) -> go.Figure:
    """A figure with its frame and a sentence instead of data."""
    figure = base(go.Figure(), height, legend=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure.add_annotation(text=message, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")


# Five arms at a glance


class ArmResult(NamedTuple):
    """An arm's final value of a metric, each seed's and the estimate."""

    name: str
    style: Style
    seeds: list[float]
    estimate: Estimate
    config: RunConfig


def arm_results(arms: Sequence[tuple[RunConfig, dict[str, list[float]]]], metric: str = "test_accuracy") -> list[ArmResult]:
    named = zip(arm_names([config for config, _ in arms]), arms, strict=True)
    return [ArmResult(name, style_of(config), summary[metric], estimate(summary[metric]), config) for name, (config, summary) in named]


def overview(results: Sequence[ArmResult], metric: str = "test_accuracy") -> go.Figure:
    """Every seed as a dot, the mean and its interval under them, an arm a row."""
    if not results:
        return empty("No arm is finished yet.")
    scale, unit = scale_of(metric)
    figure = go.Figure()
    for row, arm in enumerate(reversed(results)):
        jitter = row + 0.22 + 0.1 * np.linspace(-1, 1, len(arm.seeds)) if len(arm.seeds) > 1 else [row + 0.22]
        dots = {"color": rgba(arm.style.color, 0.45), "size": 6, "symbol": arm.style.symbol}
        hover = f"{arm.name}, one seed: %{{x:.4~f}}{unit}<extra></extra>"
        figure.add_scatter(x=[scale * value for value in arm.seeds], y=jitter, mode="markers", marker=dots, hovertemplate=hover)
        half = arm.estimate.half
        figure.add_scatter(
            x=[scale * arm.estimate.mean],
            y=[row],
            error_x=None
            if half is None
            else {"type": "data", "array": [scale * half], "thickness": 3, "width": 7, "color": arm.style.color},
            mode="markers",
            marker={"color": arm.style.color, "size": 11, "symbol": arm.style.symbol},
            hovertemplate=f"{arm.name}: {in_words(arm.estimate, metric)}<extra></extra>",
        )
    names = [f"{arm.name}<br>n = {arm.estimate.n}" for arm in reversed(results)]
    base(figure, 70 + 46 * len(results), legend=False)
    figure.update_layout(margin={"t": 8})
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[-0.5, len(names) - 0.4], showgrid=False, zeroline=False)
    figure.update_xaxes(title=f"{METRIC_TITLES[metric]},{unit}", title_standoff=6, zeroline=False)
    return figure


def scale_of(metric: str) -> tuple[int, str]:
    """What a metric is multiplied by on a figure, and its unit."""
    return (100, " %") if metric.endswith("accuracy") else (1, " nats")


def in_words(value: Estimate, metric: str) -> str:
    return f"{percent(value)} %" if metric.endswith("accuracy") else f"{nats(value)} nats"


def overview_alt(results: Sequence[ArmResult], metric: str = "test_accuracy") -> str:
    """The arms in words."""
    return f"{METRIC_TITLES[metric]}. " + ("; ".join(f"{arm.name}: {in_words(arm.estimate, metric)}" for arm in results) or "No arm") + "."


def overview_sentence(results: Sequence[ArmResult], config: RunConfig) -> str:
    """What the arms show in words: the highest mean, and each difference to the control, paired by seed (arms of its seeds only)."""
    if not results:
        return "No arm is finished yet."
    best = max(results, key=lambda arm: arm.estimate.mean)
    text = f"On {config.n_test:,} test images **{best.name}** has the highest mean accuracy, {percent(best.estimate)} %."
    control = next((arm for arm in results if arm.name == "baseline"), None)
    others = [arm for arm in results if control and arm is not control and arm.config.seeds == control.config.seeds]
    if control is None or not others:
        return text
    gains = [(arm.name, difference(arm.seeds, control.seeds)) for arm in others]
    listed = ", ".join(
        f"{name} {100 * gain.mean:+.2f}" + (f" ± {100 * gain.half:.2f}" if gain.half is not None else "") for name, gain in gains
    )
    n = control.estimate.n
    level = "an interval that holds 0 shows no difference" if n > 1 else "one seed gives no interval, so this is luck and effect in one"
    return f"{text} Paired by seed, against **baseline**, in points: {listed} (n = {n}; {level})."


# Pairs of arms


def forest(found: Sequence[Comparison]) -> go.Figure:
    """Each pair's difference with its 95 % interval; filled where the verdict names a better arm, hollow where none is shown."""
    if not found:
        return empty("Pick two arms or more to see their differences.", 160)
    scale, _ = scale_of(found[0].metric)
    figure = go.Figure().add_vline(x=0, line={"color": "rgba(128,128,128,.7)", "width": 1, "dash": "dot"})
    for row, one in enumerate(reversed(found)):
        gain = one.difference
        shown = one.p_holm is not None and one.p_holm < ALPHA and gain.n >= MIN_SEEDS
        bar = None
        if gain.low is not None and gain.high is not None:
            sides = {"array": [scale * (gain.high - gain.mean)], "arrayminus": [scale * (gain.mean - gain.low)]}
            bar = {"type": "data", "thickness": 2.5, "width": 6, "color": PAIR_COLOR, **sides}
        figure.add_scatter(
            x=[scale * gain.mean],
            y=[row],
            error_x=bar,
            mode="markers",
            marker={
                "color": PAIR_COLOR,
                "size": 10,
                "symbol": "diamond" if shown else "diamond-open",
                "line": {"width": 2, "color": PAIR_COLOR},
            },
            hovertemplate="<br>".join(textwrap.wrap(one.verdict, 70)) + "<extra></extra>",
        )
    names = [f"{one.a} − {one.b}<br>n = {one.difference.n}{'' if one.paired else ', not paired'}" for one in reversed(found)]
    base(figure, 80 + 40 * len(found), legend=False)
    figure.update_layout(margin={"t": 8})
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[-0.6, len(names) - 0.4], showgrid=False, zeroline=False)
    unit = "points" if scale == 100 else "nats"
    figure.update_xaxes(title=f"Difference in {METRIC_TITLES[found[0].metric].lower()}, {unit}", title_standoff=6, zeroline=False)
    return figure


def forest_alt(found: Sequence[Comparison]) -> str:
    """Every verdict."""
    return "Differences between arms. " + (" ".join(one.verdict for one in found) or "No pair of arms.")


def interaction_plot(arms: Sequence[Arm], metric: str) -> go.Figure:
    """The 2x2 factorial: without and with dropout, a line without and one with batch norm. Parallel lines: the benefits add up."""
    named = {arm.name: arm for arm in arms}
    if not all(name in named for name in FACTORIAL):
        return empty("The interaction needs these four arms: " + ", ".join(FACTORIAL) + ".", 160)
    scale, unit = scale_of(metric)
    figure = go.Figure()
    for title, pair in (("without batch norm", ("baseline", "dropout")), ("with batch norm", ("standard-bn", "bn-dropout"))):
        style = STYLES[pair[0]]
        found = [estimate(np.asarray(named[name].values)) for name in pair]
        bars = None
        if all(one.half is not None for one in found):
            bars = {"type": "data", "array": [scale * (one.half or 0) for one in found], "thickness": 2, "width": 6, "color": style.color}
        figure.add_scatter(
            x=["no dropout", "dropout"],
            y=[scale * one.mean for one in found],
            error_y=bars,
            name=f"{title} (n = {found[0].n})",
            mode="lines+markers",
            line={"color": style.color, "dash": style.dash, "width": 2},
            marker={"symbol": style.symbol, "size": 10},
        )
    base(figure, 340)
    figure.update_xaxes(range=[-0.3, 1.3])
    figure.update_yaxes(title=f"{METRIC_TITLES[metric]},{unit}")
    return figure


def share_right(record: RunFile) -> np.ndarray:
    """Share of a run's nets that get each test image right, [n]."""
    return (record.arrays["test/prediction"] == record.arrays["test/label"]).mean(0)


def confusion_counts(record: RunFile) -> np.ndarray:
    """Test images of true class i taken for class j by one net, the mean over seeds, [10, 10]."""
    label_, predicted = record.arrays["test/label"].astype(int), record.arrays["test/prediction"].astype(int)
    counts = np.bincount((label_ * CLASSES + predicted).ravel(), minlength=CLASSES**2)
    return counts.reshape(CLASSES, CLASSES) / len(predicted)


def confusion(records: Sequence[RunFile]) -> go.Figure:
    """The mistakes of each arm, a column an arm, on one scale."""
    if not records:
        return empty("Pick an arm to see where it errs.")
    titles = [f"{label(record.config)} (n = {len(record.config.seeds)})" for record in records]
    figure = make_subplots(rows=1, cols=len(records), subplot_titles=titles, horizontal_spacing=0.03, shared_yaxes=True)
    tables = [np.where(np.eye(CLASSES, dtype=bool), np.nan, confusion_counts(record)) for record in records]
    top = max(float(np.nanmax(table)) for table in tables) or 1.0
    for column, table in enumerate(tables, 1):
        hover = "a %{y} taken for a %{x}: %{z:.2f} images a net<extra></extra>"
        look = {"colorscale": [[0, "rgba(217,102,10,0)"], [1, "rgba(217,102,10,1)"]], "zmin": 0, "zmax": top, "xgap": 1, "ygap": 1}
        scale = {"title": "images", "thickness": 12}
        digits = [str(digit) for digit in range(CLASSES)]
        heat = go.Heatmap(z=table, x=digits, y=digits, hovertemplate=hover, showscale=column == len(tables), colorbar=scale, **look)
        figure.add_trace(heat, row=1, col=column)
    base(figure, 330, legend=False)
    figure.update_xaxes(type="category", title="taken for", showgrid=False, title_standoff=4)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_yaxes(title="true digit", col=1)
    return figure


def confusion_alt(records: Sequence[RunFile]) -> str:
    """The commonest mistake of each arm."""
    parts = []
    for record in records:
        counts = confusion_counts(record)
        np.fill_diagonal(counts, 0)
        true, taken = np.unravel_index(int(counts.argmax()), counts.shape)
        parts.append(
            f"{label(record.config)} (n = {len(record.config.seeds)}): a {true} taken for a {taken}, {counts.max():.1f} times a net"
        )
    return "Commonest mistakes on the test images. " + "; ".join(parts) + "."


# Learning curves


class Curve(NamedTuple):
    """Mean over seeds of one metric along the epochs, and half the width of its interval (None at one seed)."""

    name: str
    style: Style
    epoch: np.ndarray
    mean: np.ndarray
    half: np.ndarray | None
    n: int


def curve(record: RunFile, metric: str, name: str | None = None) -> Curve:
    values = record.history(metric).astype(float)
    measured = ~np.isnan(values).any(1)
    mean, half = band(values[measured])
    config = record.config
    return Curve(name or label(config), style_of(config), record.arrays["history/epoch"][measured], mean, half, len(config.seeds))


def _at(item: Curve, places: np.ndarray) -> Curve:
    return item._replace(epoch=item.epoch[places], mean=item.mean[places], half=None if item.half is None else item.half[places])


def drawn_points(item: Curve) -> np.ndarray:
    """Indices of the points that are drawn: all, or of many the extremes of mean and band in each of `STRETCHES` stretches.

    A screen has no room for more, and a peak that lasted one point still shows.
    """
    count = len(item.epoch)
    if count <= 4 * STRETCHES:
        return np.arange(count)
    half = item.half if item.half is not None else np.zeros(count)
    edges = np.linspace(0, count, STRETCHES + 1).astype(int)
    kept = {0, count - 1}
    for start, end in itertools.pairwise(edges):
        mean, low, high = item.mean[start:end], (item.mean - half)[start:end], (item.mean + half)[start:end]
        kept |= {start + int(place) for place in (mean.argmin(), mean.argmax(), low.argmin(), high.argmax())}
    return np.array(sorted(kept))


def curves(items: Sequence[Curve], metric: str) -> go.Figure:
    """Overlaid learning curves: a line and a band, the 95 % interval of the mean over seeds; long ones thinned (`drawn_points`)."""
    if not items:
        return empty("Pick an arm to see its curve.")
    items = [item for item in items if len(item.epoch)]
    if not items:
        return empty("These runs hold no point of this measure.")
    scale, unit = scale_of(metric)
    figure = go.Figure()
    total = sum(len(item.epoch) for item in items)
    items = [_at(item, drawn_points(item)) for item in items]
    drawn = sum(len(item.epoch) for item in items)
    for item in items:
        group = {"legendgroup": item.name + item.style.color}
        if item.half is not None:
            around = np.concatenate([item.mean + item.half, (item.mean - item.half)[::-1]]) * scale
            outline = {"x": np.concatenate([item.epoch, item.epoch[::-1]]), "y": around, "fill": "toself"}
            look = {"mode": "lines", "line_width": 0, "hoverinfo": "skip", "showlegend": False}
            figure.add_scatter(**outline, fillcolor=rgba(item.style.color, 0.16), **look, **group)
        sparse = len(item.epoch) <= 60
        figure.add_scatter(
            x=item.epoch,
            y=item.mean * scale,
            name=f"{item.name} (n = {item.n})",
            mode="lines+markers" if sparse else "lines",
            line={"color": item.style.color, "dash": item.style.dash, "width": 2},
            marker={"symbol": item.style.symbol, "size": 6},
            **group,
        )
    lowest = min(float(item.mean.min()) for item in items) * scale
    highest = max(float(item.mean.max()) for item in items) * scale
    room = 0.06 * (highest - lowest or 1)
    base(figure, 400)
    figure.update_layout(hovermode="x unified")
    thinned = f"<br>{drawn:,} of {total:,} points: the lowest and highest of each stretch" if drawn < total else ""
    figure.update_xaxes(title=f"Epoch{thinned}")
    figure.update_yaxes(
        title=f"{METRIC_TITLES[metric]},{unit}", range=[lowest - room, min(highest + room, 100.5) if scale == 100 else highest + room]
    )
    return figure


def curves_alt(items: Sequence[Curve], metric: str) -> str:
    ends = []
    for item in items:
        if not len(item.epoch):
            ends.append(f"{item.name} was not measured")
            continue
        mean, half = float(item.mean[-1]), None if item.half is None else float(item.half[-1])
        end = Estimate(mean, *((None, None) if half is None else (mean - half, mean + half)), item.n)
        ends.append(f"{item.name} ends at {in_words(end, metric)}")
    return f"{METRIC_TITLES[metric]} over the epochs. " + ("; ".join(ends) or "No arm") + "."


# Batch-norm parameters and activations


def violins(records: Sequence[RunFile], array: str, epoch: int | None = None) -> go.Figure:
    """Learned batch-norm values at each place, all seeds together, arms side by side.

    `epoch` counts from 0, the initial state; the last one unless given (an arm that ended earlier shows its end).
    """
    places = [place for place in PLACE_TITLES if any(place in record.config.normalized_places for record in records)]
    if not places:
        return empty("None of these arms has batch norm, so there is no parameter to show.")
    figure = make_subplots(rows=1, cols=len(places), subplot_titles=[PLACE_TITLES[p] for p in places], horizontal_spacing=0.05)
    shown: set[str] = set()
    for column, place in enumerate(places, 1):
        for rank, (name, record) in enumerate(zip(_names(records), records, strict=True)):
            if place not in record.config.normalized_places:
                continue
            history = record.arrays[f"batch_norm/{place}/{array}"]  # [E + 1, K, C]
            values = history[min(epoch if epoch is not None else len(history) - 1, len(history) - 1)]
            figure.add_trace(_violin(name, record.config, values, name not in shown).update(legendrank=rank), row=1, col=column)
            shown.add(name)
    columns(figure, 320, len(shown) > 1, bottom=12).update_layout(violingap=0.15)
    figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    figure.update_yaxes(title=BN_TITLES[array], col=1)
    return figure


def _violin(name: str, config: RunConfig, values: np.ndarray, listed: bool) -> go.Box | go.Violin:
    """Values [K, C]: a density where it stands on enough channels, else the points themselves."""
    style = style_of(config)
    common = {"y": values.ravel(), "x0": name, "name": name, "legendgroup": name, "showlegend": listed}
    if values.shape[-1] <= FEW_CHANNELS:
        seeds, channels = np.meshgrid(config.seeds, np.arange(values.shape[1]), indexing="ij")
        clear = "rgba(0,0,0,0)"
        points = {
            "customdata": np.stack([seeds.ravel(), channels.ravel()], -1),
            "hovertemplate": f"{name}<br>%{{y:.4f}} (seed %{{customdata[0]}}, channel %{{customdata[1]}})<extra></extra>",
            "marker": {"color": style.color, "size": 5, "opacity": 0.65, "symbol": style.symbol},
        }
        return go.Box(**common, **points, boxpoints="all", jitter=0.6, pointpos=0, fillcolor=clear, line={"color": clear})
    line = {"color": style.color, "width": 1.5}
    return go.Violin(**common, points=False, box_visible=True, spanmode="hard", line=line, fillcolor=rgba(style.color, 0.3))


def violins_alt(records: Sequence[RunFile], array: str, epoch: int | None = None) -> str:
    parts = []
    for name, record in zip(_names(records), records, strict=True):
        parts += [] if record.config.normalized_places else [f"{name}: no batch norm"]
        for place in record.config.normalized_places:
            history = record.arrays[f"batch_norm/{place}/{array}"]
            values = history[min(epoch if epoch is not None else len(history) - 1, len(history) - 1)]
            low, middle, high = np.percentile(values, (5, 50, 95))
            parts.append(f"{name} {PLACE_TITLES[place]}: median {middle:.3f}, 5 to 95 % from {low:.3f} to {high:.3f}")
    return f"Batch-norm {BN_TITLES[array]}. " + ("; ".join(parts) or "No arm has batch norm") + "."


def violins_sentence(records: Sequence[RunFile], epoch: int) -> str:
    """What the weights say: where each arm's median γ ends, from 1 at the start."""
    parts = []
    for name, record in zip(_names(records), records, strict=True):
        medians = []
        for place in record.config.normalized_places:
            history = record.arrays[f"batch_norm/{place}/weight"]
            medians.append(f"{PLACE_TITLES[place]} {np.median(history[min(epoch, len(history) - 1)]):.2f}")
        end = f", its end, epoch {record.config.epochs}" if epoch > record.config.epochs else ""
        parts.append(f"{name} (n = {len(record.config.seeds)} seeds{end}): " + (", ".join(medians) or "no batch norm"))
    return f"Median γ after epoch {epoch} (it starts at 1): " + ("; ".join(parts) or "no arm") + "."


def drift(records: Sequence[RunFile], array: str) -> go.Figure:
    """How the values moved: median over seeds and channels at each epoch, and the middle 90 %, a column a place."""
    places = [place for place in PLACE_TITLES if any(place in record.config.normalized_places for record in records)]
    if not places:
        return empty("None of these arms has batch norm, so there is no parameter to show.")
    figure = make_subplots(rows=1, cols=len(places), subplot_titles=[PLACE_TITLES[p] for p in places], horizontal_spacing=0.05)
    shown: set[str] = set()
    for column, place in enumerate(places, 1):
        for rank, (name, record) in enumerate(zip(_names(records), records, strict=True)):
            if place not in record.config.normalized_places:
                continue
            style = style_of(record.config)
            history = record.arrays[f"batch_norm/{place}/{array}"]
            low, middle, high = np.percentile(history.reshape(len(history), -1), (5, 50, 95), axis=1)
            epochs = np.arange(len(history))
            outline = {"x": np.concatenate([epochs, epochs[::-1]]), "y": np.concatenate([high, low[::-1]]), "fill": "toself"}
            look = {"mode": "lines", "line_width": 0, "hoverinfo": "skip", "showlegend": False, "legendgroup": name}
            figure.add_trace(go.Scatter(**outline, fillcolor=rgba(style.color, 0.16), **look), row=1, col=column)
            line = {"color": style.color, "dash": style.dash, "width": 2}
            listed = {"name": name, "legendgroup": name, "showlegend": name not in shown, "legendrank": rank}
            trace = go.Scatter(x=epochs, y=middle, line=line, mode="lines", **listed)
            figure.add_trace(trace, row=1, col=column)
            shown.add(name)
    columns(figure, 300, len(shown) > 1, bottom=48)
    figure.update_xaxes(title="Epoch")
    figure.update_yaxes(title=BN_TITLES[array], col=1)
    return figure


def drift_alt(records: Sequence[RunFile], array: str) -> str:
    """Where the medians begin and end."""
    parts = []
    for name, record in zip(_names(records), records, strict=True):
        parts += [] if record.config.normalized_places else [f"{name}: no batch norm"]
        for place in record.config.normalized_places:
            medians = np.median(record.arrays[f"batch_norm/{place}/{array}"], axis=(1, 2))
            parts.append(f"{name} {PLACE_TITLES[place]}: from {medians[0]:.3f} to {medians[-1]:.3f}")
    return f"Median batch-norm {BN_TITLES[array]} over the epochs. " + ("; ".join(parts) or "No arm has batch norm") + "."


def activations(records: Sequence[RunFile]) -> go.Figure:
    """What each place gives on, after ReLU and pooling, on test images in eval mode: a sample, all seeds together.

    The violins leave out what is exactly zero, which would flatten them; its share stands below each.
    """
    records = [record for record in records if any(name.startswith("activations/") for name in record.arrays)]
    if not records:
        return empty("These runs carry no activations.")
    figure = make_subplots(rows=1, cols=len(PLACE_TITLES), subplot_titles=list(PLACE_TITLES.values()), horizontal_spacing=0.04)
    names, listed = _names(records), set[str]()
    for column, place in enumerate(PLACE_TITLES, 1):
        shares = []
        for name, record in zip(names, records, strict=True):
            style, values = style_of(record.config), record.arrays.get(f"activations/{place}", np.empty(0)).ravel()
            if not values.size:
                shares.append("not kept")
                continue
            shares.append(f"{100 * float((values == 0).mean()):.0f} %")
            look = {"line": {"color": style.color, "width": 1.5}, "fillcolor": rgba(style.color, 0.3), "points": False}
            named = {"name": name, "legendgroup": name, "showlegend": name not in listed, "spanmode": "hard", "box_visible": True}
            active = values[values != 0]
            figure.add_trace(go.Violin(y=active, x0=name, **look, **named, hoveron="violins"), row=1, col=column)
            listed.add(name)
        figure.update_xaxes(tickvals=names, ticktext=shares, title="at zero", title_standoff=4, showgrid=False, row=1, col=column)
    columns(figure, 380, len(records) > 1, bottom=60)
    figure.update_yaxes(title="activation", col=1)
    return figure


def silent_shares(record: RunFile) -> dict[str, Estimate]:
    """Share of hidden activations that are exactly zero at each place, with its interval over seeds."""
    places = [place for place in PLACE_TITLES if place != "input" and f"activations/{place}" in record.arrays]
    return {place: estimate((record.arrays[f"activations/{place}"] == 0).mean(1)) for place in places}


def activations_alt(records: Sequence[RunFile]) -> str:
    parts = []
    for name, record in zip(_names(records), records, strict=True):
        shares = ", ".join(f"{PLACE_TITLES[place]} {percent(share)}" for place, share in silent_shares(record).items())
        parts.append(f"{name}: share of zeros in percent: {shares}" if shares else f"{name}: not kept")
    return "Activations of each layer on test images. " + ("; ".join(parts) or "No arm") + "."
