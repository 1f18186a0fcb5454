"""The command line: what it refuses, what it prints, what it leaves behind. Run: pytest tests/test_run.py"""

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regcompare.config import PRESETS, RunConfig, option_name, preset
from regcompare.run import command_line
from regcompare.runfile import METRICS, RunFile
from regcompare.store import Store

TINY = ["--preset", "baseline", "--train-size", "200", "--epochs", "1", "--seeds", "0-1", "--quiet"]
HELP = "Run python -m regcompare.run --help to see every option."
HUGE = "9" * 5000


@pytest.fixture
def run(tmp_path, capsys):
    """Call the command on a store of the test's own: (exit code, stdout, stderr)."""

    def call(*arguments, store=f"sqlite:///{tmp_path}/s.db"):
        code = command_line([*arguments, "--store", store])
        return code, *capsys.readouterr()

    return call


# Bad input: exit code 2, nothing on stdout, one line on stderr - what, the value, what is allowed, the way out


SEEDS = "1 to 64 different whole numbers from 0 to 999999999, as a range or a list"
SIZE = "a whole number from 20 to the number of training images (4,000 for mnist-5k, else 60,000)"
RATE = "a number of at least 0 and below 1"
PLACES = "PLACE=RATE pairs, each place once: input, conv1, conv2, fc1, fc2"
BN = "none, conv, all, or a list of conv1, conv2, fc1, fc2"
ARMS = "baseline, standard-bn, input-bn, dropout, bn-dropout"
BAD_VALUES = [
    *(("--dataset", value, "mnist-5k, mnist or fashion-mnist", "--dataset mnist-5k") for value in ("cifar", "", "MNIST")),
    *(("--input-norm", value, "none, standard or batch", "--input-norm standard") for value in ("batchnorm", "")),
    *(("--hidden-bn", value, BN, "--hidden-bn conv1,fc2") for value in ("conv3", "", "input", "conv1,,fc2", "none,conv1", "conv,fc1")),
    *(("--input-dropout", value, RATE, "For example: 0.5.") for value in ("1", "-0.1", "nan", "inf", "half", "")),
    *(("--hidden-dropout", value, RATE, "For example: 0.5.") for value in ("1.0", "1e400", "0,5")),
    *(("--dropout", value, PLACES, "--dropout conv1=.2,fc1=.5") for value in ("", "fc3=.2", ".5", "conv1=.2,conv1=.2", "conv1:.1")),
    *(("--epochs", value, "a whole number from 1 to 200", "--epochs 5") for value in ("0", "201", "-1", "1.5", "", "nan", "1e400", "five")),
    *(("--batch-size", value, "a whole number from 2 to 4096", "--batch-size 64") for value in ("1", "4097", "64.5", "inf")),
    *(("--lr", value, "a number above 0 and at most 10", "--lr 0.001") for value in ("0", "-1", "11", "nan", "inf", "1e-400", "0,1", "")),
    *(("--optimizer", value, "adam or sgd", "--optimizer adam") for value in ("adamw", "SGD", "")),
    *(
        ("--seeds", value, SEEDS, "--seeds 0-3 or --seeds 0,5,9")
        for value in ("", "x", "-1", "3-0", "1,1", "0-3,2", "0-64", "1000000000", "1.5")
    ),
    *(("--train-size", value, SIZE, "--train-size 1000") for value in ("19", "4001", "60001", "all", "-5", "nan", "")),
    *(("--preset", value, f"one of {ARMS}", "--preset standard-bn") for value in ("bn", "", "baselíne")),
    *(("--jobs", value, "a whole number from 1 to 256", "--jobs 2") for value in ("0", "257", "-1", "two", "1.5", "", "²")),
    *(("--device", value, "auto, cpu or cuda", "Leave --device out") for value in ("gpu", "cuda:0", "")),
    *((option, "", "a name that is not empty", f"Leave {option} out") for option in ("--study", "--data-dir", "--export")),
    ("--study", "nowhere.toml", "'assignment' or a TOML file that can be read (No such file or directory)", "[[arms]]"),
    ("--study", "/", "'assignment' or a TOML file that can be read (Is a directory)", "[[arms]]"),
    ("--export", "/proc/nothing", "a folder that can be written to (No such file or directory)", "Name another folder."),
    ("--export", "/dev/null", "a folder that can be written to (File exists)", "Name another folder."),
    ("--export", "a\0b", "a folder that can be written to (embedded null byte)", "Name another folder."),
]


def refused(result, *parts):
    """One line that holds every part, in that order; nothing else came out."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    found = re.search(".*".join(re.escape(part) for part in parts), err)
    assert found, f"{parts} are not in {err}"


@pytest.mark.parametrize(("option", "value", "allowed", "way_out"), BAD_VALUES)
def test_a_bad_value(run, option, value, allowed, way_out):
    quoted = value.replace("\0", "\\x00")
    refused(run(option, value), f"{option} must be ", allowed, f", got '{quoted}'. ", way_out)


@pytest.mark.parametrize(
    "option", ["--epochs", "--batch-size", "--lr", "--seeds", "--train-size", "--jobs", "--dataset", "--preset", "--study"]
)
@pytest.mark.parametrize("value", [HUGE, "a\nb", "\x1b[31m", "日本", "\udcff"])
def test_a_wild_value_is_shown_on_one_line(run, option, value):
    """Cut to 60 characters, line breaks and escapes written out, letters of any language kept."""
    shown = HUGE[:57] + "..." if value == HUGE else value if value.isprintable() else repr(value)[1:-1]
    refused(run(option, value), f"{option} must be ", f", got '{shown}'. ")


@pytest.mark.parametrize(
    ("rate", "value"), [("conv1", ""), ("conv1=", ""), ("conv1=1.5", "1.5"), ("fc1=.2,fc2=nan", "nan"), ("input=.1=.2", ".1=.2")]
)
def test_a_bad_rate_names_its_place(run, rate, value):
    place = rate.rpartition(",")[2].partition("=")[0]
    refused(run("--dropout", rate), f"--dropout {place} must be {RATE}, got '{value}'. For example: 0.5.")


@pytest.mark.parametrize(
    "option", [f"--{name}" for name in ("lr", "seeds", "study", "preset", "jobs", "device", "export", "data-dir", "dropout")]
)
def test_a_missing_value(capsys, option):
    code = command_line([option])
    refused((code, *capsys.readouterr()), option, "requires an argument", HELP)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--epoch", "2"], ["--epoch", "--epochs"]),
        (["--learning-rate", "1"], ["--learning-rate"]),
        (["-x"], ["-x"]),
        (["--no\npe"], ["--no"]),
        (["mnist"], ["unexpected extra argument", "mnist"]),
        (["--seeds", "0-3", "4-7"], ["unexpected extra argument", "4-7"]),
        (["--json=1"], ["--json", "does not take a value"]),
        (["--force=yes"], ["--force", "does not take a value"]),
        (["--quiet=no"], ["--quiet", "does not take a value"]),
    ],
)
def test_a_wrong_option(run, arguments, parts):
    refused(run(*arguments), *parts, HELP)


@pytest.mark.parametrize("study", ["assignment", "mine.toml"])
def test_options_that_exclude_each_other(run, study):
    refused(run("--study", study, "--preset", "dropout"), "--study", "without --preset", study, "Use just one of --study and --preset.")


def test_a_train_size_above_the_data_set(run):
    """Also where the data set comes from elsewhere, and the later option counts."""
    refused(run("--dataset", "mnist", "--train-size", "60001"), "--train-size", SIZE, "'60001'", "--train-size 1000")
    refused(run("--dataset", "mnist", "--dataset", "mnist-5k", "--train-size", "5000"), "--train-size", SIZE, "'5000'", "--train-size 1000")


def test_cuda_that_is_not_there(run):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    refused(run("--device", "cuda"), "--device must be auto or cpu on this machine", "'cuda'", "Leave --device out")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense", "Could not parse"),
        ("runs.db", "Could not parse"),
        ("a\nb", "Could not parse"),
        ("foo://x", "foo"),
        ("sqlite://", "only in memory"),
        ("sqlite:///:memory:", "only in memory"),
        ("sqlite:////proc/nothing/s.db", "No such file"),
        ("sqlite:////dev/null/s.db", "/dev/null"),
        ("sqlite:////", "unable to open database file"),
        ("sqlite:///x.db?timeout=soon", "soon"),
        ("postgresql://host:port/x", "port"),
    ],
)
def test_a_store_that_cannot_be_opened(run, url, reason):
    shown = url.replace("\n", "\\n")
    refused(run(*TINY, store=url), "--store must be a database that can be opened", f"'{shown}'", reason, "For example: sqlite:///runs.db")


def test_an_empty_store(run):
    refused(run(*TINY, store=""), "--store must be a name that is not empty, got ''. Leave --store out")


def test_a_store_that_is_no_database(run, tmp_path):
    (tmp_path / "x.db").write_text("no database" * 1000)
    refused(run(*TINY, store=f"sqlite:///{tmp_path}/x.db"), "--store", "x.db", "file is not a database", "sqlite:///runs.db")


@pytest.mark.parametrize("url", ["mysql://u:secret@h/x", "postgresql://u:secret@h:port/x", "no://u:secret@h"])
def test_a_password_is_never_shown(run, url):
    result = run(*TINY, store=url)
    refused(result, "--store", "u:***@h")
    assert "secret" not in result[2]


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"\x00\x00\x08\x03", bytes(7_840_016)], ids=["empty", "web page", "cut", "zeros"]
)
def test_a_damaged_raw_file(run, tmp_path, content):
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    result = run("--dataset", "mnist", "--data-dir", str(tmp_path), *TINY)
    refused(result, f"{path} is damaged", f"({len(content):,} bytes)", "Remove", "--data-dir", "--dataset mnist-5k")


# Study files


FIELDS = "one of dataset, train_size, input_norm, batch_norm, dropout, dropout_order, optimizer, lr, batch_size, epochs, seeds"
BAD_STUDIES = [
    ("", "--study", "at least one [[arms]]"),
    ("epochs = 3", "--study", "at least one [[arms]]"),
    ("arms = []", "--study", "at least one [[arms]]"),
    ("arms = [1]", "--study", "at least one [[arms]]"),
    ("arms = 'baseline'", "--study", "at least one [[arms]]"),
    ("[arms]\npreset = 'baseline'", "--study", "at least one [[arms]]"),
    ("epochs = = 3", "--study", "valid TOML (Invalid value (at line 1, column 10))"),
    ("[[arms]]\nlr = 1\nlr = 2", "--study", "valid TOML (Cannot overwrite a value"),
    ("x = 'a\nb'", "--study", "valid TOML"),
    ("x = " + HUGE, "--study", "valid TOML"),
    ("x = " + "[" * 100_000, "--study", "valid TOML"),
    ("x = 1\ud800", "--study", "valid TOML"),
    ("[[arms]]\npreset = 'bn'", "preset in", f"one of {ARMS}, got 'bn'"),
    ("[[arms]]\npreset = ''", "preset in", f"one of {ARMS}, got ''"),
    ("[[arms]]\npreset = ['dropout']", "preset in", f"one of {ARMS}, got '[\"dropout\"]'"),
    ("[[arms]]\nlearning_rate = 1", "a recipe's field in", f"{FIELDS}, got 'learning_rate'"),
    ("colour = 1\n[[arms]]", "a recipe's field in", f"{FIELDS}, got 'colour'"),
    ('[[arms]]\n"a\\nb" = 1', "a recipe's field in", f"{FIELDS}, got 'a\\nb'"),
    ("[[arms]]\nlr = nan", "lr in", "a number above 0 and at most 10, got 'NaN'"),
    ("lr = inf\n[[arms]]", "lr in", "a number above 0 and at most 10, got 'Infinity'"),
    ("[[arms]]\n[[arms]]\nepochs = 2024-01-01", "epochs in", "a whole number from 1 to 200, got"),
    ("[[arms]]\nseeds = '3-1'", "seeds in", f"{SEEDS}, got '3-1'"),
    ("[[arms]]\nseeds = [1, 1]", "seeds in", f"{SEEDS}, got '[1, 1]'"),
    ("[[arms]]\ntrain_size = 4001", "train_size in", f"{SIZE}, got '4001'"),
    ("[[arms]]\ndataset = ['mnist']", "dataset in", "mnist-5k, mnist or fashion-mnist, got '[\"mnist\"]'"),
    ("[[arms]]\nbatch_norm = [['conv1']]", "batch_norm in", f"{BN}, got '[[\"conv1\"]]'"),
    ("[[arms]]\ndropout = 0.5", "dropout in", "rates of at least 0 and below 1 at input, conv1, conv2, fc1, fc2, got '0.5'"),
    ("[[arms]]\ndropout.fc3 = 0.5", "a place of dropout in", "one of input, conv1, conv2, fc1, fc2, got 'fc3'"),
    ("[[arms]]\ndropout.fc1 = 1.0", "dropout fc1 in", f"{RATE}, got '1.0'"),
]


@pytest.mark.parametrize(("text", "what", "allowed"), BAD_STUDIES)
def test_a_bad_study_file(run, tmp_path, text, what, allowed):
    """The line names the file, and ends with what to do."""
    path = tmp_path / "s.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    result = run("--study", str(path))
    refused(result, what, allowed)
    assert str(path) in result[2] or (what == "--study" and str(path)[:57] in result[2])
    assert result[2].rstrip().endswith(("Correct it in that file.", "For example: epochs = 5, then [[arms]] with preset = 'dropout'."))


# What it prints


def timeless(run_object):
    return {name: value for name, value in run_object.items() if name not in ("seconds", "images_per_second", "cached")}


def test_the_json_contract(run):
    """DESIGN, Commands: fields, lengths and ranges on a real run; asked again it is shown, with --force trained again."""
    code, out, err = run(*TINY[:-1], "--preset", "input-bn", "--json")
    assert code == 0
    assert err
    answer = json.loads(out)
    assert {"runs", "comparisons", "interaction"} <= answer.keys()
    assert isinstance(answer["comparisons"], list)
    assert [one["preset"] for one in answer["runs"]] == ["baseline", "input-bn"]
    for one in answer["runs"]:
        fields = {
            "key",
            "preset",
            "config",
            "status",
            "cached",
            "seconds",
            "images_per_second",
            "seeds",
            "parameters",
            "history",
            "batch_norm",
        }
        assert one.keys() == fields | set(METRICS)
        config = preset(one["preset"], train_size=200, epochs=1, seeds=(0, 1))
        assert (one["key"], one["config"]) == (config.key(), config.model_dump(mode="json"))
        assert (one["status"], one["cached"], one["seeds"]) == ("done", False, [0, 1])
        assert one["seconds"] > 0
        assert one["images_per_second"] == pytest.approx(2 * 200 / one["seconds"])
        assert all(len(one[metric]) == 2 for metric in METRICS)
        assert all(0 <= value <= 1 for metric in METRICS if "accuracy" in metric for value in one[metric])
        assert all(0 < value < 10 for metric in METRICS if "loss" in metric for value in one[metric])
        assert one["history"][-1]["step"] == 4
        assert one["history"][-1]["epoch"] == 1.0
        for point in one["history"]:
            assert point.keys() == {"step", "epoch", *METRICS}
            assert all(point[metric] is None or len(point[metric]) == 2 for metric in METRICS)
            assert point["train_loss"]
            assert (point["test_loss"] is None) == (point["test_accuracy"] is None)
        assert one["history"][-1]["test_accuracy"] == pytest.approx(one["test_accuracy"])
    baseline, normalized = answer["runs"]
    assert (baseline["parameters"], normalized["parameters"]) == (61_706, 61_706 + 2 * (1 + 6 + 16 + 120 + 84))
    assert baseline["batch_norm"] == {}
    assert {place: len(arrays["weight"][0]) for place, arrays in normalized["batch_norm"].items()} == {
        "input": 1,
        "conv1": 6,
        "conv2": 16,
        "fc1": 120,
        "fc2": 84,
    }
    for arrays in normalized["batch_norm"].values():
        assert arrays.keys() == {"weight", "bias", "running_mean", "running_var"}
        assert all(len(seeds) == 2 and all(map(math.isfinite, seeds[0] + seeds[1])) for seeds in arrays.values())

    code, out, err = run(*TINY, "--preset", "input-bn", "--json")
    again = json.loads(out)["runs"]
    assert (code, err) == (0, "")
    assert [one["cached"] for one in again] == [True, True]
    assert [one["seconds"] for one in again] == [one["seconds"] for one in answer["runs"]]
    assert list(map(timeless, again)) == list(map(timeless, answer["runs"]))

    code, out, _ = run(*TINY, "--json", "--force")
    (forced,) = json.loads(out)["runs"]
    assert (code, forced["cached"]) == (0, False)
    assert forced["seconds"] != baseline["seconds"]
    assert timeless(forced) == timeless(baseline)


def test_jobs_change_no_number(run, tmp_path):
    """Eight seeds are two stacks: one process or two, bit for bit."""
    tiny = ["--preset", "bn-dropout", "--train-size", "100", "--epochs", "1", "--seeds", "0-7", "--quiet", "--json"]
    answers = []
    for jobs in ("1", "2"):
        code, out, err = run(*tiny, "--jobs", jobs, store=f"sqlite:///{tmp_path}/{jobs}.db")
        assert (code, err) == (0, "")
        answers.append([timeless(one) for one in json.loads(out)["runs"]])
    assert len(answers[0][0]["test_accuracy"]) == 8
    assert answers[0] == answers[1]


def test_a_run_that_fails(run):
    """The loss leaves the finite numbers: exit code 1, a sentence with where, why and what to change; the next call tries again."""
    recipe = "--preset baseline --optimizer sgd --lr 10 --seeds 0-3 --train-size 400 --batch-size 20 --epochs 3"
    for _ in range(2):
        code, out, err = run(*recipe.split(), "--quiet", "--json", "--jobs", "1")
        (one,) = json.loads(out)["runs"]
        assert (code, one["status"], one["cached"]) == (1, "failed", False)
        assert one["test_accuracy"] is None
        assert len(err.splitlines()) == 1
        assert re.search(r"baseline: failed\. Training stopped at step \d+ .*seed [0-3] .*learning rate 10 .*Lower --lr to 1 or less", err)


def test_the_table(run):
    code, out, _ = run(*TINY)
    assert code == 0
    assert re.search(r"baseline +│ +\d+\.\d\d ± \d+\.\d\d \(n = 2\)", out)
    assert "(cached)" not in out
    assert "(cached)" in run(*TINY)[1]


@pytest.mark.parametrize(
    ("arguments", "arms"),
    [
        ([], [{}]),
        (["--lr", ".01"], [{"lr": 0.01}]),
        (["--hidden-bn", "conv1"], [{"batch_norm": ["conv1"]}]),
    ],
)
def test_recipe_options_override(run, tmp_path, arguments, arms):
    """On a preset, and on a study file that the options go over."""
    (tmp_path / "s.toml").write_text("epochs = 9\ntrain_size = 40\nseeds = '5'\nlr = 0.5\n[[arms]]\npreset = 'baseline'\n")
    code, out, _ = run("--study", f"{tmp_path}/s.toml", "--epochs", "1", "--lr", ".001", *arguments, "--quiet", "--json", "--jobs", "1")
    assert code == 0
    wanted = preset("baseline", epochs=1, train_size=40, seeds=(5,)).model_dump(mode="json")
    assert [one["config"] for one in json.loads(out)["runs"]] == [wanted | arm for arm in arms]


def test_export_writes_run_files_that_import(run, tmp_path):
    """From the store that was named, whether trained now or found there; another store takes them in."""
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        assert run(*TINY, "--export", str(folder))[0] == 0
        (path,) = folder.iterdir()
        key = preset("baseline", train_size=200, epochs=1, seeds=(0, 1)).key()
        assert path.name == f"baseline-mnist-5k-{key}.safetensors"
        content = path.read_bytes()
        assert any(name.startswith("weights/") for name in RunFile.from_bytes(content).arrays)
        other = Store(f"sqlite:///{tmp_path}/other.db")
        taken = other.import_file(content)
        assert (taken.key, taken.status, taken.summary) == (key, "done", Store(f"sqlite:///{tmp_path}/s.db").run(key).summary)
        path.unlink()


# As a process


OPTIONS = [f"--{name}" for name in ("study", "preset", "data-dir", "store", "jobs", "device", "force", "export", "json", "quiet")]
OPTIONS += ["--input-dropout", "--hidden-dropout", *map(option_name, RunConfig.model_fields)]


def test_help_names_every_option_and_loads_no_torch():
    program = (
        "import sys; from regcompare.run import command_line; code = command_line(['--help']); sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [option for option in OPTIONS if not re.search(rf"(?<!\S){option}(?!\S)", done.stdout)] == []
    assert all(name in done.stdout for name in PRESETS)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_and_the_next_call_goes_on(tmp_path, jobs):
    """As a terminal sends it, to all processes at once: exit code 130, one line, nobody left; then it is finished."""
    path = tmp_path / "s.db"
    recipe = ["--preset", "baseline", "--seeds", "0-4", "--train-size", "100", "--epochs", "8", "--batch-size", "20", "--quiet", "--json"]
    command = [sys.executable, "-m", "regcompare.run", *recipe, "--jobs", jobs, "--store", f"sqlite:///{path}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # a test run in a shell's background inherits that Ctrl-C is ignored; a terminal's command does not
    process = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), **pipes)
    until = time.monotonic() + 60
    while not checkpoints(path) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "Interrupted. The same command goes on from the last checkpoint.\n"
    assert checkpoints(path)
    with pytest.raises(ProcessLookupError):
        wait_for_end(process.pid)
    stopped = time.time()
    (waiting,) = [run for run in Store(f"sqlite:///{path}").runs() if run.source == "trained"]
    assert waiting.status == "interrupted"
    before = Store(f"sqlite:///{path}").progress(waiting.key)
    assert max(before.values()) < waiting.config.steps

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (one,) = json.loads(done.stdout)["runs"]
    assert (done.returncode, done.stderr, one["status"]) == (0, "", "done")
    steps = [point["step"] for point in one["history"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == waiting.config.steps
    assert Store(f"sqlite:///{path}").run(waiting.key).finished - one["seconds"] < stopped  # what was begun went on


def checkpoints(path):
    """How many the store holds; none while it is being made."""
    if not path.exists():
        return 0
    try:
        return sqlite3.connect(path).execute("select count(*) from artifacts where name like 'checkpoint:%'").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def wait_for_end(group, patience=5.0):
    """Ask for the process group until it is gone, which raises ProcessLookupError."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        os.killpg(group, 0)
        time.sleep(0.1)


def test_a_module_run_as_the_docs_say():
    """`python -m regcompare.run` ends with the exit code and one line, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "regcompare.run", "--lr", "fast"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    refused((done.returncode, done.stdout, done.stderr), "--lr must be", "'fast'")
