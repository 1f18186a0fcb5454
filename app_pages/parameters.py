"""Parameters: the learned batch-norm values, how they moved, the activations, and the layers."""

import plotly.graph_objects as go
import streamlit as st

from app_pages import shared
from regcompare import figures, tables
from regcompare.config import PRESETS
from regcompare.layers import parameter_count
from regcompare.runfile import BN_ARRAYS, RunFile
from regcompare.store import Run


def with_batch_norm(runs: list[Run]) -> list[RunFile]:
    return [record for record in shared.records(runs) if record.config.normalized_places]


def violins(runs: list[Run], array: str, at: int) -> tuple[go.Figure, str]:
    return figures.violins(with_batch_norm(runs), array, at), figures.violins_alt(with_batch_norm(runs), array, at)


def drift(runs: list[Run], array: str) -> tuple[go.Figure, str]:
    return figures.drift(with_batch_norm(runs), array), figures.drift_alt(with_batch_norm(runs), array)


def activations(runs: list[Run]) -> tuple[go.Figure, str]:
    return figures.activations(shared.records(runs)), figures.activations_alt(shared.records(runs))


st.title("Parameters", anchor=False)
st.markdown(
    "Batch norm gives each channel $\\gamma\\,\\frac{x-\\mu}{\\sqrt{\\sigma^2+\\epsilon}}+\\beta$. Weight γ and bias β are learned; "
    "the running mean μ and variance σ² follow the batches and are what the net uses on test images."
)
chosen = shared.choose_arms("parameters", [name for name, fields in PRESETS.items() if fields["batch_norm"]])
normalized = with_batch_norm(chosen)
if normalized:
    last = max(record.config.epochs for record in normalized)
    at = st.slider("After epoch", 0, last, last, key="parameters_epoch", help="0 is the state before training.")
    with shared.wide("violins"):
        for array in BN_ARRAYS:
            shared.chart(*shared.once(violins, chosen, array, at), key=f"parameters_{array}")
    st.caption(
        "All seeds together; up to six channels as points, a density over them would be a lie. " + figures.violins_sentence(normalized, at)
    )
    st.subheader("How they moved", anchor=False)
    array = st.segmented_control(
        "Value", BN_ARRAYS, default="weight", format_func=figures.BN_TITLES.__getitem__, key="parameters_array", required=True
    )
    with shared.wide("drift"):
        shared.chart(*shared.once(drift, chosen, array), key="parameters_drift")
    st.caption("Line: median over seeds and channels. Band: the middle 90 % of them, not an interval of the mean.")
else:
    st.info("None of these arms has batch norm. Pick one that has, or look at the activations below.")

st.subheader("Activations", anchor=False)
with shared.wide("activations"):
    shared.chart(*shared.once(activations, chosen), key="parameters_activations")
st.caption(
    "What each place gives on after ReLU and pooling, on 128 test images in eval mode: 256 values a seed, all seeds together. "
    "A hidden unit at zero is silent."
)

st.subheader("Layers", anchor=False)
runs = {run.key: run for run in chosen}
key = st.selectbox("Net of", list(runs), format_func=lambda key: runs[key].label, key="parameters_net")
config = runs[key].config
st.dataframe(
    tables.layers_table(config), hide_index=True, height="content", alt=f"Layers of {runs[key].label} with output shapes and parameters"
)
st.caption(f"{parameter_count(config):,} parameters. -1 stands for the images of a batch.")
