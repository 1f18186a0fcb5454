"""What pages share: the store and cached reads of it, charts with their words, the live chart. Not a page."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import plotly.graph_objects as go
import streamlit as st
from sqlalchemy.exc import SQLAlchemyError
from streamlit.components.v2 import component

from regcompare import live
from regcompare.config import MAX_SEEDS, PRESETS, RegcompareError, preset, setting, short_title
from regcompare.figures import curve, style_of
from regcompare.insights import Measured, SweepPoint, sweep_sentence
from regcompare.insights import sweep as plot_sweep
from regcompare.measurements import Measurements
from regcompare.runfile import RunFile
from regcompare.stats import t_quantile
from regcompare.store import Run, Store, default_url
from regcompare.sweeps import SWEEPS, Sweep, published
from regcompare.worker import ensure_worker

T = TypeVar("T")
STATUS_ICONS = {
    "queued": ":material/schedule:",
    "running": ":material/play_circle:",
    "done": ":material/check_circle:",
    "failed": ":material/error:",
    "cancelled": ":material/cancel:",
    "interrupted": ":material/pause_circle:",
}
LIVE_HTML = """<div class="rc-live"><div class="rc-text" role="status"></div>
<div class="rc-bar" role="progressbar" aria-label="Training progress" aria-valuemin="0" aria-valuemax="100" hidden><div></div></div>
<div class="rc-plot" role="img"></div></div>"""
LIVE_CSS = """.rc-live { color: var(--st-text-color); font-family: var(--st-font); }
.rc-text { min-height: 1.5em; font-variant-numeric: tabular-nums; }
.rc-bar { height: 6px; border-radius: 3px; overflow: hidden; background: var(--st-border-color); margin: 2px 0 10px; }
.rc-bar > div { height: 100%; width: 0; background: var(--st-primary-color); transition: width .2s linear; }
@media (prefers-reduced-motion: reduce) { .rc-bar > div { transition: none; } }"""
_live_chart = component(
    "regcompare_live", html=LIVE_HTML, css=LIVE_CSS, js=Path(live.__file__).with_suffix(".js").read_text(), isolate_styles=False
)
MOST_OFFERED = 200
T_QUANTILES = [0.0, 0.0] + [t_quantile(n) for n in range(2, MAX_SEEDS + 1)]


def store() -> Store:
    """The server's store. If it cannot be opened the page says so and ends."""
    try:
        return live.shared_store(default_url())
    except (RegcompareError, SQLAlchemyError) as error:
        st.error(str(error).splitlines()[0])
        st.stop()


@st.cache_resource(max_entries=2, show_spinner=False)
def _runs(url: str, version: str) -> tuple[Run, ...]:
    return tuple(store().runs())


def all_runs() -> tuple[Run, ...]:
    """Every run, the newest first; read again only when one has changed."""
    return _runs(store().url, store().version())


class Finished(NamedTuple):
    """Finished runs by key, the presets first and in their order, then the rest; their titles; the keys of the newest; the presets' runs by
    `settings`."""

    runs: dict[str, Run]
    titles: dict[str, str]
    newest: list[str]
    groups: list[list[Run]]


@st.cache_resource(max_entries=2, show_spinner=False)
def _finished(url: str, version: str) -> Finished:
    order = {name: place for place, name in enumerate(PRESETS)}
    done = [run for run in _runs(url, version) if run.status == "done"]
    runs = sorted(done, key=lambda run: order.get(run.preset or "", len(order)))
    titles = {run.key: short_title(run.config) for run in runs}
    return Finished(
        {run.key: run for run in runs}, titles, [run.key for run in done[:MOST_OFFERED]], settings([run for run in runs if run.preset])
    )


def finished() -> Finished:
    """What pages that look at results choose from; worked out again only when a run has changed."""
    return _finished(store().url, store().version())


@st.cache_resource(max_entries=64, show_spinner=False)
def _record(url: str, key: str, finished: float | None) -> RunFile | None:
    return store().record(key)


def record(run: Run) -> RunFile | None:
    """A finished run's numbers. Shared by all sessions: do not change them."""
    return _record(store().url, run.key, run.finished)


def records(runs: Iterable[Run]) -> list[RunFile]:
    return [found for run in runs if (found := record(run))]


def offered(keep: Iterable[str]) -> tuple[dict[str, str], str]:
    """Titles of the runs that a control offers, and words on those left out: `keep` and the newest, `MOST_OFFERED` in all.

    A list of thousands is no choice, and each session would be sent all of it.
    """
    found = finished()
    if len(found.titles) <= MOST_OFFERED:
        return found.titles, ""
    names = {key: found.titles[key] for key in (*keep, *found.newest) if key in found.titles}
    names = dict(list(names.items())[:MOST_OFFERED])
    return (
        names,
        f"{len(names)} of {len(found.titles):,} finished runs are offered, the newest. Pick others on the Runs page: tick, Compare.",
    )


@st.cache_resource(max_entries=256, show_spinner=False)
def _once(url: str, name: str, runs: tuple[Any, ...], arguments: tuple[Any, ...], _make: Callable[[], Any]) -> Any:
    return _make()


def once(make: Callable[..., T], runs: Sequence[Run], *arguments: Any) -> T:
    """`make(runs, *arguments)`, worked out once for all sessions while these runs stay as they are. Do not change what it returns."""
    name = f"{make.__code__.co_filename}:{make.__qualname__}"
    return _once(store().url, name, tuple((run.key, run.finished) for run in runs), arguments, lambda: make(runs, *arguments))


def settings(runs: Sequence[Run]) -> list[list[Run]]:
    """Finished runs that may be compared, in groups of one data set and training each: the most arms first, then the newest."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(setting(run.config), []).append(run)
    return sorted(
        groups.values(),
        key=lambda group: (-len({run.preset for run in group}), -group[0].config.n_train, -group[0].config.epochs),
    )


def chart(figure: go.Figure, alt: str, key: str) -> None:
    """A figure with its words for those who cannot see it."""
    options = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}
    st.plotly_chart(figure, width="stretch", key=key, config=options, alt=alt)


def wide(key: str) -> Any:
    """A place for figures of several columns: on a phone they keep a readable width and scroll sideways (see `app.CSS`)."""
    return st.container(key=f"wide_{key}")


def live_chart(run: Run | None, pinned: Sequence[RunFile]) -> str | None:
    """Loss and accuracy of a run, growing while it trains, over those of pinned runs. Returns how the run ended, once.

    With no run it shows nothing and gets the chart library ready, which is what the first click would else wait for.
    """
    look = style_of(run.config) if run else None
    data = {
        "stream": f"api/runs/{run.key}/stream" if run else None,
        "started": run.created if run else None,  # a run trained anew has the same key
        "plotly": live.PLOTLY_ROUTE.lstrip("/"),
        "live": run is not None and run.status != "done",
        "name": run.label if run else "",
        "color": look.color if look else "",
        "symbol": look.symbol if look else "",
        "epochs": run.config.epochs if run else 1,
        "t": T_QUANTILES,
        "pinned": [_pin(pin) for pin in pinned],
    }
    result = _live_chart(key="lab_live", data=data, on_ended_change=lambda: None)
    return result.ended  # type: ignore[attr-defined]


def _pin(pin: RunFile) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    for metric in ("test_loss", "test_accuracy"):
        found = curve(pin, metric)
        half = found.half if found.half is not None else 0 * found.mean
        drawn[metric] = {"epoch": found.epoch.tolist(), "mean": found.mean.tolist(), "half": half.tolist(), "n": found.n}
    look = style_of(pin.config)
    return {"name": found.name, "color": look.color, "symbol": look.symbol, "epochs": pin.config.epochs, **drawn}


def linked(name: str, allowed: Iterable[str]) -> list[str]:
    """The words of a link's parameter (`?arms=a,b`) that are allowed, in order; the rest is left out."""
    known = set(allowed)
    return [word for word in dict.fromkeys(st.query_params.get(name, "").split(",")) if word in known]


def link(**parameters: str | Sequence[str] | None) -> None:
    """Write the page's state into its address; what is empty is left out of it."""
    for name, value in parameters.items():
        text = value if isinstance(value, str) else ",".join(value or ())
        if text:
            st.query_params[name] = text
        elif name in st.query_params:
            del st.query_params[name]


def measured(runs: Sequence[Run], name: str) -> list[Measured]:
    """What is measured of these runs; a button asks for the rest, and the page fills in by itself when the worker has it."""
    found = Measurements(store())
    states = [(run, found.find(run.key, name)) for run in runs]
    absent = [run for run, state in states if state.status in ("absent", "failed")]
    if absent and st.button(f"Measure {', '.join(run.label for run in absent)}", key=f"measure_{name}", icon=":material/science:"):
        for run in absent:
            found.ask(run.key, name)
        ensure_worker(store())
        st.rerun()
    for run, state in states:
        if state.status == "failed":
            st.warning(f"{run.label}: {state.error}", icon=":material/error:")
    waiting = [run for run, state in states if state.status in ("queued", "running")]
    if waiting:
        _wait_for(waiting, name)
    return [Measured(run.config, state.arrays) for run, state in states if state.arrays is not None]


@st.fragment(run_every=1.0)
def _wait_for(runs: Sequence[Run], name: str) -> None:
    states = [Measurements(store()).find(run.key, name).status for run in runs]
    if any(status not in ("queued", "running") for status in states):
        st.rerun()
    st.caption(
        f":material/hourglass_top: Measuring {', '.join(run.label for run in runs)}. This may take a minute; other pages can be used."
    )


def sweep_points(sweep: Sweep) -> list[SweepPoint]:
    """The published points of a sweep, and with them every finished run here that differs in nothing but what is swept."""
    shipped = {point.config.key(): (point, published()[key]) for point in sweep.points if (key := point.config.key()) in published()}
    own = {run.key: (point, run.summary["test_accuracy"]) for run in all_runs() if run.summary and (point := sweep.find(run.config))}
    return [SweepPoint(*point, accuracy) for point, accuracy in (shipped | own).values()]


def show_sweep(name: str) -> None:
    """A sweep: its question, its figure, and the numbers at both ends in words."""
    sweep, points = SWEEPS[name], sweep_points(SWEEPS[name])
    styles = {arm: preset(arm) for arm in sweep.arms}
    st.markdown(f"**{sweep.title}.** {sweep.question}")
    words = sweep_sentence(points, sweep.axis)
    chart(plot_sweep(points, sweep.axis, sweep.log, styles), words, key=f"sweep_{name}")
    st.caption(f"{len(points)} points. {words}")


def choose_arms(page: str, usual: Sequence[str], also: Sequence[str] = ()) -> list[Run]:
    """Arms picked by the reader or by the link (`?arms=..`); else the presets of `usual` in the largest setting, and the keys of `also`."""
    found = finished()
    runs, groups = found.runs, found.groups
    if not runs:
        st.info("No run is finished yet. Train one in the Lab, or import run files on the Runs page.")
        st.stop()
    largest = groups[0] if groups else list(runs.values())
    first = [run.key for run in largest if run.preset in usual] or [largest[0].key]
    first += [one for one in also if one in runs]
    key = f"{page}_arms"
    st.session_state.setdefault(key, linked("arms", runs) or first)
    st.session_state[key] = [one for one in st.session_state[key] if one in runs][:MOST_OFFERED]
    names, left_out = offered((*st.session_state[key], *first))
    arms = st.multiselect(
        "Arms", list(names), format_func=names.__getitem__, key=key, persist_state="session", placeholder="Pick runs", help=left_out or None
    )
    link(arms=[] if arms == first else arms)
    if not arms:
        st.info("Pick at least one arm to see its numbers.")
        st.stop()
    return [runs[one] for one in arms]
