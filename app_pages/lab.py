"""Lab: the five arms at a glance, a recipe, Train, live curves, and at the end the numbers and the violins."""

import time

import streamlit as st

from app_pages import recipe, shared
from regcompare import figures
from regcompare.config import PRESET_TITLES, BadInput, RunConfig, label, setting_title
from regcompare.cost import duration, expected_seconds
from regcompare.ideas import cautions
from regcompare.runfile import BN_ARRAYS, RunFile
from regcompare.script import script
from regcompare.stats import difference, estimate, nats, percent
from regcompare.store import OPEN, Run
from regcompare.worker import cores, ensure_worker

store = shared.store()
ensure_worker(store)  # warm before the first click
ADDRESS_LAG = 3.0  # seconds that a browser may take to learn the address that a click led to


def shown_run() -> Run | None:
    """The run that the link names. A session that begins with a link gets that run's recipe into its controls."""
    key = st.query_params.get("run")
    left, chosen, until = st.session_state.get("lab_went", (None, None, 0.0))
    if key == left and time.monotonic() < until:  # something else, a run's end say, asked for the page from the address before
        key = chosen
        shared.link(run=key)
    run = store.run(key) if key else None
    if key and run is None:
        st.warning(f"There is no run '{key[:40]}' in this store. The Runs page lists all of them.", icon=":material/link_off:")
    elif run and "lab_dataset" not in st.session_state:
        recipe.load(run.config)
        st.session_state["lab_last"] = run.key
    return run


def go(key: str | None) -> None:
    """Show that run, or none, from now on."""
    st.session_state["lab_went"] = st.query_params.get("run"), key, time.monotonic() + ADDRESS_LAG
    shared.link(run=key)
    st.rerun()


def choose(selected: Run | None) -> None:
    """The recipe, and Train beside the seconds it will take. A recipe that is trained already shows at once."""
    st.subheader("Your recipe", anchor=False)
    try:
        config = recipe.form()
    except BadInput as error:
        st.error(str(error))
        return
    run = store.run(config.key())
    changed = st.session_state.get("lab_last") not in (None, config.key())
    st.session_state["lab_last"] = config.key()
    if changed and run and run.status == "done" and not (selected and selected.status in OPEN):
        go(run.key)
    cached = run is not None and run.status == "done"
    with st.container(horizontal=True, vertical_alignment="center"):
        word = "Show result" if cached else "Train"
        if st.button(word, type="primary", key="lab_train", icon=":material/play_arrow:"):
            start(config)
        n = f"{len(config.seeds)} net{'s' * (len(config.seeds) > 1)}"
        seconds = duration(expected_seconds(config, shared.all_runs(), cores()))
        st.caption("Cached: trained already." if cached else f"{seconds}, {n}")
    # Its highlighter is a third of a second of a browser's time: for those who open it.
    with st.expander("Show as PyTorch", icon=":material/code:", key="lab_code", on_change="rerun") as expander:
        if expander.open:
            code = script(config)
            name = f"{label(config).replace(', ', '-').replace(' ', '-')}.py"
            st.download_button("Download", code, name, "text/x-python", on_click="ignore")
            st.code(code, language="python", height=360)
    for caution in cautions(config):
        st.caption(f":orange[:material/warning:] {caution}")


def start(config: RunConfig, force: bool = False) -> None:
    run = store.request(config, force=force)
    if run.status in OPEN:
        ensure_worker(store)
    go(run.key)


def show(run: Run | None) -> None:
    """The run in the middle of the page: curves while it trains, its numbers when it is done."""
    if run:
        heading(run)
    pins = pinned(run) if run else []
    record = shared.record(run) if run and run.status == "done" else None
    ended = shared.live_chart(run if run and (run.status in OPEN or record) else None, pins)
    if ended:
        st.rerun()
    if run and run.status == "failed":
        st.error(run.error or "Training failed.", icon=":material/error:")
    if run and run.status == "cancelled":
        st.info("This run was cancelled; nothing of it was kept. Train starts it again.", icon=":material/cancel:")
    if run and run.status in ("failed", "cancelled") and st.button("Try again", key="lab_again"):
        start(run.config)
    if run and record:
        numbers(run, record)
        parameters(record)


def heading(run: Run) -> None:
    icon = shared.STATUS_ICONS[run.status]
    title, close = st.columns([5, 1], vertical_alignment="center")
    title.subheader(run.label, anchor=False)
    if close.button("Close", key="lab_close", icon=":material/close:", type="tertiary"):
        shared.link(pin=None)
        go(None)
    word = f"cached ({run.source})" if run.status == "done" else run.status
    color = {"done": "green", "failed": "red"}.get(run.status, "blue")
    st.markdown(f":{color}-badge[{icon} {word}] {setting_title(run.config)}")
    if run.status in OPEN and st.button("Cancel", key="lab_cancel", icon=":material/stop:"):
        store.cancel(run.key)


def pinned(run: Run) -> list[RunFile]:
    """Other finished runs laid under the curves, picked by the reader and kept in the link."""
    runs = shared.finished().runs
    st.session_state.setdefault("lab_pins", shared.linked("pin", runs))
    st.session_state["lab_pins"] = [key for key in st.session_state["lab_pins"] if key in runs and key != run.key]
    titles, left_out = shared.offered(st.session_state["lab_pins"])
    names = {key: title for key, title in titles.items() if key != run.key}
    chosen = st.multiselect(
        "Pin finished runs underneath",
        list(names),
        format_func=names.__getitem__,
        key="lab_pins",
        placeholder="Pick runs to compare with",
        help=left_out or None,
    )
    shared.link(pin=chosen)
    return shared.records(runs[key] for key in names if key in chosen)


def numbers(run: Run, record: RunFile) -> None:
    """Final values with intervals, and a sentence that reads them."""
    values = {metric: estimate(record.final(metric)) for metric in ("test_accuracy", "train_accuracy", "test_loss", "train_loss")}
    gap = difference(record.final("train_accuracy"), record.final("test_accuracy"))
    st.markdown(
        f"""| {len(run.config.seeds)} seeds | test | training |
|---|---|---|
| accuracy, % | **{percent(values["test_accuracy"])}** | {percent(values["train_accuracy"])} |
| loss, nats | {nats(values["test_loss"])} | {nats(values["train_loss"])} |
| gap, points | {percent(gap, signed=True)} | |
"""
    )
    st.caption(
        "Mean ± half the 95 % interval over seeds (Student's t), whole split, eval mode. The gap is training minus test accuracy: "
        "what the nets know of their training images only."
    )
    if st.button("Train again", key="lab_force", icon=":material/restart_alt:", help="The same recipe gives the same numbers."):
        start(run.config, force=True)


def parameters(record: RunFile) -> None:
    if not record.config.normalized_places:
        st.caption("This net has no batch norm, so it has no batch-norm parameters to show.")
        return
    st.subheader("Learned batch-norm parameters", anchor=False)
    with shared.wide("lab"):
        for array in BN_ARRAYS:
            shared.chart(figures.violins([record], array), figures.violins_alt([record], array), key=f"lab_{array}")
    st.caption("All seeds together. Up to six channels: points, one a channel and seed. The Parameters page moves them through the epochs.")


def five_arms() -> None:
    """Real results on the first page: every arm of the assignment, in a setting of the reader's choice."""
    groups = shared.finished().groups
    st.subheader("The assignment's five arms", anchor=False)
    if not groups:
        st.info("No arm is finished yet. Choose a preset and press Train, or import run files on the Runs page.")
        return
    titles = [setting_title(group[0].config) for group in groups]
    chosen = st.selectbox("Setting", titles, key="setting", bind="query-params")
    group = groups[titles.index(chosen)]
    results = figures.arm_results([(run.config, run.summary or {}) for run in group])
    shared.chart(figures.overview(results), figures.overview_alt(results), key="lab_overview")
    st.markdown(figures.overview_sentence(results, group[0].config))
    arms = "; ".join(f"{run.preset}: {PRESET_TITLES[run.preset]}" for run in group if run.preset)
    st.caption(f"Small marks: one seed each. Bar: the mean and its 95 % interval (Student's t). {arms}.")


st.title("Batch normalization or dropout?", anchor=False)
st.markdown("Train LeNet-5 with either, both or neither, several seeds at a time, and see what the data show.")
main, side = st.columns([2, 1], gap="large")
selected = shown_run()
with side, st.container(border=True):
    choose(selected)
with main:
    show(selected)
    five_arms()
