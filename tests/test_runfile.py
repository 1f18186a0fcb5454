"""Run files: nothing is lost, nothing bad is let in, nothing is unpickled. Run: pytest tests/test_runfile.py"""

import ast
import contextlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from regcompare.config import PLACES, RegcompareError, make_config, preset
from regcompare.layers import WIDTHS
from regcompare.runfile import BN_ARRAYS, FORMAT, METRICS, RunFile, RunFileError, merge_stacks

TRAINING = {"seeds": "0-5", "epochs": 2, "train_size": 100, "batch_size": 20}
CONFIG = preset("input-bn", **TRAINING)
STEPS = (1, 2, 5, 10)


def stack_result(size, seed):
    """What training leaves behind for one stack of `size` replicates, random where a number may be anything."""
    random = np.random.default_rng(seed)
    points = []
    for step in STEPS:
        measured = {metric: random.random(size).tolist() for metric in METRICS}
        if step == 2:
            measured |= {"test_loss": None, "test_accuracy": None}
        points.append((step, {"step": step, "epoch": step / 5} | measured))
    arrays = {f"final/{metric}": random.random(size) for metric in METRICS}
    arrays["test/prediction"] = random.integers(0, 10, (size, 1_000), dtype=np.uint8)
    arrays["test/label"] = (np.arange(1_000) % 10).astype(np.uint8)
    for place in CONFIG.normalized_places:
        for array in BN_ARRAYS:
            arrays[f"batch_norm/{place}/{array}"] = random.normal(size=(3, size, WIDTHS[place])).astype(np.float32)
    arrays |= {f"activations/{place}": random.normal(size=(size, 256)).astype(np.float32) for place in PLACES}
    arrays["weights/body.conv1.weight"] = random.normal(size=(size, 6, 1, 5, 5)).astype(np.float32)
    arrays["weights/body.conv1_bn.num_batches_tracked"] = np.full(size, 10)
    facts = {"began": 1e9 + seed, "ended": 1e9 + 60.5 + seed, "device": "cpu", "machine": "Linux ±", "versions": {"torch": "2.13.0"}}
    return RunFile.from_points(points, arrays, facts)


PARTS = [stack_result(4, 1), stack_result(2, 2)]
WHOLE = merge_stacks(CONFIG, PARTS)
CONTENT = WHOLE.to_bytes()
HEADER_END = 8 + int.from_bytes(CONTENT[:8], "little")


def same(one, other):
    """Bit for bit: NaN equals itself, and a type is part of a number."""
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def told(content):
    """The message that refuses a file: one line."""
    with pytest.raises(RunFileError) as caught:
        RunFile.from_bytes(content)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    return str(caught.value)


# Nothing is lost


def test_a_round_trip_loses_nothing():
    back = RunFile.from_bytes(CONTENT)
    assert back.facts == WHOLE.facts
    assert back.config == CONFIG
    assert back.arrays.keys() == WHOLE.arrays.keys()
    assert all(same(back.arrays[name], WHOLE.arrays[name]) for name in WHOLE.arrays)
    assert back.to_bytes() == CONTENT


def test_stacks_are_joined_in_seed_order():
    """The replicate axis is the second one in histories and batch norm, else the first; time runs from first start to last end."""
    for name, whole in WHOLE.arrays.items():
        parts = [part.arrays[name] for part in PARTS]
        if name in ("history/step", "history/epoch", "test/label"):
            assert same(whole, parts[0])
        elif name.startswith(("history", "batch_norm")):
            assert whole.shape[1] == 6
            assert same(whole[:, :4].copy(), parts[0])
            assert same(whole[:, 4:].copy(), parts[1])
        else:
            assert same(whole[:4], parts[0])
            assert same(whole[4:], parts[1])
    assert (WHOLE.facts["seconds"], WHOLE.facts["finished"]) == (61.5, 1e9 + 62.5)


def test_points_become_histories():
    assert WHOLE.arrays["history/step"].tolist() == list(STEPS)
    assert WHOLE.arrays["history/epoch"].tolist() == [0.2, 0.4, 1.0, 2.0]
    assert np.isnan(WHOLE.history("test_loss")).all(1).tolist() == [False, True, False, False]
    assert np.isfinite(WHOLE.history("train_loss")).all()


def test_the_summary_is_the_arrays():
    summary = WHOLE.summary()
    assert all(summary[metric] == WHOLE.arrays[f"final/{metric}"].tolist() for metric in METRICS)
    assert summary["images_per_second"] == pytest.approx(100 * 2 * 6 / 61.5)
    json.dumps(summary, allow_nan=False)


@given(st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8]), st.integers(0, 2**32), st.booleans())
def test_any_array_survives(kind, seed, turned):
    """Whatever its type, and however it lies in memory."""
    values = np.frombuffer(np.random.default_rng(seed).bytes(96), kind).reshape(2, -1)
    values = np.asfortranarray(values)[:, ::-1] if turned else values
    back = RunFile.from_bytes(RunFile({"x": values}, {"format": FORMAT}).to_bytes(), trusted=True)
    assert same(back.arrays["x"], values)


facts_of_any_kind = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)


@settings(max_examples=30)
@given(st.dictionaries(st.text(), facts_of_any_kind))
def test_any_fact_survives(facts):
    facts |= {"format": FORMAT}
    assert RunFile.from_bytes(RunFile({"x": np.zeros(1)}, facts).to_bytes(), trusted=True).facts == facts


# Nothing bad is let in


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_unpickled(tmp_path, protocol):
    """Alone, as the header, and as the content of an array file."""
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"), protocol)
    header = len(bomb).to_bytes(8, "little") + bomb
    for content in (bomb, header, header + CONTENT[HEADER_END:], CONTENT[:HEADER_END] + bomb):
        assert told(content).startswith("This is not a run file of regcompare.")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()  # it would have


def test_the_package_knows_no_pickle():
    """No module imports one, and NumPy's own is switched off wherever an array file is read."""
    for path in Path(__file__).parent.parent.joinpath("regcompare").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.partition(".")[0] for name in names} & {"pickle", "cloudpickle", "dill", "shelve", "marshal"}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load", "torch.load", "joblib.load"):
                assert ast.unparse(node.func) == "np.load", path
                assert any(word.arg == "allow_pickle" and ast.unparse(word.value) == "False" for word in node.keywords), path


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"not a run file",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"PK\x03\x04" + bytes(100),
        b"\xff" * 64,
        bytes(64),
        (2**63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        save({"x": np.zeros(3)}),
        save({"x": np.zeros(3)}, {"other": "{}"}),
        save({"x": np.zeros(3)}, {"regcompare": "{"}),
        save({"x": np.zeros(3)}, {"regcompare": "[" * 200_000}),
        save({"x": np.zeros(3)}, {"regcompare": '{"format": ' + "9" * 5_000 + "}"}),
        CONTENT + b"x",
        CONTENT.replace(b'"dtype":"F32"', b'"dtype":"BF1"', 1),
        CONTENT.replace(b'"dtype":"F32"', b'"dtype":"F64"', 1),
    ],
)
def test_what_is_no_run_file(content):
    assert told(content).endswith("Choose a .safetensors file that Runs, or --export DIR, has written.")


@pytest.mark.parametrize(
    "facts", [{}, [], None, 1, {"format": 2}, {"format": "1"}, {"format": None}, {"format": "a\nb" * 999}, {"format": [1]}]
)
def test_another_format(facts):
    content = save(WHOLE.arrays, {"regcompare": json.dumps(facts)})
    assert told(content).startswith("The run file's format must be 1, got '")


@given(st.integers(0, len(CONTENT) - 1))
def test_a_file_cut_short(length):
    told(CONTENT[:length])


@given(st.binary(max_size=300))
def test_garbage(content):
    told(content)


@given(st.integers(0, HEADER_END - 1), st.integers(0, 255))
def test_a_changed_byte_of_the_header(position, value):
    """It is refused, or what is read passes the same checks: nothing else happens."""
    damaged = bytearray(CONTENT)
    damaged[position] = value
    with contextlib.suppress(RunFileError):
        assert RunFile.from_bytes(bytes(damaged)).summary()["parameters"] > 0


def changed(name, values):
    """The run file with one array replaced, or left out where `values` is None."""
    arrays = {key: value for key, value in WHOLE.arrays.items() if key != name}
    return RunFile(arrays | ({} if values is None else {name: values}), WHOLE.facts).to_bytes()


NEEDED = [name for name in WHOLE.arrays if not name.startswith(("weights", "activations"))]


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_array_is_named(name):
    assert f"array {name} must" in told(changed(name, None))


@pytest.mark.parametrize("name", NEEDED)
def test_a_wrong_shape_is_named(name):
    values = WHOLE.arrays[name]
    for wrong in (values[..., :-1], values[None], values[..., None], values[:0], values.ravel()[0]):
        message = told(changed(name, np.array(wrong)))
        assert "must have shape" in message or (name == "history/step" and "hold at least one point" in message)


@pytest.mark.parametrize("name", [name for name in WHOLE.arrays if WHOLE.arrays[name].dtype.kind == "f"])
def test_a_number_that_is_none_is_refused(name):
    """NaN is allowed only in a test history, for all seeds of a point at once: not measured."""
    for bad in (np.nan, np.inf, -np.inf):
        values = WHOLE.arrays[name].copy()
        values.flat[0] = bad
        assert f"array {name} must hold finite numbers only" in told(changed(name, values))


@pytest.mark.parametrize("name", [name for name in WHOLE.arrays if name.endswith("accuracy")])
@pytest.mark.parametrize("bad", [-0.01, 1.01, 98.5])
def test_an_accuracy_is_a_fraction(name, bad):
    values = WHOLE.arrays[name].copy()
    values.flat[0] = bad
    assert f"{name} must lie between 0 and 1" in told(changed(name, values))


@pytest.mark.parametrize(("name", "bad"), [("test/prediction", 10), ("test/label", 255), ("history/step", -1), ("history/step", 11)])
def test_a_count_is_a_whole_number_in_range(name, bad):
    values = WHOLE.arrays[name].copy()
    values.flat[0] = bad
    assert f"array {name} must hold whole numbers from 0 to" in told(changed(name, values))
    assert f"array {name} must hold whole numbers from 0 to" in told(changed(name, WHOLE.arrays[name].astype(float)))


@pytest.mark.parametrize(
    "name", ["extra", "final/f1", "activations/fc3", "weights", "weights/", "batch_norm/fc3/weight", "a\nb\x1b[31m", "x" * 999]
)
def test_an_unknown_array_is_named(name):
    message = told(changed(name, np.zeros(6)))
    assert "must be one that regcompare writes" in message
    assert "a\\nb\\x1b" in message or name[:50] in message


def test_batch_norm_of_a_place_without_it_is_unknown():
    facts = WHOLE.facts | {"config": preset("baseline", **TRAINING).model_dump(mode="json")}
    assert "batch_norm/" in told(RunFile(WHOLE.arrays, facts).to_bytes())


@pytest.mark.parametrize("name", ["activations/fc1", "weights/body.conv1.weight"])
@pytest.mark.parametrize("values", [np.zeros((5, 256)), np.zeros(()), np.zeros((0, 3))])
def test_optional_arrays_hold_every_replicate(name, values):
    assert f"array {name} must hold 6 replicates" in told(changed(name, values))


def test_weights_and_activations_are_optional():
    arrays = {name: WHOLE.arrays[name] for name in NEEDED}
    assert RunFile.from_bytes(RunFile(arrays, WHOLE.facts).to_bytes()).arrays.keys() == set(NEEDED)


RECIPE = CONFIG.model_dump(mode="json")


@pytest.mark.parametrize(
    "recipe",
    [
        None,
        5,
        "ab",
        "",
        [],
        [1, 2],
        [["lr", 5]],
        {"colour": "red"},
        RECIPE | {"lr": -1},
        RECIPE | {"lr": "a\nb"},
        RECIPE | {"seeds": []},
        RECIPE | {"epochs": 10**400},
        RECIPE | {"dropout": {"fc3": 0.5}},
        RECIPE | {"train_size": 4_001},
        RECIPE | {"dataset": ["mnist"]},
    ],
)
def test_a_bad_recipe(recipe):
    facts = WHOLE.facts | {"config": recipe}
    assert told(RunFile(WHOLE.arrays, facts).to_bytes()).startswith(("The run file's recipe is not valid (", "The run file's array "))


def test_no_recipe():
    facts = {name: value for name, value in WHOLE.facts.items() if name != "config"}
    assert told(RunFile(WHOLE.arrays, facts).to_bytes()).startswith("The run file's recipe is not valid (")


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(list(RECIPE)), facts_of_any_kind, min_size=1))
def test_any_recipe_is_read_or_refused(damage):
    content = RunFile(WHOLE.arrays, WHOLE.facts | {"config": RECIPE | damage}).to_bytes()
    try:
        make_config(RECIPE | damage)
    except RegcompareError:
        assert told(content).startswith("The run file's recipe is not valid (")


@pytest.mark.parametrize("fact", ["seconds", "finished"])
@pytest.mark.parametrize("value", [-1, "5", None, [], float("nan"), float("inf"), 10**400, {"a": "b\nc"}])
def test_a_time_is_a_number(fact, value):
    assert f"{fact} must be a number of at least 0, got '" in told(RunFile(WHOLE.arrays, WHOLE.facts | {fact: value}).to_bytes())
