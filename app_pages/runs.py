"""Runs: every run with status, recipe and result; filter, sort, import, export, delete."""

import io
import zipfile

import streamlit as st

from app_pages import shared
from regcompare import tables
from regcompare.config import RegcompareError
from regcompare.store import OPEN, Run

store = shared.store()


def import_files() -> None:
    """Take run files in. What is none is refused by name; the others still come in."""
    with st.expander("Import run files", icon=":material/upload_file:"):
        files = st.file_uploader(
            "Run files (.safetensors)", accept_multiple_files=True, key=f"runs_upload_{st.session_state.get('runs_uploads', 0)}"
        )
        if not files:
            return
        taken, refused = [], []
        for file in files:
            try:
                taken.append(store.import_file(file.getvalue()).label)
            except RegcompareError as error:
                refused.append(f"{file.name}: {error}")
        st.session_state["runs_notes"] = (taken, refused)
        st.session_state["runs_uploads"] = st.session_state.get("runs_uploads", 0) + 1  # an empty uploader: no file is taken twice
        st.rerun()


def notes() -> None:
    taken, refused = st.session_state.pop("runs_notes", ([], []))
    if taken:
        st.success(f"Imported {len(taken)}: {', '.join(taken)}.", icon=":material/check_circle:")
    for text in refused:
        st.error(text, icon=":material/error:")


def table(runs: list[Run]) -> list[Run]:
    """The runs that pass the filters, as a table that sorts; returns those picked in it."""
    left, right = st.columns(2)
    found = sorted({run.status for run in runs})
    statuses = left.pills("Status", found, selection_mode="multi", key="runs_status", bind="query-params")
    words = right.text_input("Search", key="runs_search", placeholder="arm, images, key …", bind="query-params").lower().split()
    passing = [run for run in runs if run.status in (statuses or found) and all(word in tables.search_text(run) for word in words)]
    frame = tables.runs_table(passing)
    if frame.empty:
        st.info("No run passes these filters. Clear the search or the status above.")
        return []
    number = st.column_config.NumberColumn
    event = st.dataframe(
        frame,
        hide_index=True,
        key="runs_table",
        on_select="rerun",
        selection_mode="multi-row",
        column_config={
            "test accuracy, %": number(format="%.2f"),
            "±": number(format="%.2f", help="Half the 95 % interval over seeds (Student's t)"),
            "test loss": number(format="%.4f", help="Mean cross-entropy, nats"),
            "seconds": number(format="%.1f"),
            "lr": number(format="%g"),
            "created": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm", timezone="UTC"),
        },
        alt=f"{len(frame)} runs with status, recipe and result",
    )
    st.caption(f"{len(frame)} of {len(runs)} runs. A click on a heading sorts; tick rows to open, export or delete them.")
    return [passing[row] for row in event["selection"]["rows"] if row < len(passing)]


def actions(picked: list[Run]) -> None:
    done = [run for run in picked if run.status == "done"]
    with st.container(horizontal=True):
        if len(picked) == 1:
            st.page_link("app_pages/lab.py", label="Open in the Lab", icon=":material/science:", query_params={"run": picked[0].key})
        if done:
            keys = [run.key for run in done]
            st.page_link("app_pages/compare.py", label="Compare", icon=":material/compare_arrows:", query_params={"arms": ",".join(keys)})
            one = len(done) == 1
            name = done[0].file_name if one else "regcompare-runs.zip"
            st.download_button(
                "Run file" if one else "Run files", lambda: run_files(done), name, icon=":material/download:", on_click="ignore"
            )
            st.download_button(
                "Curves, CSV",
                lambda: curves(done, "csv"),
                "regcompare-curves.csv",
                "text/csv",
                icon=":material/download:",
                on_click="ignore",
            )
            st.download_button(
                "Curves, Parquet",
                lambda: curves(done, "parquet"),
                "regcompare-curves.parquet",
                icon=":material/download:",
                on_click="ignore",
            )
        waiting = [run for run in picked if run.status in OPEN]
        if waiting and st.button("Cancel", icon=":material/stop:", key="runs_cancel"):
            for run in waiting:
                store.cancel(run.key)
            st.rerun()
        if st.button("Delete", icon=":material/delete:", key="runs_delete"):
            confirm(picked)


def run_files(runs: list[Run]) -> bytes:
    """One run file, or a zip of several."""
    contents = {run.file_name: content for run in runs if (content := store.export_file(run.key))}
    if len(contents) == 1:
        return next(iter(contents.values()))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return out.getvalue()


def curves(runs: list[Run], form: str) -> bytes:
    frame, out = tables.curves_table(found for run in runs if (found := store.record(run.key))), io.BytesIO()
    (frame.to_csv if form == "csv" else frame.to_parquet)(out, index=False)
    return out.getvalue()


@st.dialog("Delete runs?")
def confirm(runs: list[Run]) -> None:
    st.markdown(f"{len(runs)} run{'s' * (len(runs) > 1)} with all their numbers: " + ", ".join(run.label for run in runs) + ".")
    st.caption("This cannot be undone. The files that came with regcompare stay in cache/published.")
    if st.button("Delete", type="primary", key="runs_delete_sure"):
        for run in runs:
            store.delete(run.key)
        st.rerun()


st.title("Runs", anchor=False)
import_files()
notes()
everything = list(shared.all_runs())
if everything:
    chosen = table(everything)
    if chosen:
        actions(chosen)
else:
    st.info("No run yet. Train one in the Lab, or import run files here.")
