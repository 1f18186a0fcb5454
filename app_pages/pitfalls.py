"""Pitfalls: the mistakes everyone makes, each with its cost on finished nets."""

import numpy as np
import streamlit as st

from app_pages import shared
from regcompare import insights, stats
from regcompare.config import DEFAULT_SEEDS, FACTORIAL, NOTEBOOK_NET, arm_names, setting_title
from regcompare.runfile import RunFile
from regcompare.store import Run
from regcompare.sweeps import SWEEPS

# name: title, what it is, which of the arms it can be made on, measurement, which array holds the mistake
MISTAKES = {
    "normalization": (
        "Tested with another normalization than trained with",
        "The notebook that this tool began with trained its second net, batch norm for the input, on raw pixels and tested it on "
        "normalized ones: 92.44 %. In eval mode batch norm takes off the statistics of the training pixels, so it cannot repair others.",
        "other_normalization",
        "wrong",
    ),
    "own": (
        "The test set normalized by its own statistics",
        "It looks harmless, and with thousands of images from the same source it is. By batch, one image's answer hangs on its company.",
        "own_statistics",
        "batchwise",
    ),
    "train": (
        "model.eval() forgotten",
        "Batch norm then uses the statistics of the test batch (64 images here), and dropout goes on silencing units.",
        "train_mode",
        "wrong",
    ),
    "train2": (
        "model.eval() forgotten, two images at a time",
        "With a batch of two, batch norm's statistics are nearly noise. The nets were trained on batches of 64; this is the test alone.",
        "train_mode_2",
        "wrong",
    ),
    "logits": (
        "Dropout on the logits",
        "A silenced logit is no missing hint but a statement: 0 beside the others. The net is trained again for this, with and without.",
        "logits_dropout",
        "wrong",
    ),
}
OTHERS = {
    "batch": "Batch size 2 with batch norm",
    "seed": "One seed instead of eight",
    "epoch": "The best epoch picked on the test set",
}


def mistake(name: str, runs: list[Run]) -> None:
    title, text, measurement, wrong = MISTAKES[name]
    st.subheader(title, anchor=False)
    st.markdown(text)
    if name == "normalization":
        notebook()
    if name == "own":
        runs = [run for run in runs if run.config.input_norm == "standard"]
    found = [insights.cost(one.name, one, wrong) for one in shared.measured(runs, measurement)]
    shared.chart(insights.costs(found), insights.costs_sentence(found), key=f"pitfalls_{name}")
    for one in found:
        st.markdown(f"- {insights.costs_sentence([one])}")
    st.caption("Accuracy on the whole test split, mean and 95 % interval over seeds; the difference is paired by seed.")


def notebook() -> None:
    """The notebook's own second net, on eight seeds."""
    run = shared.store().run(NOTEBOOK_NET.key())
    if run and run.status == "done":
        for one in shared.measured([run], "other_normalization"):
            found = insights.cost("that net here", one)
            st.markdown(
                f"The same net, trained and tested so on eight seeds ({setting_title(run.config)}): {insights.costs_sentence([found])}"
            )


def small_batches() -> None:
    st.subheader(OTHERS["batch"], anchor=False)
    st.markdown(
        "The mean and variance of two images say little about the data, so every step normalizes by noise, and the running statistics "
        "used in testing differ from what training saw. The baseline shows what so small a batch costs by itself."
    )
    shared.show_sweep("batch")
    points = {(point.arm, point.x): point for point in shared.sweep_points(SWEEPS["batch"]) if point.config.seeds == DEFAULT_SEEDS}
    for arm in SWEEPS["batch"].arms:
        small, usual = points.get((arm, 2)), points.get((arm, 64))
        if small and usual:
            change = stats.difference(np.array(small.accuracy), np.array(usual.accuracy))
            st.markdown(f"- {arm}, batches of 2 in place of 64: {stats.percent(change, signed=True)} points")


def one_seed(records: list[RunFile]) -> None:
    st.subheader(OTHERS["seed"], anchor=False)
    st.markdown("Draw one seed an arm at random and name the winner. How often is it another arm than the one with the highest mean?")
    if len(records) < 2:
        st.info("Pick two arms or more.")
        return
    share, names = stats.winners([record.final("test_accuracy") for record in records]), arm_names([record.config for record in records])
    best = int(np.argmax([record.final("test_accuracy").mean() for record in records]))
    n = min(len(record.config.seeds) for record in records)
    listed = ", ".join(f"{name} {100 * won:.0f} %" for name, won in zip(names, share, strict=True))
    st.markdown(
        f"Winner by one seed: {listed}. In **{100 * (1 - share[best]):.0f} %** of the draws it is not {names[best]} (n = {n} seeds an arm)."
    )
    st.caption(
        "Every combination of one seed an arm is counted; arms that tie share the win. A share of these seeds, so it has no interval."
    )


def best_epoch(records: list[RunFile]) -> None:
    st.subheader(OTHERS["epoch"], anchor=False)
    st.markdown(
        "Keeping the epoch that did best on the test set makes the test set part of the training. What it adds to the reported accuracy:"
    )
    gains = [
        (record, stats.estimate(stats.optimism(record.history("test_accuracy"), record.arrays["history/epoch"]))) for record in records
    ]
    for name, (_, gain) in zip(arm_names([record.config for record in records]), gains, strict=True):
        st.markdown(f"- {name}: {stats.percent(gain, signed=True)} points")
    st.caption(
        "Best epoch minus the last, of each seed; mean and 95 % interval over seeds. It can only be positive, and is the most the bias "
        "can be."
    )


st.title("Pitfalls", anchor=False)
st.markdown("Each is easy to make, and each has its price. Measured on finished nets; pick others to replay it.")
titles = {name: one[0] for name, one in MISTAKES.items()} | OTHERS
st.session_state.setdefault("pitfalls_mistake", (shared.linked("mistake", titles) or ["normalization"])[0])
chosen = st.selectbox("Mistake", list(titles), format_func=titles.__getitem__, key="pitfalls_mistake", persist_state="session")
shared.link(mistake=None if chosen == "normalization" else chosen)
if chosen == "batch":
    shared.link(arms=None)
    small_batches()
else:
    arms = shared.choose_arms("pitfalls", [*FACTORIAL, "input-bn"])
    if chosen == "seed":
        one_seed(shared.records(arms))
    elif chosen == "epoch":
        best_epoch(shared.records(arms))
    else:
        mistake(chosen, arms)
