"""Compare: arms side by side - a table with intervals, overlaid curves, and what differs between the recipes."""

import plotly.graph_objects as go
import streamlit as st

from app_pages import mistakes, shared
from regcompare import figures, stats, tables
from regcompare.config import PRESETS, arm_names
from regcompare.measurements import Measurements
from regcompare.report import PROBLEM1, report
from regcompare.store import Run


def page_of(runs: list[Run]) -> str:
    """These runs as one standalone HTML page."""
    found = [(run, record) for run in runs if (record := shared.store().record(run.key))]
    runs = [run for run, _ in found]
    measures = {name: Measurements(shared.store()).of_study(runs, name) for name in PROBLEM1}
    return report(runs, [record for _, record in found], measures)


def values(runs: list[Run], metric: str) -> tuple[go.Figure, str, str]:
    """Each arm's final values: figure, its words, and what it shows."""
    results = figures.arm_results([(run.config, run.summary or {}) for run in runs], metric)
    return figures.overview(results, metric), figures.overview_alt(results, metric), figures.overview_sentence(results, runs[0].config)


def pairs(runs: list[Run], metric: str) -> tuple[list[stats.Comparison], go.Figure, str]:
    compared = stats.compare_all(tables.arms(runs, metric), metric)
    return compared, figures.forest(compared), figures.forest_alt(compared)


def adding_up(runs: list[Run], metric: str) -> tuple[stats.Interaction | None, go.Figure]:
    sides = tables.arms(runs, metric)
    return stats.interaction(sides, metric), figures.interaction_plot(sides, metric)


def learning(runs: list[Run], metric: str) -> tuple[go.Figure, str]:
    names = arm_names([run.config for run in runs])
    items = [figures.curve(record, metric, name) for name, record in zip(names, shared.records(runs), strict=True)]
    return figures.curves(items, metric), figures.curves_alt(items, metric)


st.title("Compare", anchor=False)
chosen = shared.choose_arms("compare", list(PRESETS))
if "compare_metric" not in st.session_state:
    st.session_state["compare_metric"] = (shared.linked("metric", figures.METRIC_TITLES) or ["test_accuracy"])[0]
st.segmented_control(
    "Measure",
    list(figures.METRIC_TITLES),
    format_func=figures.METRIC_TITLES.__getitem__,
    key="compare_metric",
    required=True,
    persist_state="session",
)
metric: str = st.session_state["compare_metric"]
shared.link(metric=None if metric == "test_accuracy" else metric)
configs = [run.config for run in chosen]
if len({(config.dataset, config.train_size) for config in configs}) > 1:
    st.warning("These arms saw different images, so their numbers do not compare the nets alone.", icon=":material/warning:")
if len({config.seeds for config in configs}) > 1:
    st.warning("These arms do not share their seeds, so they are not paired.", icon=":material/warning:")

figure, alt, sentence = shared.once(values, chosen, metric)
shared.chart(figure, alt, key="compare_overview")
if metric == "test_accuracy":
    st.markdown(sentence)

st.download_button(
    "Report", lambda: page_of(chosen), "regcompare-report.html", "text/html", icon=":material/description:", on_click="ignore"
)
st.subheader("Final values", anchor=False)
st.dataframe(tables.results_table(chosen), hide_index=True, alt="Final values of each arm; the same numbers as in the figures")
st.caption("Mean ± half the 95 % interval over seeds (Student's t), whole split, eval mode. Gap: training minus test accuracy.")

st.subheader("Which is better?", anchor=False)
compared, figure, alt = shared.once(pairs, chosen, metric)
shared.chart(figure, alt, key="compare_forest")
st.caption(
    "Each pair on the seeds that both have: mean difference and 95 % interval (paired t; Welch where seeds differ). "
    "Filled: better or worse after Holm's correction over all pairs. Hollow: no difference shown."
)
for one in compared:
    st.markdown(f"- {one.verdict}")
if compared:
    with st.expander("The tests in numbers", icon=":material/calculate:"):
        st.dataframe(
            tables.comparisons_table(compared), hide_index=True, alt="The tests of every pair: difference, interval, n and p values"
        )
        st.caption(
            "p: paired t (Welch if not paired). Least p: the best that a sign-flip test of n pairs can give. Effect: mean difference "
            "over its standard deviation. Seeds needed: for 0.1 points (0.001 nats) at 80 % power, with the spread seen here."
        )

st.subheader("Do the benefits add up?", anchor=False)
together, figure = shared.once(adding_up, chosen, metric)
shared.chart(figure, together.verdict if together else "The interaction needs four arms.", key="compare_interaction")
if together:
    st.markdown(together.verdict)
    st.caption(
        "Interaction: (bn-dropout − dropout) − (standard-bn − baseline), by seed. Parallel lines would mean that the benefits add up."
    )

st.subheader("Learning curves", anchor=False)
figure, alt = shared.once(learning, chosen, metric)
shared.chart(figure, alt, key="compare_curves")
st.caption("Line: mean over seeds. Band: 95 % interval of the mean. Training values are running means while the net learns, dropout on.")

mistakes.show(chosen)

st.subheader("What differs between the recipes", anchor=False)
differences = tables.recipe_differences(configs)
if differences.empty:
    st.caption("Nothing: pick two arms or more." if len(chosen) == 1 else "Nothing.")
else:
    st.dataframe(differences, alt="The fields of the recipes that differ, a column a recipe")
