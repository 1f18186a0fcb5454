"""Why: the ideas of Problem 1, each beside a measurement that a reader can replay with other arms."""

import streamlit as st

from app_pages import shared
from regcompare import figures, insights
from regcompare.config import DROPOUT_FIRST, FACTORIAL
from regcompare.ideas import CO_ADAPTATION, COVARIATE_SHIFT, VARIANCE_SHIFT, Idea
from regcompare.store import Run
from regcompare.sweeps import SWEEPS

TOPICS = {"shift": COVARIATE_SHIFT.title, "adaptation": CO_ADAPTATION.title, "both": VARIANCE_SHIFT.title, "buys": "What each buys"}


def explain(idea: Idea) -> None:
    st.subheader(idea.title, anchor=False)
    st.markdown(idea.text)
    st.caption(" ".join(idea.sources))


def covariate_shift(runs: list[Run]) -> None:
    explain(COVARIATE_SHIFT)
    found = shared.measured(runs, "activation_drift")
    with shared.wide("shift"):
        shared.chart(insights.shift(found), insights.shift_sentence(found), key="why_shift")
    st.caption(
        "What goes into each ReLU on one fixed batch of 256 test images while the net learns: 15th, 50th and 85th percentile, "
        "mean over seeds, as Fig. 1 of Ioffe & Szegedy (2015). Each arm is trained again for this."
    )
    for one in found:
        st.markdown(f"- {insights.shift_sentence([one])}")


def co_adaptation(runs: list[Run]) -> None:
    explain(CO_ADAPTATION)
    st.markdown("**Silencing units.** If units lean on each other, losing some costs the rest their use.")
    found = shared.measured(runs, "silencing")
    shared.chart(insights.silencing(found), insights.silencing_sentence(found), key="why_silencing")
    for one in found:
        st.markdown(f"- {insights.silencing_sentence([one])}")
    st.markdown(
        "**Correlation.** Mean absolute correlation between the units of a layer, on test images. Units that share a signal need not "
        "lean on "
        "each other: dropout can raise it, by making several units carry the same."
    )
    found = shared.measured(runs, "unit_correlation")
    words = insights.dots_sentence(found, "Mean absolute correlation")
    shared.chart(insights.dots(found, "mean |correlation|"), words, key="why_correlation")
    for one in found:
        st.markdown(f"- {insights.dots_sentence([one], 'Mean absolute correlation')}")
    st.markdown("**Sparsity.** How often a unit is silent, as Fig. 8 of Srivastava et al. (2014).")
    found = shared.measured(runs, "sparsity")
    shared.chart(insights.sparsity(found), insights.sparsity_sentence(found), key="why_sparsity")
    for one in found:
        st.markdown(f"- {insights.sparsity_sentence([one])}")
    st.markdown("**First-layer filters** of one net an arm: what the first convolution looks for.")
    found = shared.measured(runs, "first_filters")
    shared.chart(insights.filters(found), "The six kernels of the first convolution, a row an arm.", key="why_filters")


def both_together(runs: list[Run]) -> None:
    explain(VARIANCE_SHIFT)
    runs = [run for run in runs if run.config.batch_norm]
    if not runs:
        st.info("Pick an arm with batch norm in a hidden layer.")
        return
    found = shared.measured(runs, "variance_shift")
    words = insights.dots_sentence(found, "Variance shift, the larger of test/training and training/test variance")
    shared.chart(insights.dots(found, "variance shift", log=True), words, key="why_variance")
    if found:
        st.markdown(words + " 1 is no shift.")
    st.markdown(
        "**Re-estimating** the running statistics with dropout off takes the shift away. What is that worth? Look at an arm without "
        "dropout too: "
        "exact statistics in place of a running average can gain there just as much."
    )
    found = shared.measured(runs, "reestimate")
    compared = [
        insights.cost(one.name, insights.Measured(one.config, {"right": one.arrays["before"], "wrong": one.arrays["after"]}))
        for one in found
    ]
    shared.chart(insights.costs(compared, ("before", "after")), insights.reestimate_sentence(compared), key="why_reestimate")
    if compared:
        st.markdown(insights.reestimate_sentence(compared))


def what_each_buys() -> None:
    st.subheader("What each buys", anchor=False)
    st.markdown("One thing changes, all else stays. Train a recipe that differs in that one thing only, and it joins the lines.")
    for name in SWEEPS:
        shared.show_sweep(name)


st.title("Why", anchor=False)
st.session_state.setdefault("why_idea", (shared.linked("idea", TOPICS) or ["shift"])[0])
st.segmented_control("Idea", list(TOPICS), format_func=TOPICS.__getitem__, key="why_idea", required=True, persist_state="session")
topic: str = st.session_state["why_idea"]
shared.link(idea=None if topic == "shift" else topic)
if topic == "buys":
    what_each_buys()
else:
    arms = shared.choose_arms(f"why_{topic}", list(FACTORIAL), [DROPOUT_FIRST.key()] if topic == "both" else [])
    {"shift": covariate_shift, "adaptation": co_adaptation, "both": both_together}[topic](arms)
    st.caption(f"Every mean is over seeds with its 95 % interval. Places: {', '.join(figures.PLACE_TITLES.values())}.")
