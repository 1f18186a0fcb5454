"""What a user does, in a real browser against the real server, store, worker and training."""

import re
import signal

import pytest
from playwright.sync_api import expect
from serving import ROOT, wait_until

from regcompare.config import preset
from regcompare.store import Store

pytestmark = pytest.mark.e2e


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    yield page
    assert page.faults == []
    context.close()


def open_page(page, url):
    page.goto(url)
    settled(page)


def settled(page):
    """The script has run and the page shows what it made."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=30_000)
    expect(page.get_by_test_id("stException")).to_have_count(0)


def set_recipe(page, epochs, preset=None, seeds="0-3", images="500"):
    """A recipe small enough to train in seconds, through the controls."""
    if preset:
        page.get_by_role("radio", name=preset).click()
        settled(page)
    if not page.get_by_role("spinbutton", name="Epochs").is_visible():
        page.get_by_text("More: training, seeds, single layers").click()
    for role, name, value in (("spinbutton", "Epochs", epochs), ("textbox", "Seeds", seeds), ("spinbutton", "Training images", images)):
        field = page.get_by_role(role, name=name)
        field.fill(str(value))
        field.press("Enter")
        page.wait_for_timeout(150)  # the rerun begins
        settled(page)


def train(page):
    """Press Train; returns the new run's key once its chart is there."""
    shown = page.locator(".rc-live").get_attribute("data-stream")
    page.get_by_role("button", name="Train", exact=True).click()
    stream = wait_until(lambda: (now := page.locator(".rc-live").get_attribute("data-stream")) != shown and now, 40)
    return stream.split("/")[2]


def points(page):
    return int(page.locator(".rc-live").get_attribute("data-points") or 0)


def live_points(page, more_than=0):
    return wait_until(lambda: (n := points(page)) > more_than and n, 30)


def test_first_page_shows_real_results_and_nothing_leaves_the_machine(server, page):
    """A newcomer sees the five arms, with n and intervals, and no request goes anywhere but to the server."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    open_page(page, server.url)
    expect(page.get_by_role("heading", name="The assignment's five arms")).to_be_visible()
    chart = page.get_by_test_id("stPlotlyChart").first
    expect(chart).to_be_visible()
    alt = page.locator('[aria-label*="standard-bn: 99"]').first
    assert re.search(r"standard-bn: 9\d\.\d\d ± \d\.\d\d \(n = 8\)", alt.get_attribute("aria-label"))
    assert [url for url in asked if not url.startswith((server.url, "data:", "blob:"))] == []


def test_train_a_recipe_and_read_it(server, page):
    """Preset, a change, Train: curves grow, then the numbers with n and the violins; asked for again it is there at once."""
    open_page(page, server.url)
    set_recipe(page, epochs=15, preset="Problem 3", seeds="0-5", images=800)
    expect(page.get_by_text(re.compile(r"about \d+ s, 6 nets"))).to_be_visible()
    train(page)
    few = live_points(page)
    live_points(page, few)
    expect(page.get_by_role("heading", name="Learned batch-norm parameters")).to_be_visible(timeout=60_000)
    settled(page)
    expect(page.get_by_text("cached (trained)")).to_be_visible()
    expect(page.get_by_role("cell", name=re.compile(r"± \d\.\d\d \(n = 6\)")).first).to_be_visible()
    for value in ("weight γ", "bias β", "running mean", "running variance"):
        violins = page.locator(f'[aria-label^="Batch-norm {value}. input-bn input: median"]')
        expect(violins.first).to_be_attached()
    assert page.locator(".rc-live .js-plotly-plot .scatterlayer .trace").count() >= 4
    expect(page.get_by_role("button", name="Show result")).to_be_visible()
    assert re.search(r"\?run=[0-9a-f]{16}$", page.url)
    run = Store(server.store_url).run(page.url[-16:])
    assert (run.status, run.config.seeds, run.config.train_size) == ("done", (0, 1, 2, 3, 4, 5), 800)


def test_the_curves_survive_a_reload_and_a_lost_connection(server, page):
    """Nothing is missing after a reload and after the network was away: the chart holds every point of the store."""
    open_page(page, server.url)
    set_recipe(page, epochs=60, preset="Control", seeds="0-1", images=600)
    key = train(page)
    live_points(page, 5)
    page.reload()
    settled(page)
    live_points(page, 8)
    page.context.set_offline(True)
    before = points(page)
    store = Store(server.store_url)
    reached = len(store.points(key))
    wait_until(lambda: len(store.points(key)) > reached + 5, 30)
    page.context.set_offline(False)
    live_points(page, before)
    drawn = wait_until(lambda: (page.evaluate(DRAWN_STEPS), len(store.points(key)))[0], 10)
    assert drawn == sorted(set(drawn))
    expect(page.get_by_text("cached (trained)")).to_be_visible(timeout=90_000)
    steps = Store(server.store_url).record(key).arrays["history/step"]
    wait_until(lambda: points(page) == len(steps), 10)


# x of the training-loss line: no point twice, none missing before the last
DRAWN_STEPS = """() => [...document.querySelector('.rc-plot').data.find(t => t.uid && t.uid.endsWith('train_loss')).x]"""


# the visible epochs, and whether the training loss is hidden
VIEW = """() => { const plot = document.querySelector('.rc-plot');
    return [plot.layout.xaxis.range, plot.data.find(t => t.uid.endsWith('train_loss')).visible]; }"""


def test_zoom_and_hidden_traces_stay_while_points_come(server, page):
    open_page(page, server.url)
    set_recipe(page, epochs=40, preset="Problem 2", seeds="0-1", images=500)
    train(page)
    live_points(page, 3)
    area = page.locator(".rc-plot .nsewdrag").first.bounding_box()
    page.mouse.move(area["x"] + 0.2 * area["width"], area["y"] + 60)
    page.mouse.down()
    page.mouse.move(area["x"] + 0.4 * area["width"], area["y"] + 160, steps=5)
    page.mouse.up()
    page.locator(".rc-plot .legendtoggle").first.click()
    wait_until(lambda: page.evaluate(VIEW)[1] == "legendonly")
    low, high = page.evaluate(VIEW)[0]
    assert (low, high) == (pytest.approx(8, abs=1), pytest.approx(16, abs=1))
    live_points(page, points(page) + 3)
    assert page.evaluate(VIEW) == [[low, high], "legendonly"]
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_text("This run was cancelled")).to_be_visible()


def test_cancel_stops_within_a_second_and_it_can_be_trained_again(server, page):
    open_page(page, server.url)
    set_recipe(page, epochs=100, preset="Problem 5", seeds="0-1", images=800)
    key = train(page)
    live_points(page)
    page.get_by_role("button", name="Cancel", exact=True).click()
    store = Store(server.store_url)
    wait_until(lambda: store.run(key).status == "cancelled", 2)
    expect(page.get_by_text("This run was cancelled; nothing of it was kept.")).to_be_visible()
    assert store.points(key) == []
    page.get_by_role("button", name="Try again").click()
    live_points(page)
    page.get_by_role("button", name="Cancel", exact=True).click()
    wait_until(lambda: store.run(key).status == "cancelled", 2)


def test_two_tabs_watch_the_same_run(server, page):
    """The second tab opens the link of the first: the same run, the same points, one training."""
    open_page(page, server.url)
    set_recipe(page, epochs=50, preset="Problem 4", seeds="0-1", images=500)
    train(page)
    live_points(page, 2)
    other = page.context.new_page()
    open_page(other, page.url)
    live_points(other, 2)
    expect(other.get_by_role("heading", name="dropout", exact=True)).to_be_visible()
    assert other.get_by_role("radio", name="Problem 4").get_attribute("aria-checked") == "true"
    other.get_by_role("button", name="Cancel", exact=True).click()
    for tab in (page, other):
        expect(tab.get_by_text("This run was cancelled")).to_be_visible()


def test_a_deep_link_on_a_fresh_server_and_no_process_left(fresh_server, page):
    """The first visit of a server's life is a link to a page; stopped while nothing trains, it leaves no process."""
    keys = [preset(name, dataset="mnist").key() for name in ("dropout", "baseline")]
    fresh_server.start()
    open_page(page, f"{fresh_server.url}/compare?arms={','.join(keys)}&metric=test_loss")
    expect(page.get_by_role("heading", name="Compare")).to_be_visible()
    expect(page.get_by_test_id("stMultiSelect").get_by_text("dropout (mnist, 5 epochs, lr 0.001)")).to_be_visible()
    expect(page.locator('[aria-label^="Test loss. dropout: 0.0774"]').first).to_be_attached()
    page.get_by_role("link", name="Lab").click()
    settled(page)
    wait_until(fresh_server.workers, 20)
    fresh_server.stop()
    wait_until(lambda: not fresh_server.workers(), 20)
    wait_until(lambda: not fresh_server.processes(), 5)


def test_killing_the_page_server_does_not_stop_a_run(fresh_server, page):
    fresh_server.start()
    open_page(page, fresh_server.url)
    set_recipe(page, epochs=30, preset="Control", seeds="0-1", images=500)
    key = train(page)
    live_points(page)
    fresh_server.stop(signal.SIGKILL)
    store = Store(fresh_server.store_url)
    wait_until(lambda: store.run(key).status == "done", 60)
    fresh_server.start()
    open_page(page, f"{fresh_server.url}/?run={key}")
    expect(page.get_by_text("cached (trained)")).to_be_visible()


def test_a_bad_upload_is_one_sentence_and_a_good_one_comes_in(server, page, tmp_path):
    open_page(page, f"{server.url}/runs")
    page.get_by_text("Import run files").click()
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04 a pickle, or anything else")
    good = next(path for path in (ROOT / "cache" / "published").glob("dropout-mnist-5k-*"))
    key = good.stem.rpartition("-")[2]
    Store(server.store_url).delete(key)
    page.locator('input[type="file"]').set_input_files([tmp_path / "bad.safetensors", good])
    expect(page.get_by_text("bad.safetensors: This is not a run file of regcompare.")).to_be_visible()
    expect(page.get_by_text("Imported 1: dropout.")).to_be_visible()
    assert Store(server.store_url).run(key).source == "imported"


def test_a_link_to_a_run_that_is_not_there_says_so(server, page):
    open_page(page, f"{server.url}/?run=0000000000000000")
    expect(page.get_by_text("There is no run '0000000000000000' in this store.")).to_be_visible()


def test_a_failing_run_says_why_and_what_to_change(server, page):
    open_page(page, server.url)
    set_recipe(page, epochs=5, preset="Problem 4", seeds="0-1", images=500)
    page.get_by_role("radio", name="sgd").click()
    settled(page)
    rate = page.get_by_role("spinbutton", name="Learning rate")
    rate.fill("10")
    rate.press("Enter")
    settled(page)
    train(page)
    expect(page.get_by_text(re.compile("Training stopped at step .* Lower --lr to 1 or less"))).to_be_visible(timeout=30_000)


def test_on_a_phone_nothing_is_wider_than_the_screen(server, browser):
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    page = context.new_page()
    for name in ("", "compare", "parameters", "runs"):
        open_page(page, f"{server.url}/{name}")
        page.get_by_test_id("stMain").wait_for()
        assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 390, name
    context.close()


def test_the_keyboard_is_enough(server, page):
    """Tab reaches preset and Train, Enter trains: no mouse."""
    open_page(page, server.url)
    set_recipe(page, epochs=2, preset="Control", seeds="0", images=200)
    page.get_by_role("spinbutton", name="Epochs").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText").strip().endswith("Train"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="baseline", exact=True)).to_be_visible(timeout=30_000)
    expect(page.get_by_text("cached (trained)")).to_be_visible(timeout=60_000)


def test_a_mistake_is_measured_on_a_net_of_ones_own(server, page):
    """Train, then ask Pitfalls for the price of a mistake: the worker measures, the page fills in by itself."""
    open_page(page, server.url)
    set_recipe(page, epochs=3, preset="Problem 2", seeds="0-2", images=500)
    key = train(page)
    expect(page.get_by_text("cached (trained)")).to_be_visible(timeout=60_000)
    open_page(page, f"{server.url}/pitfalls?arms={key}")
    page.get_by_role("button", name="Measure standard-bn").click()
    expect(page.get_by_text(re.compile(r"standard-bn: right \d\d\.\d\d ± .* wrong .* points"))).to_be_visible(timeout=30_000)


def test_why_explains_and_shows_what_is_published(server, page):
    open_page(page, f"{server.url}/why?idea=adaptation")
    expect(page.get_by_role("heading", name="Co-adaptation")).to_be_visible()
    expect(page.get_by_text(re.compile("With 50 % of the dense units silenced .* baseline .*n = 8"))).to_be_visible()
    open_page(page, f"{server.url}/why")
    expect(page.get_by_text(re.compile("Way that the median goes over training")).first).to_be_visible()


def test_compare_by_link_answers_and_hands_out_the_report(server, page, tmp_path):
    """Verdicts, the interaction, both uncertainties; the report is one HTML file that opens with the network off."""
    names = ("baseline", "standard-bn", "input-bn", "dropout", "bn-dropout")
    keys = ",".join(preset(name, dataset="mnist").key() for name in names)
    open_page(page, f"{server.url}/compare?arms={keys}")
    expect(page.get_by_text(re.compile("dropout is worse than standard-bn: -1.34 points"))).to_be_visible()
    expect(page.get_by_text(re.compile("The benefits do not add up")).first).to_be_visible()
    expect(page.get_by_text(re.compile("McNemar, p < 0.05"))).to_be_visible()
    with page.expect_download() as started:
        page.get_by_role("button", name="Report").click()
    path = tmp_path / "report.html"
    started.value.save_as(path)
    page.context.set_offline(True)
    page.goto(path.as_uri())
    expect(page.get_by_role("heading", name="Problem 5")).to_be_visible()
    assert page.locator(".js-plotly-plot .main-svg").count() > 10
    assert path.stat().st_size < 6_000_000
