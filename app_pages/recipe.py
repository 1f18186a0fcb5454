"""The recipe as controls. Everything a widget allows or says comes from `config`. Not a page."""

import contextlib
from typing import Any

import streamlit as st

from regcompare.config import (
    ARM_FIELDS,
    BATCH_NORM_WORDS,
    DATASETS,
    DEFAULT_EPOCHS,
    DEFAULT_SEEDS,
    HIDDEN_PLACES,
    INPUT_NORMS,
    PLACES,
    PRESET_TITLES,
    PRESETS,
    SPLIT_SIZES,
    BadInput,
    Dropout,
    RunConfig,
    bounds,
    describe,
    format_seeds,
    make_config,
    preset,
    preset_of,
)
from regcompare.figures import PLACE_TITLES

PRESET_WORDS = {
    "baseline": "Control",
    "standard-bn": "Problem 2",
    "input-bn": "Problem 3",
    "dropout": "Problem 4",
    "bn-dropout": "Problem 5",
}
INPUT_WORDS = {"none": "None", "standard": "Standard", "batch": "Batch norm"}
BN_WORDS = {"none": "None", "conv": "Conv", "all": "All four"}
GROUPS = {"conv": ("conv1", "conv2"), "fc": ("fc1", "fc2")}
MAX_RATE, RATE_STEP = 0.9, 0.05


def _set(**values: Any) -> None:
    st.session_state.update({f"lab_{name}": value for name, value in values.items()})


def _get(name: str) -> Any:
    return st.session_state[f"lab_{name}"]


def load(config: RunConfig) -> None:
    """Show a recipe in the controls."""
    rates = config.dropout.model_dump()
    words = next((word for word, places in BATCH_NORM_WORDS.items() if places == config.batch_norm), None)
    each = words is None or any(len({rates[place] for place in places}) > 1 for places in GROUPS.values())
    _set(dataset=config.dataset, input_norm=config.input_norm, each=each, bn=words or "all", layers=list(config.batch_norm))
    _set(order=config.dropout_order)
    _set(optimizer=config.optimizer, lr=config.lr, batch_size=config.batch_size, epochs=config.epochs, train_size=config.train_size)
    _set(seeds=format_seeds(config.seeds), rate_conv=rates["conv1"], rate_fc=rates["fc1"], **{f"rate_{p}": rates[p] for p in PLACES})


def _start_from_preset() -> None:
    if name := _get("preset"):
        load(_current().model_copy(update={field: getattr(preset(name), field) for field in ARM_FIELDS}))


def _follow_dataset() -> None:
    _set(epochs=DEFAULT_EPOCHS[_get("dataset")], train_size=None)


def _fill_each() -> None:
    """The single layers begin as the groups stand, and the groups keep what they had."""
    if _get("each"):
        _set(layers=list(BATCH_NORM_WORDS[_get("bn")]), **{f"rate_{p}": _get(f"rate_{g}") for g, places in GROUPS.items() for p in places})


def _current() -> RunConfig:
    """The recipe that the controls show.

    Raises:
        BadInput: the seeds are not readable, or a value is out of its limits.
    """
    each = _get("each")
    rates = {"input": _get("rate_input")}
    rates |= {place: _get(f"rate_{place if each else group}") for group, places in GROUPS.items() for place in places}
    plain = {name: _get(name) for name in ("dataset", "train_size", "input_norm", "optimizer", "lr", "batch_size", "epochs", "seeds")}
    net = {"batch_norm": _get("layers") if each else _get("bn"), "dropout_order": _get("order")}
    return make_config(plain | net | {"dropout": {place: round(rate, 4) for place, rate in rates.items()}})


def form() -> RunConfig:
    """Draw the controls and return the recipe they show.

    Raises:
        BadInput: as `_current`.
    """
    if "lab_dataset" not in st.session_state:
        load(preset("standard-bn", seeds=DEFAULT_SEEDS))
    keep: dict[str, Any] = {"persist_state": "session"}
    with contextlib.suppress(BadInput):  # said below, where the recipe is asked for
        _set(preset=preset_of(_current()))
    st.segmented_control(
        "Start from",
        list(PRESETS),
        format_func=PRESET_WORDS.__getitem__,
        key="lab_preset",
        on_change=_start_from_preset,
        help="; ".join(f"{PRESET_WORDS[name]}: {name}, {title}" for name, title in PRESET_TITLES.items()),
    )
    st.segmented_control("Images", DATASETS, key="lab_dataset", on_change=_follow_dataset, help=describe("dataset"), required=True, **keep)
    st.segmented_control(
        "Input normalization",
        INPUT_NORMS,
        format_func=INPUT_WORDS.__getitem__,
        key="lab_input_norm",
        help=describe("input_norm"),
        required=True,
        **keep,
    )
    each = _get("each")
    st.segmented_control(
        "Batch norm in hidden layers",
        list(BN_WORDS),
        format_func=BN_WORDS.__getitem__,
        key="lab_bn",
        help=describe("batch_norm"),
        required=True,
        disabled=each,
        **keep,
    )
    _rate("Dropout, input", "input", "input", False)
    _rate("Dropout, conv layers", "conv", "conv1", each)
    _rate("Dropout, dense layers", "fc", "fc1", each)
    with st.expander("More: training, seeds, single layers", icon=":material/tune:"):
        _training(keep)
        words = {"after": "after batch norm", "before": "before batch norm"}
        described = describe("dropout_order")
        st.segmented_control(
            "Dropout stands", list(words), format_func=words.__getitem__, key="lab_order", help=described, required=True, **keep
        )
        st.toggle("Set each layer by itself", key="lab_each", on_change=_fill_each, **keep)
        if each:
            st.pills("Batch norm at", HIDDEN_PLACES, selection_mode="multi", format_func=PLACE_TITLES.__getitem__, key="lab_layers", **keep)
            for place in HIDDEN_PLACES:
                _rate(f"Dropout, {PLACE_TITLES[place]}", place, place, False)
    return _current()


def _rate(title: str, name: str, place: str, disabled: bool) -> None:
    described = Dropout.model_fields[place].description
    st.slider(title, 0.0, MAX_RATE, step=RATE_STEP, key=f"lab_rate_{name}", disabled=disabled, help=described, persist_state="session")


def _training(keep: dict[str, Any]) -> None:
    left, right = st.columns(2)
    left.number_input("Epochs", *bounds("epochs"), key="lab_epochs", help=describe("epochs"), **keep)
    right.number_input("Batch size", *bounds("batch_size"), key="lab_batch_size", help=describe("batch_size"), **keep)
    left.number_input("Learning rate", 1e-6, float(bounds("lr")[1]), step=0.001, format="%g", key="lab_lr", help=describe("lr"), **keep)
    right.segmented_control("Optimizer", ("adam", "sgd"), key="lab_optimizer", help=describe("optimizer"), required=True, **keep)
    left.text_input("Seeds", key="lab_seeds", help=describe("seeds") + " For example 0-7 or 0,5,9.", **keep)
    top = SPLIT_SIZES[_get("dataset")][0]
    right.number_input(
        "Training images",
        bounds("train_size")[0],
        top,
        key="lab_train_size",
        placeholder=f"all {top:,}",
        help=describe("train_size"),
        **keep,
    )
