"""Every page by Streamlit's own AppTest, on a real store: empty, with one run, with many; and what its controls do."""

import pytest
import sqlalchemy as sa
from serving import ROOT
from streamlit.testing.v1 import AppTest

from regcompare.config import make_config, preset
from regcompare.measurements import Measurements
from regcompare.runfile import RunFile
from regcompare.store import Store
from regcompare.sweeps import SWEEPS

PAGES = ("lab", "compare", "parameters", "why", "pitfalls", "runs")


@pytest.fixture(scope="module")
def published():
    """The shipped runs on mnist-5k by preset, as bytes."""
    return {path.name.split("-mnist-5k")[0]: path.read_bytes() for path in (ROOT / "cache" / "published").glob("*-mnist-5k-*")}


@pytest.fixture
def store(store_url, monkeypatch, tmp_path):
    """An empty store that no worker serves and no published run enters."""
    monkeypatch.setenv("REGCOMPARE_WORKER", "external")
    monkeypatch.setattr("regcompare.store.published_dir", lambda: tmp_path / "none")
    return Store(store_url)


def open_page(name, **query):
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30)
    for key, value in query.items():
        app.query_params[key] = value
    app.run()
    if name != "lab":
        app.switch_page(f"app_pages/{name}.py").run()
    assert not app.exception, [error.value for error in app.exception]
    return app


def fill(store, published, how_many):
    """So many runs: the five arms, then copies of one with other learning rates, and one of each unfinished kind."""
    contents = list(published.values())[:how_many]
    for content in contents:
        store.import_file(content)
    source = RunFile.from_bytes(published["baseline"])
    for number in range(how_many - len(contents)):
        config = make_config(source.config.model_dump() | {"lr": 0.001 + (number + 1) / 10_000})
        store.import_file(RunFile(source.arrays, source.facts | {"config": config.model_dump(mode="json")}).to_bytes())
    if how_many > 5:
        for number, status in enumerate(("queued", "running", "failed", "cancelled", "interrupted"), 1):
            run = store.request(preset("dropout", epochs=3, lr=number / 100))
            owner = f"owner-{status}"
            if status == "cancelled":
                store.cancel(run.key)
            elif status != "queued":
                store.claim(owner, key=run.key)
            if status == "failed":
                store.fail(run.key, "Training stopped at step 5. Lower --lr to 0.001 or less.", owner)
            elif status == "interrupted":
                store.release(owner)


def texts(app):
    kinds = (app.title, app.subheader, app.markdown, app.caption, app.info, app.warning, app.error, app.success)
    return "\n".join(element.value for kind in kinds for element in kind)


@pytest.mark.parametrize("how_many", [0, 1, 30])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_opens(store, published, name, how_many):
    """No fault in any state of the store; an empty one says what to do next."""
    fill(store, published, how_many)
    app = open_page(name)
    assert len(app.title) == 1
    if how_many == 0:
        assert app.info, "an empty page must say what to do"
        assert "Train" in app.info[0].value
        assert not app.get("plotly_chart")
    else:
        assert not app.info or name == "parameters"
        assert app.get("plotly_chart") or name == "runs"


@pytest.mark.parametrize("name", PAGES)
def test_a_store_that_cannot_be_opened_is_one_sentence(monkeypatch, tmp_path, name):
    monkeypatch.setenv("REGCOMPARE_STORE", f"sqlite:///{tmp_path}")
    app = open_page(name)
    assert len(app.error) == 1
    assert "--store must be a database that can be opened" in app.error[0].value


def test_every_chart_has_words_and_every_mean_its_n(store, published):
    fill(store, published, 5)
    for name in ("lab", "compare", "parameters"):
        app = open_page(name)
        for chart in app.get("plotly_chart"):
            assert len(chart.proto.alt) > 40, name
        if name != "parameters":
            assert "(n = 8)" in texts(app) or "n = 8" in texts(app)


def test_train_queues_the_recipe_that_the_controls_show(store):
    """Preset, then single changes; the key of the queued run is the key of that recipe, and the link names it."""
    app = open_page("lab")
    app.button_group(key="lab_preset").set_value("bn-dropout").run()
    app.slider(key="lab_rate_fc").set_value(0.3)
    app.number_input(key="lab_epochs").set_value(2)
    app.number_input(key="lab_train_size").set_value(300)
    app.text_input(key="lab_seeds").set_value("1,4-5").run()
    app.button(key="lab_train").click().run()
    assert not app.exception
    (run,) = store.runs()
    rates = {"input": 0.2, "conv1": 0.5, "conv2": 0.5, "fc1": 0.3, "fc2": 0.3}
    assert run.config == preset("bn-dropout", dropout=rates, epochs=2, train_size=300, seeds=(1, 4, 5))
    assert (run.status, app.query_params["run"]) == ("queued", run.key)


def test_an_address_that_is_out_of_date_does_not_hide_the_run_just_started(store):
    """A run's end asks for the page by itself. At the moment of a click it does so from the address before the click."""
    old = store.request(preset("dropout"))
    store.cancel(old.key)
    app = open_page("lab", run=old.key)
    app.number_input(key="lab_epochs").set_value(2).run()
    app.button(key="lab_train").click().run()
    new = app.query_params["run"]
    assert new != old.key
    app.query_params["run"] = old.key
    app.run()
    assert app.query_params["run"] in (new, [new])
    assert "cancelled" not in texts(app)


def test_single_layers_begin_as_the_groups_stand(store):
    app = open_page("lab")
    app.button_group(key="lab_preset").set_value("bn-dropout").run()
    app.toggle(key="lab_each").set_value(True).run()
    app.button_group(key="lab_layers").set_value(["conv1", "fc2"])
    app.slider(key="lab_rate_conv2").set_value(0.1).run()
    app.button(key="lab_train").click().run()
    (run,) = store.runs()
    assert run.config.batch_norm == ("conv1", "fc2")
    assert run.config.dropout.model_dump() == {"input": 0.2, "conv1": 0.5, "conv2": 0.1, "fc1": 0.5, "fc2": 0.5}


def test_epochs_follow_the_images(store):
    app = open_page("lab")
    assert app.number_input(key="lab_epochs").value == 30
    app.button_group(key="lab_dataset").set_value("mnist").run()
    assert app.number_input(key="lab_epochs").value == 5


def test_bad_seeds_are_one_sentence_and_nothing_is_lost(store):
    app = open_page("lab")
    app.button_group(key="lab_preset").set_value("dropout").run()
    app.text_input(key="lab_seeds").set_value("eight").run()
    (error,) = app.error
    assert error.value.startswith("--seeds must be ")
    assert "got 'eight'" in error.value
    assert not [button for button in app.button if button.key == "lab_train"]
    assert app.slider(key="lab_rate_fc").value == 0.5
    app.text_input(key="lab_seeds").set_value("0-7").run()
    assert not app.error
    assert app.button(key="lab_train")


def test_a_recipe_trained_already_shows_at_once_as_cached(store, published):
    """Turning the controls to a finished recipe shows it, with no press of a button."""
    fill(store, published, 5)
    app = open_page("lab")
    app.button_group(key="lab_preset").set_value("dropout").run()
    assert app.query_params["run"] == preset("dropout").key()
    assert "cached (imported)" in texts(app)
    assert "(n = 8)" in texts(app)
    assert app.button(key="lab_train").label == "Show result"
    assert [run.status for run in store.runs()] == ["done"] * 5


def test_a_link_brings_run_and_recipe(store, published):
    fill(store, published, 5)
    app = open_page("lab", run=preset("bn-dropout").key())
    assert app.slider(key="lab_rate_conv").value == 0.5
    assert app.button_group(key="lab_bn").value == "all"
    assert "cached" in texts(app)
    assert len(app.get("plotly_chart")) == 5  # four parameters and the five arms


def test_train_again_queues_the_same_run(store, published):
    fill(store, published, 1)
    (run,) = store.runs()
    app = open_page("lab", run=run.key)
    app.button(key="lab_force").click().run()
    assert not app.exception
    assert store.run(run.key).status == "queued"


@pytest.mark.parametrize(("status", "says"), [("failed", "Lower --lr"), ("cancelled", "This run was cancelled")])
def test_a_run_that_ended_badly_says_so_and_can_be_tried_again(store, published, status, says):
    fill(store, published, 6)
    run = next(run for run in store.runs() if run.status == status)
    app = open_page("lab", run=run.key)
    assert says in texts(app)
    app.button(key="lab_again").click().run()
    assert store.run(run.key).status == "queued"


def test_compare_by_link(store, published):
    """Arms and measure come from the link; what is not there is left out; other arms change the link."""
    fill(store, published, 5)
    keys = [preset(name).key() for name in ("dropout", "baseline")]
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30).switch_page("app_pages/compare.py")
    app.query_params.update({"arms": ",".join([*keys, "nonsense"]), "metric": "test_loss"})
    app.run()
    assert not app.exception
    assert app.multiselect(key="compare_arms").value == keys
    assert app.session_state["compare_metric"] == "test_loss"
    table = app.dataframe[0].value
    assert table["arm"].tolist() == ["dropout", "baseline"]
    app.multiselect(key="compare_arms").set_value(keys[:1]).run()
    assert app.query_params["arms"] == keys[0]


def test_compare_warns_of_arms_that_do_not_pair(store, published):
    fill(store, published, 1)
    one = store.runs()[0]
    source = store.record(one.key)
    config = make_config(source.config.model_dump() | {"seeds": tuple(range(8, 16))})
    store.import_file(RunFile(source.arrays, source.facts | {"config": config.model_dump(mode="json")}).to_bytes())
    app = open_page("compare", arms=f"{one.key},{config.key()}")
    app.multiselect(key="compare_arms").set_value([one.key, config.key()]).run()
    assert any("not paired" in warning.value for warning in app.warning)


def test_parameters_slider_goes_from_the_initial_state_to_the_end(store, published):
    fill(store, published, 5)
    app = open_page("parameters")
    slider = app.slider(key="parameters_epoch")
    assert (slider.min, slider.max, slider.value) == (0, 30, 30)
    slider.set_value(0).run()
    assert not app.exception
    weights = next(chart.proto.alt for chart in app.get("plotly_chart") if chart.proto.alt.startswith("Batch-norm weight"))
    assert "median 1.000, 5 to 95 % from 1.000 to 1.000" in weights


def test_runs_filters(store, published):
    fill(store, published, 30)
    app = open_page("runs")
    assert len(app.dataframe[0].value) == 35
    app.button_group(key="runs_status").set_value(["failed"]).run()
    assert app.dataframe[0].value["status"].tolist() == ["failed"]
    app.button_group(key="runs_status").set_value([])
    app.text_input(key="runs_search").set_value("Input-BN mnist-5k").run()
    assert app.dataframe[0].value["arm"].tolist() == ["input-bn"]
    app.text_input(key="runs_search").set_value("no such run").run()
    assert "No run passes these filters" in app.info[0].value


def test_thirty_runs_cost_no_more_queries_than_one(store, published):
    fill(store, published, 1)
    open_page("runs")
    from app_pages import shared

    counted = []
    sa.event.listen(shared.store().engine, "before_cursor_execute", lambda *call: counted.append(call[2]))
    open_page("runs")
    few = len(counted)
    fill(store, published, 30)
    counted.clear()
    open_page("runs")
    assert 0 < len(counted) <= few + 2  # the list itself is read again, once


@pytest.mark.parametrize("topic", ["shift", "adaptation", "both", "buys"])
def test_every_topic_of_why_opens(store, published, topic):
    """Explained with its source; what is not measured can be asked for."""
    fill(store, published, 5)
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30).switch_page("app_pages/why.py")
    app.query_params["idea"] = topic
    app.run()
    assert not app.exception
    assert app.get("plotly_chart")
    if topic != "buys":
        assert any("Measure" in button.label for button in app.button)
        assert any(year in texts(app) for year in ("2014", "2015", "2019"))


def test_asking_for_a_measurement_queues_it(store, published):
    fill(store, published, 5)
    app = open_page("pitfalls")
    app.selectbox(key="pitfalls_mistake").set_value("train").run()
    app.button(key="measure_train_mode").click().run()
    assert not app.exception
    states = {run.label: Measurements(store).find(run.key, "train_mode").status for run in store.runs()}
    assert set(states.values()) == {"queued"}
    assert len(states) == 5
    assert "Measuring" in texts(app)


def test_pitfalls_that_need_no_net_answer_at_once(store, published):
    fill(store, published, 5)
    app = open_page("pitfalls")
    app.selectbox(key="pitfalls_mistake").set_value("seed").run()
    assert "Winner by one seed: baseline" in texts(app)
    app.selectbox(key="pitfalls_mistake").set_value("epoch").run()
    assert not app.exception
    assert texts(app).count("(n = 8)") >= 5


def test_the_smallest_batch_is_trained_not_only_tested(store, published):
    fill(store, published, 5)
    app = open_page("pitfalls")
    app.selectbox(key="pitfalls_mistake").set_value("batch").run()
    assert not app.exception
    assert "What each buys" not in texts(app)
    costs = [line for line in texts(app).splitlines() if "batches of 2 in place of 64:" in line]
    assert len(costs) == len(SWEEPS["batch"].arms)
    assert all("(n = 8" in line for line in costs)


def test_the_pair_of_arms_is_in_the_link(store, published):
    """Images that one arm gets right and the other wrong can be sent to somebody."""
    fill(store, published, 5)
    app = open_page("compare")
    box = app.selectbox(key="compare_pair")
    chosen = box.options[2]
    box.select_index(2).run()
    pair = app.query_params["pair"][0] if isinstance(app.query_params["pair"], list) else app.query_params["pair"]
    again = AppTest.from_file(str(ROOT / "app.py"), default_timeout=30).switch_page("app_pages/compare.py")
    again.query_params["pair"] = pair
    again.run()
    assert not again.exception
    box = again.selectbox(key="compare_pair")
    assert box.value == pair
    assert box.format_func(pair) == chosen
    kept = [key for key in again.multiselect(key="compare_arms").value if key not in pair.split("-")]
    again.multiselect(key="compare_arms").set_value(kept).run()
    assert not again.exception
    assert "pair" not in again.query_params


def test_compare_gives_a_verdict_for_every_pair_and_the_interaction(store, published):
    fill(store, published, 5)
    app = open_page("compare")
    said = texts(app)
    assert said.count("Holm over 10") == 10
    assert "The benefits do not add up" in said
    assert "McNemar" in said
