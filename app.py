"""The frame: the ASGI app with its routes, and inside a session the navigation. `streamlit run app.py` serves it."""

import streamlit as st
from streamlit.runtime.scriptrunner_utils.script_run_context import get_script_run_ctx

from regcompare.live import Live

CSS = """<style>
[data-testid="stMainBlockContainer"] { padding-top: 4.5rem; padding-bottom: 4rem; }
@media (max-width: 640px) {
  [class*="st-key-wide_"] { overflow-x: auto; }
  [class*="st-key-wide_"] > * { min-width: 720px; }
}
</style>"""


def frame() -> None:
    """What every page has around it."""
    st.set_page_config(page_title="regcompare", page_icon="app_pages/icon.svg", layout="wide")
    page = st.navigation(
        [
            st.Page("app_pages/lab.py", title="Lab", icon=":material/science:", default=True),
            st.Page("app_pages/compare.py", title="Compare", icon=":material/compare_arrows:", url_path="compare"),
            st.Page("app_pages/parameters.py", title="Parameters", icon=":material/equalizer:", url_path="parameters"),
            st.Page("app_pages/why.py", title="Why", icon=":material/lightbulb:", url_path="why"),
            st.Page("app_pages/pitfalls.py", title="Pitfalls", icon=":material/report:", url_path="pitfalls"),
            st.Page("app_pages/runs.py", title="Runs", icon=":material/list_alt:", url_path="runs"),
        ],
        position="top",
    )
    st.html(CSS)
    page.run()


# Streamlit runs this file twice over: the server imports it for `app`, then each session runs it as its script.
if get_script_run_ctx(suppress_warning=True) is None:
    live = Live()
    app = st.App(__file__, routes=live.routes(), lifespan=live.lifespan)
else:
    frame()
