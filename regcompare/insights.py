"""Measurements inside nets to Plotly figures: pure functions, each with a twin in words. Knows neither Streamlit, SQL nor torch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from regcompare.config import HIDDEN_PLACES, RunConfig, label
from regcompare.figures import GRID, PLACE_TITLES, base, empty, rgba, style_of
from regcompare.runfile import Arrays
from regcompare.stats import Estimate, band, difference, estimate, number, percent


class Measured(NamedTuple):
    """One measurement of one run."""

    config: RunConfig
    arrays: Arrays

    @property
    def name(self) -> str:
        return label(self.config)

    @property
    def n(self) -> int:
        return len(self.config.seeds)


# Internal covariate shift


def shift(items: Sequence[Measured]) -> go.Figure:
    """15th, 50th and 85th percentile of what goes into each ReLU over training, means over seeds; a row an arm, a column a layer."""
    if not items:
        return empty("Nothing is measured yet.")
    titles = [f"{PLACE_TITLES[place]}, {item.name}" for item in items for place in HIDDEN_PLACES]
    figure = make_subplots(
        rows=len(items), cols=len(HIDDEN_PLACES), subplot_titles=titles, horizontal_spacing=0.05, vertical_spacing=0.3 / len(items)
    )
    for row, item in enumerate(items, 1):
        style = style_of(item.config)
        for column, place in enumerate(HIDDEN_PLACES, 1):
            values = item.arrays[place].mean(1)  # [S, 3]
            for index, (share, dash) in enumerate(((15, "dot"), (50, "solid"), (85, "dot"))):
                line = {"color": style.color, "dash": dash, "width": 2 if index == 1 else 1.5}
                hover = f"{item.name}, {share}th percentile<br>step %{{x}}: %{{y:.2f}} (mean over n = {item.n} seeds)<extra></extra>"
                trace = go.Scatter(x=item.arrays["steps"], y=values[:, index], mode="lines", line=line, hovertemplate=hover)
                figure.add_trace(trace, row=row, col=column)
    base(figure, 60 + 210 * len(items), legend=False)
    figure.update_xaxes(title="step", row=len(items))
    figure.update_yaxes(title="into ReLU", col=1)
    return figure


def travelled(item: Measured, place: str) -> Estimate:
    """How far the median of a layer's pre-activations goes over training, in units of their 15-85 % spread at each look, over seeds."""
    values = item.arrays[place]  # [S, K, 3]
    spread = (values[:, :, 2] - values[:, :, 0]).mean(0)
    return estimate(np.abs(np.diff(values[:, :, 1], axis=0)).sum(0) / np.where(spread > 0, spread, 1))


def shift_sentence(items: Sequence[Measured]) -> str:
    parts = [f"{item.name}: " + ", ".join(f"{PLACE_TITLES[p]} {number(travelled(item, p), 2)}" for p in HIDDEN_PLACES) for item in items]
    return "Way that the median goes over training, in spreads (15th to 85th percentile): " + "; ".join(parts) + "."


# Co-adaptation


def silencing(items: Sequence[Measured]) -> go.Figure:
    """Test accuracy as a growing share of the dense units is silenced. Line and band over seeds.

    Each seed has masks of its own, so what masks do by chance is part of what differs between seeds, and the band holds both.
    """
    if not items:
        return empty("Nothing is measured yet.")
    figure = go.Figure()
    for item in items:
        style, shares = style_of(item.config), 100 * item.arrays["shares"]
        mean, half = band(100 * item.arrays["accuracy"].mean(1))  # [S]
        if half is not None:
            outline = {"x": np.concatenate([shares, shares[::-1]]), "y": np.concatenate([mean + half, (mean - half)[::-1]])}
            look = {"mode": "lines", "line_width": 0, "hoverinfo": "skip", "showlegend": False, "fill": "toself"}
            figure.add_scatter(**outline, **look, fillcolor=rgba(style.color, 0.16), legendgroup=item.name)
        line = {"color": style.color, "dash": style.dash, "width": 2}
        named = {"name": f"{item.name} (n = {item.n})", "legendgroup": item.name}
        figure.add_scatter(x=shares, y=mean, mode="lines+markers", line=line, marker={"symbol": style.symbol, "size": 7}, **named)
    base(figure, 360)
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title="Dense units silenced, %")
    figure.update_yaxes(title="Test accuracy, %")
    return figure


def silencing_sentence(items: Sequence[Measured], share: float = 0.5) -> str:
    parts = []
    for item in items:
        index = int(np.abs(item.arrays["shares"] - share).argmin())
        accuracy = item.arrays["accuracy"].mean(1)  # [S, K]
        left, cost = estimate(accuracy[index]), difference(accuracy[0], accuracy[index])
        parts.append(f"{item.name} {percent(left)} %, {percent(cost)} points lost")
    masks = items[0].arrays["accuracy"].shape[1] if items else 0
    return (
        f"With {100 * share:.0f} % of the dense units silenced ({masks} masks a net, each seed its own: the interval is over both): "
        + "; ".join(parts)
        + "."
    )


def dots(items: Sequence[Measured], title: str, places: Sequence[str] = HIDDEN_PLACES, log: bool = False) -> go.Figure:
    """One number a net at each place: every seed a point, the mean and its interval beside them."""
    if not items:
        return empty("Nothing is measured yet.")
    figure = go.Figure()
    for index, item in enumerate(items):
        style = style_of(item.config)
        at = np.arange(len(places)) + (index - (len(items) - 1) / 2) * 0.8 / len(items)
        found = {place: values for place in places if place in item.arrays and (values := finite(item.arrays[place])).size}
        x = [at[list(places).index(place)] for place in found]
        spread = {"color": rgba(style.color, 0.4), "size": 6, "symbol": style.symbol}
        cloud = {"mode": "markers", "marker": spread, "showlegend": False, "legendgroup": item.name, "hoverinfo": "y"}
        each = np.repeat(x, [values.size for values in found.values()])
        figure.add_scatter(x=each - 0.03, y=np.concatenate(list(found.values())) if found else [], **cloud)
        means = [estimate(values) for values in found.values()]
        bars = {"type": "data", "array": [one.half or 0 for one in means], "thickness": 2.5, "width": 5, "color": style.color}
        marker = {"color": style.color, "size": 10, "symbol": style.symbol}
        named = {"name": f"{item.name} (n = {item.n})", "legendgroup": item.name, "mode": "markers", "marker": marker}
        figure.add_scatter(x=np.array(x) + 0.03, y=[one.mean for one in means], error_y=bars if item.n > 1 else None, **named)
    base(figure, 340)
    figure.update_xaxes(tickvals=list(range(len(places))), ticktext=[PLACE_TITLES[place] for place in places], showgrid=False)
    figure.update_yaxes(title=title, type="log" if log else "linear")
    return figure


def finite(values: np.ndarray) -> np.ndarray:
    """Without the seeds that have no value: a net with too few living units has no correlation."""
    return values[np.isfinite(values)]


def dots_sentence(items: Sequence[Measured], what: str, digits: int = 3) -> str:
    parts = []
    for item in items:
        values = {place: finite(item.arrays[place]) for place in HIDDEN_PLACES if place in item.arrays}
        found = [f"{PLACE_TITLES[place]} {number(estimate(value), digits)}" for place, value in values.items() if value.size]
        parts.append(f"{item.name}: " + (", ".join(found) or "nothing to measure"))
    return f"{what}: " + "; ".join(parts) + "."


def sparsity(items: Sequence[Measured], place: str = "fc1") -> go.Figure:
    """Histogram of a layer's activations on test images, the share of each bin; means over seeds."""
    if not items:
        return empty("Nothing is measured yet.")
    figure = go.Figure()
    for item in items:
        style, edges = style_of(item.config), item.arrays["edges"]
        share = 100 * item.arrays[f"{place}/activations"].mean(0)
        line = {"color": style.color, "dash": style.dash, "width": 2, "shape": "hvh"}
        figure.add_scatter(x=(edges[:-1] + edges[1:]) / 2, y=share, mode="lines", line=line, name=f"{item.name} (n = {item.n})")
    base(figure, 320)
    figure.update_xaxes(title=f"activation in {PLACE_TITLES[place]}")
    figure.update_yaxes(title="share of activations, %", type="log", exponentformat="power")
    return figure


def sparsity_sentence(items: Sequence[Measured], place: str = "fc1") -> str:
    parts = [
        f"{item.name} {percent(estimate(item.arrays[f'{place}/zero']))} % at zero, mean {number(estimate(item.arrays[f'{place}/mean']), 2)}"
        for item in items
    ]
    return f"Activations in {PLACE_TITLES[place]}: " + "; ".join(parts) + "."


def filters(items: Sequence[Measured]) -> go.Figure:
    """The first layer's six kernels of the first seed, a row an arm; blue below zero, orange above, one scale a row."""
    if not items:
        return empty("Nothing is measured yet.")
    names = [f"{item.name}<br>seed {item.config.seeds[0]}" for item in items]
    figure = make_subplots(rows=len(items), cols=6, row_titles=names, horizontal_spacing=0.01, vertical_spacing=0.02)
    for row, item in enumerate(items, 1):
        kernels = item.arrays["kernels"][0]  # [6, 5, 5]
        top = float(np.abs(kernels).max()) or 1.0
        for column in range(6):
            look = {"colorscale": [[0, "#2a86c8"], [0.5, "#f2f2f2"], [1, "#d9660a"]], "zmin": -top, "zmax": top, "showscale": False}
            figure.add_trace(go.Heatmap(z=kernels[column], hovertemplate="%{z:.3f}<extra></extra>", **look), row=row, col=column + 1)
            number = (row - 1) * 6 + column + 1
            square: dict[str, Any] = {"scaleanchor": f"x{number if number > 1 else ''}", "constrain": "domain", "autorange": "reversed"}
            figure.update_yaxes(visible=False, **square, row=row, col=column + 1)
    base(figure, 20 + 120 * len(items), legend=False)
    figure.update_layout(margin={"r": 70})
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_annotations(font_size=12)
    return figure


# Costs of mistakes


class Cost(NamedTuple):
    """A mistake on one arm: accuracy without and with it, and the difference wrong - right by seed."""

    name: str
    config: RunConfig
    right: Estimate
    wrong: Estimate
    change: Estimate


def cost(name: str, item: Measured, wrong: str = "wrong") -> Cost:
    right, bad = item.arrays["right"], item.arrays[wrong]
    return Cost(name, item.config, estimate(right), estimate(bad), difference(bad, right))


def costs(found: Sequence[Cost], words: tuple[str, str] = ("right", "with the mistake")) -> go.Figure:
    """Right and wrong of each arm: two marks with intervals, joined; `words` says what the filled mark and the cross are."""
    if not found:
        return empty("Nothing is measured yet.", 160)
    figure = go.Figure()
    for row, one in enumerate(reversed(found)):
        style = style_of(one.config)
        figure.add_scatter(x=[100 * one.right.mean, 100 * one.wrong.mean], y=[row, row], mode="lines", line={"color": GRID, "width": 3})
        for value, symbol, word in ((one.right, style.symbol, "right"), (one.wrong, "x-thin", "wrong")):
            marker = {
                "color": style.color,
                "size": 11,
                "symbol": symbol,
                "line": {"width": 3 if word == "wrong" else 0, "color": style.color},
            }
            bars = None if value.half is None else {"type": "data", "array": [100 * value.half], "color": style.color, "thickness": 2}
            hover = f"{one.name}, {word}: {percent(value)} %<extra></extra>"
            figure.add_scatter(x=[100 * value.mean], y=[row], mode="markers", marker=marker, error_x=bars, hovertemplate=hover)
    names = [f"{one.name}<br>n = {one.right.n}" for one in reversed(found)]
    base(figure, 80 + 44 * len(found), legend=False)
    figure.update_layout(margin={"t": 8})
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, range=[-0.6, len(names) - 0.4], showgrid=False, zeroline=False)
    figure.update_xaxes(title=f"Test accuracy, %<br>filled: {words[0]}; cross: {words[1]}", title_standoff=6, zeroline=False)
    return figure


def costs_sentence(found: Sequence[Cost]) -> str:
    parts = [
        f"{one.name}: right {percent(one.right)} %, wrong {percent(one.wrong)} %, {percent(one.change, signed=True)} points"
        for one in found
    ]
    return "; ".join(parts) + "." if parts else "Nothing is measured yet."


def reestimate_sentence(found: Sequence[Cost]) -> str:
    """`right` before and `wrong` after re-estimating the running statistics."""
    parts = [
        f"{one.name}: before {percent(one.right)} %, after {percent(one.wrong)} %, {percent(one.change, signed=True)} points"
        for one in found
    ]
    return "; ".join(parts) + "." if parts else "Nothing is measured yet."


# Sweeps

MOST_TICKS = 8


class SweepPoint(NamedTuple):
    """A finished recipe of a sweep: the arm it counts to, where it stands, its test accuracy by seed."""

    arm: str
    x: float
    config: RunConfig
    accuracy: Sequence[float]


def sweep(points: Sequence[SweepPoint], axis: str, log: bool, styles: dict[str, RunConfig]) -> go.Figure:
    """Test accuracy along one thing that changes, a line and a band an arm; `styles` gives each arm the look of a recipe."""
    if not points:
        return empty("No point of this sweep is trained yet.")
    figure = go.Figure()
    for arm in dict.fromkeys(point.arm for point in points):
        mine = sorted((point for point in points if point.arm == arm), key=lambda point: point.x)
        x, found = np.array([point.x for point in mine]), [estimate(list(point.accuracy)) for point in mine]
        mean, half = (100 * np.array(values) for values in ([one.mean for one in found], [one.half or 0.0 for one in found]))
        style = style_of(styles[arm])
        outline = {"x": np.concatenate([x, x[::-1]]), "y": np.concatenate([mean + half, (mean - half)[::-1]]), "fill": "toself"}
        look = {"mode": "lines", "line_width": 0, "hoverinfo": "skip", "showlegend": False, "legendgroup": arm}
        figure.add_scatter(**outline, **look, fillcolor=rgba(style.color, 0.16))
        low = min(one.n for one in found)
        line = {"color": style.color, "dash": style.dash, "width": 2}
        named = {"name": f"{arm} (n = {low}{'' if low == max(one.n for one in found) else ' or more'})", "legendgroup": arm}
        figure.add_scatter(x=x, y=mean, mode="lines+markers", line=line, marker={"symbol": style.symbol, "size": 7}, **named)
    base(figure, 380)
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(title=axis, type="log" if log else "linear")
    places = sorted({point.x for point in points})
    if len(places) <= MOST_TICKS:  # the values that were tried say more than a logarithmic scale's own
        figure.update_xaxes(tickvals=places, ticktext=[f"{x:,g}" for x in places])
    figure.update_yaxes(title="Test accuracy, %")
    return figure


def sweep_sentence(points: Sequence[SweepPoint], axis: str) -> str:
    """The best arm at both ends."""
    if not points:
        return "No point of this sweep is trained yet."
    parts = []
    for x in (min(point.x for point in points), max(point.x for point in points)):
        here = [(point.arm, estimate(list(point.accuracy))) for point in points if point.x == x]
        parts.append(f"At {axis.lower()} {x:,g}: " + ", ".join(f"{arm} {percent(found)} %" for arm, found in here))
    return ". ".join(parts) + "."
