"""The report: one file, whole, honest, the same from page and command line."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from serving import ROOT

from regcompare.config import make_config, preset
from regcompare.report import command, report
from regcompare.run import choose_arms, command_line
from regcompare.store import Store

QUESTIONS = [f"Problem {number}" for number in range(1, 6)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    one = Store(f"sqlite:///{tmp_path_factory.mktemp('report') / 's.db'}")
    one.import_published(ROOT / "cache" / "published")
    return one


def study(store, *names, **changes):
    runs = [store.run(preset(name, **changes).key()) for name in names]
    return runs, [store.record(run.key) for run in runs]


FIVE = ("baseline", "standard-bn", "input-bn", "dropout", "bn-dropout")


class Links(HTMLParser):
    """What a page would fetch, and the tags that are open."""

    def __init__(self):
        super().__init__()
        self.found, self.headings, self.heading = [], [], False

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href") and value]
        self.heading = tag == "h2"

    def handle_data(self, data):
        if self.heading:
            self.headings.append(data)
        self.heading = False


@pytest.mark.parametrize("changes", [{}, {"dataset": "mnist"}, {"dataset": "mnist", "epochs": 2, "lr": 0.01}])
def test_it_answers_all_five_and_fetches_nothing(store, changes):
    page = report(*study(store, *FIVE, **changes))
    links = Links()
    links.feed(page)
    assert links.found == []
    assert [heading for heading in links.headings if heading in QUESTIONS] == QUESTIONS
    assert "Not answered" not in page
    assert len(page.encode()) < 6_000_000
    for verdict in ("The benefits do not add up", "dropout is worse than standard-bn", "bn-dropout is worse than standard-bn"):
        assert verdict in page


def test_what_a_study_lacks_is_said(store):
    page = report(*study(store, "dropout", "baseline"))
    assert page.count("Not answered") == 4  # Problems 2 and 3, and both parts of 5
    assert "baseline is better than dropout" in page


def test_no_run_is_no_report():
    with pytest.raises(ValueError, match="finished runs"):
        report([], [])


def test_names_are_escaped(store):
    runs, records = study(store, "baseline")
    facts = records[0].facts | {"versions": {"torch": "<script>alert(1)</script>"}}
    page = report(runs, [type(records[0])(records[0].arrays, facts)])
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    "configs",
    [
        [preset(name) for name in FIVE],
        [preset("dropout", lr=0.02, seeds=(0, 5)), preset("baseline", train_size=100, optimizer="sgd")],
        [make_config({"input_norm": "none", "batch_norm": "conv1,fc2", "dropout": {"fc1": 0.3}, "batch_size": 8})],
        [make_config({"input_norm": "batch"})],
    ],
)
def test_the_command_makes_the_same_recipes(configs):
    """What the report prints, read by the command line's own parser, gives the keys that went in."""
    keys = []
    for line in command(configs).split(" && "):
        words = line.removeprefix("python -m regcompare.run ").split()
        keys += [config.key() for config in arms_of(words)]
    assert sorted(keys) == sorted(config.key() for config in configs)


def arms_of(words):
    """The arms that the command line would train."""
    from unittest import mock

    chosen = []

    def keep(*arguments):
        chosen.extend(choose_arms(*arguments))
        raise KeyboardInterrupt

    with mock.patch("regcompare.run.choose_arms", keep):
        command_line(words)
    return chosen


def test_the_command_line_writes_it_from_the_published_runs(tmp_path):
    path = tmp_path / "new" / "out.html"
    words = ["--study", "assignment", "--report", str(path), "--store", f"sqlite:///{tmp_path / 's.db'}", "--quiet"]
    done = subprocess.run([sys.executable, "-m", "regcompare.run", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    page = path.read_text()
    assert re.findall(r"<h2>(Problem \d)</h2>", page) == QUESTIONS
    assert "With 50 % of the dense units silenced" in page  # Problem 1 is measured too, on the nets that have it
    assert "Way that the median goes over training" in page
    assert path.stat().st_size < 6_000_000


@pytest.mark.parametrize("name", ["out.txt", "", ".", "folder.html"])
def test_a_bad_report_file_is_one_line_before_anything_trains(tmp_path, capsys, name):
    (tmp_path / "folder.html").mkdir()
    target = str(tmp_path / name) if name else ""
    assert command_line(["--report", target, "--store", f"sqlite:///{tmp_path / 's.db'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("--report must be ")
    assert not (tmp_path / "s.db").exists()
