"""The part of Compare that looks at test images: where the nets err, who is right where, and the other uncertainty. Not a page."""

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from app_pages import shared
from regcompare import figures, images, stats, tables
from regcompare.config import arm_names
from regcompare.runfile import RunFile
from regcompare.store import Run

SHOWN = 12


def confusion(runs: list[Run]) -> tuple[go.Figure, str]:
    records = shared.records(runs)
    return figures.confusion(records), figures.confusion_alt(records)


def show(runs: list[Run]) -> None:
    """Confusion, both uncertainties, and for one pair of arms the images that part them."""
    records = shared.records(runs)
    figure, alt = shared.once(confusion, runs)
    st.subheader("Where they err", anchor=False)
    with shared.wide("confusion"):
        shared.chart(figure, alt, key="compare_confusion")
    st.caption("Test images of each digit taken for another, a net: the mean over seeds. Right answers are left out.")
    st.dataframe(tables.images_table(records), hide_index=True, alt="Both uncertainties of each arm's test accuracy")
    st.caption(
        "Two uncertainties. Over seeds: how the mean would vary with other initial weights and orders. Over images: how one net's accuracy "
        "would vary on other test images of the same kind (Wilson's binomial interval). More seeds narrow the first only."
    )
    pairs = [(a, b) for i, b in enumerate(records) for a in records[i + 1 :] if same_images(a, b)]
    if pairs:
        names = [" against ".join(arm_names([a.config, b.config])) for a, b in pairs]
        options = [f"{a.config.key()}-{b.config.key()}" for a, b in pairs]
        titles = dict(zip(options, names, strict=True))
        st.session_state.setdefault("compare_pair", (shared.linked("pair", options) or options)[0])
        if st.session_state["compare_pair"] not in titles:  # its arms are no longer among those picked
            st.session_state["compare_pair"] = options[0]
        chosen = st.selectbox("On the same images", options, format_func=titles.__getitem__, key="compare_pair", persist_state="session")
        shared.link(pair=None if chosen == options[0] else chosen)
        disagreement(*pairs[options.index(chosen)])
    else:
        shared.link(pair=None)


def same_images(a: RunFile, b: RunFile) -> bool:
    return a.config.dataset == b.config.dataset and bool(set(a.config.seeds) & set(b.config.seeds))


def disagreement(a: RunFile, b: RunFile) -> None:
    """McNemar seed by seed, and the images that most nets of one arm get right and most of the other wrong."""
    first, second = arm_names([a.config, b.config])
    table = tables.mcnemar_table(a, b)
    st.dataframe(table, hide_index=True, alt=f"Images that only {first} or only {second} gets right, seed by seed")
    clear = sum(p < stats.ALPHA for p in table["p"].tolist())
    st.markdown(
        f"On {clear} of {len(table)} seeds the two nets differ by more than the choice of test images explains (McNemar, p < 0.05)."
    )
    right_a, right_b = (figures.share_right(record) for record in (a, b))
    pictures = images.for_labels(a.config.dataset, a.arrays["test/label"])
    if pictures is None:
        st.caption(f"The images of {a.config.dataset} are not on this machine yet. Train any recipe on them once, and they show here.")
        return
    for better, worse, gain in ((first, second, right_a - right_b), (second, first, right_b - right_a)):
        order = [int(i) for i in np.argsort(-gain, kind="stable")[:SHOWN] if gain[i] > 0]
        if order:
            st.markdown(f"**{better} right, {worse} wrong**, by share of seeds")
            captions = [f"a {a.arrays['test/label'][i]}: {100 * right_a[i]:.0f} %, {100 * right_b[i]:.0f} %" for i in order]
            st.image([255 - pictures[i] for i in order], captions, width=76)
    st.caption(f"Under each image: the true digit, and the share of nets that get it right, {first} first.")
