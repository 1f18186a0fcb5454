"""The recipe: presets, keys, limits, and the words of the command line. Run: pytest tests/test_config.py"""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from regcompare.config import (
    BATCH_NORM_WORDS,
    DATASETS,
    DEFAULT_EPOCHS,
    HIDDEN_PLACES,
    INPUT_NORMS,
    MAX_SEEDS,
    PLACES,
    PRESETS,
    SEED_LIMIT,
    SPLIT_SIZES,
    STACK_SIZE,
    BadInput,
    Dropout,
    RunConfig,
    describe,
    field_rule,
    label,
    make_config,
    option_name,
    parse_dropout,
    parse_rate,
    parse_seeds,
    preset,
    preset_of,
)
from regcompare.layers import layer_table, parameter_count

FIELDS = list(RunConfig.model_fields)
NONE, ALL, RATES = (), ("conv1", "conv2", "fc1", "fc2"), (0.2, 0.5, 0.5, 0.5, 0.5)
rates = st.floats(0, 1, exclude_max=True)
dropouts = st.builds(Dropout, **dict.fromkeys(PLACES, rates))
datasets = st.sampled_from(DATASETS)
seed_sets = st.sets(st.integers(0, SEED_LIMIT - 1), min_size=1, max_size=MAX_SEEDS).map(tuple)
recipes = st.builds(
    RunConfig,
    dataset=datasets,
    train_size=st.none() | st.integers(20, 4_000),
    input_norm=st.sampled_from(INPUT_NORMS),
    batch_norm=st.sets(st.sampled_from(HIDDEN_PLACES)).map(tuple),
    dropout=dropouts,
    optimizer=st.sampled_from(["adam", "sgd"]),
    lr=st.floats(0, 10, exclude_min=True),
    batch_size=st.integers(2, 4096),
    epochs=st.integers(1, 200),
    seeds=seed_sets,
)


# The presets


@pytest.mark.parametrize(
    ("name", "input_norm", "batch_norm", "dropout"),
    [
        ("baseline", "standard", NONE, (0, 0, 0, 0, 0)),
        ("standard-bn", "standard", ALL, (0, 0, 0, 0, 0)),
        ("input-bn", "batch", ALL, (0, 0, 0, 0, 0)),
        ("dropout", "standard", NONE, RATES),
        ("bn-dropout", "standard", ALL, RATES),
    ],
)
def test_presets_are_the_table_of_the_design(name, input_norm, batch_norm, dropout):
    config = preset(name)
    assert (config.input_norm, config.batch_norm) == (input_norm, batch_norm)
    assert tuple(getattr(config.dropout, place) for place in PLACES) == dropout
    assert config == RunConfig(input_norm=input_norm, batch_norm=batch_norm, dropout=config.dropout)


def test_there_are_five_presets():
    assert list(PRESETS) == ["baseline", "standard-bn", "input-bn", "dropout", "bn-dropout"]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_of_is_the_inverse(name):
    """Data, training and seeds change nothing; each of the three fields does."""
    assert preset_of(preset(name)) == label(preset(name)) == name
    assert preset_of(preset(name, dataset="mnist", lr=0.1, seeds=(5,), epochs=2, batch_size=8, optimizer="sgd", train_size=99)) == name
    assert preset_of(preset(name, input_norm="none")) is None
    assert preset_of(preset(name, batch_norm="conv")) is None
    assert preset_of(preset(name, dropout=Dropout(fc2=0.1))) is None


@pytest.mark.parametrize("name", ["", "Baseline", "bn", None, 5, ["baseline"]])
def test_no_such_preset(name):
    with pytest.raises(BadInput, match="--preset must be one of baseline"):
        preset(name)


@given(recipes)
def test_a_label_is_a_presets_or_its_own(config):
    assert (label(config) in PRESETS) == (preset_of(config) is not None)


# Keys


GOLDEN = {
    "baseline": "bad4f8b2f3bd21ce",
    "standard-bn": "4f011689d8d277f4",
    "input-bn": "76f0a9c8e742790c",
    "dropout": "59df11e36d5fe9c3",
    "bn-dropout": "d92b48ebb86fd8c6",
}


def test_keys_never_change():
    """Stores and published run files are found by key: a change here orphans them all and needs a new RECIPE_VERSION."""
    assert {name: preset(name).key() for name in PRESETS} == GOLDEN


def test_the_canonical_json_is_sorted_and_bare():
    text = RunConfig().canonical_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert json.loads(text).keys() == set(FIELDS) - {"dropout_order"}  # left out in the usual order


@given(recipes)
def test_a_recipe_survives_its_json(config):
    again = RunConfig.model_validate_json(config.canonical_json())
    assert again == config
    assert again.key() == config.key()
    assert re.fullmatch("[0-9a-f]{16}", config.key())


@given(recipes, st.permutations(FIELDS))
def test_field_order_is_irrelevant(config, order):
    values = config.model_dump()
    assert make_config({field: values[field] for field in order}).key() == config.key()


@given(recipes, recipes)
def test_keys_are_equal_exactly_where_recipes_are(one, other):
    assert (one.key() == other.key()) == (one == other)


OTHER = {
    "dataset": ["mnist", "fashion-mnist"],
    "train_size": [20, 1000, 3999],
    "input_norm": ["none", "batch"],
    "batch_norm": ["conv", "all", "conv1,fc2"],
    "dropout": [{place: 0.1} for place in PLACES] + [{"fc1": 0.2}],
    "optimizer": ["sgd"],
    "lr": [0.01, 0.0010000000000000002],
    "batch_size": [2, 128],
    "epochs": [1, 200],
    "seeds": ["0", "0-6", "1-8"],
}


def test_every_field_changes_the_key():
    assert OTHER.keys() == set(FIELDS) - {"dropout_order"}  # it counts only beside both others: see its own test
    keys = [RunConfig().key()] + [make_config({"epochs": 30, field: value}).key() for field, values in OTHER.items() for value in values]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"epochs": 30}),
        ({"batch_norm": "all"}, {"batch_norm": ["fc2", "conv1", "conv2", "fc1", "fc1"]}),
        ({"batch_norm": " None "}, {"batch_norm": ()}),
        ({"batch_norm": "conv"}, {"batch_norm": "CONV2, conv1"}),
        ({"seeds": "5,0-2"}, {"seeds": (2, 1, 5, 0)}),
        ({"epochs": None, "dataset": "mnist"}, {"epochs": "5", "dataset": "mnist"}),
        ({"lr": "1e-3"}, {"lr": 0.001}),
        ({"dropout": {}}, {"dropout": {"fc1": 0}}),
    ],
)
def test_equal_recipes_have_equal_keys(one, other):
    assert make_config(one).key() == make_config(other).key()


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_train_size_of_all_is_none(dataset):
    """As a number or as the command line's text."""
    available = SPLIT_SIZES[dataset][0]
    for size in (available, str(available), None):
        config = make_config({"dataset": dataset, "train_size": size})
        assert config.train_size is None
        assert config.key() == RunConfig(dataset=dataset).key()
        assert config.n_train == available
    assert make_config({"dataset": dataset, "train_size": available - 1}).n_train == available - 1


@pytest.mark.parametrize("dataset", DATASETS)
def test_epochs_follow_the_dataset(dataset):
    assert make_config({"dataset": dataset}).epochs == DEFAULT_EPOCHS[dataset]
    assert make_config({"dataset": dataset, "epochs": 7}).epochs == 7


# Limits


def attempt(function, value):
    """What comes back, or None and the message."""
    try:
        return function(value), ""
    except BadInput as error:
        return None, str(error)


def refused(values):
    """The message of a recipe that is not allowed: one line."""
    with pytest.raises(BadInput) as caught:
        make_config(values)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "lowest", "highest"), [("train_size", 20, 3_999), ("batch_size", 2, 4096), ("epochs", 1, 200), ("lr", 5e-324, 10)]
)
def test_numbers_have_two_ends(field, lowest, highest):
    for value in (lowest, highest, str(lowest), str(highest)):
        assert getattr(make_config({field: value}), field) == float(value)
    for value in (-1, 0, -lowest, highest + 2, "", "x", "nan", float("nan"), float("inf"), "1e400", 10**400, [1], {}, "1 2"):
        message = refused({field: value})
        assert message.startswith(f"{option_name(field)} must be {field_rule(field)['allowed']}, got '")
        assert message.endswith(f"For example: {field_rule(field)['example']}.")


@given(st.sampled_from(["train_size", "batch_size", "epochs", "lr"]), st.floats() | st.integers())
def test_any_number_is_kept_or_refused(field, value):
    config, message = attempt(make_config, {field: value})
    kept = getattr(config, field, None)
    assert message.isprintable()
    assert message or kept == value or (kept is None and value == 4_000)


@given(st.sampled_from(PLACES), st.floats() | st.integers())
def test_a_rate_is_at_least_0_and_below_1(place, rate):
    if 0 <= rate < 1:
        assert make_config({"dropout": {place: rate}}).dropout.rates() == ({place: rate} if rate else {})
    else:
        assert "a number of at least 0 and below 1" in refused({"dropout": {place: rate}})


@given(
    st.sampled_from(FIELDS),
    st.recursive(st.none() | st.text() | st.floats() | st.booleans(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)),
)
def test_no_value_breaks_the_message(field, value):
    """Whatever stands in a study file or a run file, the answer is a recipe or one line."""
    config, message = attempt(make_config, {field: value})
    assert (config is None) == bool(message)
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    "seeds",
    ["", "a", "-1", "3-1", "1,1", "0-3,2", "0-64", "0-63,100", "1000000000", "9" * 5000, "1_0", "١", "0-3-5", [], [1, 1], [-1], [0.5], 7],
)
def test_seeds_are_1_to_64_different_whole_numbers(seeds):
    message = refused({"seeds": seeds})
    assert message.startswith("--seeds must be 1 to 64 different whole numbers from 0 to 999999999")
    assert message.endswith("For example: --seeds 0-3 or --seeds 0,5,9.")


@pytest.mark.parametrize(
    "words", ["", "conv3", "input", "conv1,,fc2", "none,conv1", "conv,fc1", "conv1;fc1", 5, [["conv1"]], [None], {"conv1": 1}]
)
def test_batch_norm_stands_at_hidden_places(words):
    assert refused({"batch_norm": words}).startswith("--hidden-bn must be none, conv, all, or a list of conv1, conv2, fc1, fc2, got '")


def test_unknown_fields_are_refused():
    assert refused({"learning_rate": 1}).startswith("a recipe's field must be one of dataset, train_size, ")
    assert "'fc3'" in refused({"dropout": {"fc3": 0.5}})
    with pytest.raises(ValidationError):
        RunConfig(colour="red")


def test_a_recipe_cannot_change():
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().lr = 1
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().dropout.fc1 = 0.5


# What follows from a recipe


@given(seed_sets)
def test_stacks_cover_the_seeds(seeds):
    """In order, each seed once, all stacks full but the last."""
    stacks = RunConfig(seeds=seeds).stacks()
    assert [seed for stack in stacks for seed in stack] == sorted(seeds)
    assert all(len(stack) == STACK_SIZE for stack in stacks[:-1])
    assert 1 <= len(stacks[-1]) <= STACK_SIZE


@given(recipes)
def test_steps_leave_out_at_most_one_image(config):
    """Batch norm has no variance in a batch of one; every larger rest is trained on."""
    left_out = config.n_train - config.steps_per_epoch * config.batch_size
    assert left_out <= 1
    assert config.n_train > (config.steps_per_epoch - 1) * config.batch_size
    assert config.steps == config.steps_per_epoch * config.epochs > 0


@given(recipes)
def test_normalized_places_are_in_the_nets_order(config):
    places = config.normalized_places
    assert list(places) == [place for place in PLACES if place in places]
    assert ("input" in places) == (config.input_norm == "batch")
    assert set(places) - {"input"} == set(config.batch_norm)


# Words of the command line


@given(seed_sets)
def test_parse_seeds_reads_a_list(seeds):
    assert parse_seeds(", ".join(map(str, seeds))) == seeds


@given(st.integers(0, SEED_LIMIT - 1), st.integers(1, MAX_SEEDS))
def test_parse_seeds_reads_a_range(first, count):
    assert parse_seeds(f"{first}-{first + count - 1}") == tuple(range(first, first + count))


@given(st.text())
def test_parse_seeds_reads_or_refuses(text):
    seeds, message = attempt(parse_seeds, text)
    assert message.startswith("--seeds must be") if seeds is None else set(text) <= set("0123456789-, ")


@given(st.dictionaries(st.sampled_from(PLACES), rates, min_size=1))
def test_parse_dropout_reads_what_is_written(wanted):
    assert parse_dropout(", ".join(f"{place}={rate!r}" for place, rate in wanted.items())) == wanted


@pytest.mark.parametrize(
    "text", ["", "conv1", "conv1=", "=.5", "fc3=.5", "conv1=.2,", "conv1=.2,conv1=.2", "conv1=1", "conv1=-.1", "conv1=nan", "conv1=.2=.3"]
)
def test_parse_dropout_refuses(text):
    with pytest.raises(BadInput, match=r"^--dropout"):
        parse_dropout(text)


@given(rates)
def test_parse_rate_reads_what_is_written(rate):
    assert parse_rate(repr(rate), "--input-dropout") == rate


@pytest.mark.parametrize("text", ["", "1", "-0.1", "nan", "inf", "1e400", "half", "0,5"])
def test_parse_rate_refuses(text):
    with pytest.raises(BadInput, match=f"^--input-dropout must be a number of at least 0 and below 1, got '{text}'"):
        parse_rate(text, "--input-dropout")


# What screens say


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_has_a_sentence_and_a_rule(field):
    """The example is one that works."""
    assert describe(field).endswith(".")
    assert describe(field)[0].isupper()
    rule = field_rule(field)
    assert rule["allowed"]
    option, value = rule["example"].split(" or ")[0].split(" ")
    assert option == option_name(field)
    values = {field: parse_dropout(value) if field == "dropout" else value}
    assert make_config(values).key()


def test_every_place_has_a_sentence():
    assert list(Dropout.model_fields) == list(PLACES)
    assert all((field.description or "").endswith(".") for field in Dropout.model_fields.values())


def test_the_words_are_places():
    assert all(set(places) <= set(HIDDEN_PLACES) for places in BATCH_NORM_WORDS.values())


def test_a_message_is_one_short_line():
    message = str(BadInput("--lr", "a\nb\x1b[31m" + "z" * 999, "small", "Try 1."))
    assert message == "--lr must be small, got 'a\\nb\\x1b[31m" + "z" * 45 + "...'. Try 1."


def test_the_order_of_dropout_and_batch_norm():
    """A recipe with both can have dropout first; where nothing is to order, or in the usual order, the keys are as ever."""
    usual, first = preset("bn-dropout"), preset("bn-dropout", dropout_order="before")
    assert first.key() != usual.key()
    assert "dropout_order" not in usual.canonical_json()
    assert preset("dropout", dropout_order="before") == preset("dropout")
    assert preset("standard-bn", dropout_order="before").key() == preset("standard-bn").key()
    assert (label(first), preset_of(first), label(usual)) == ("bn-dropout, dropout first", None, "bn-dropout")
    layers = [layer.name for layer in layer_table(first)]
    assert layers.index("conv1") < layers.index("conv1_dropout") < layers.index("conv1_bn") < layers.index("conv1_relu")
    assert parameter_count(first) == parameter_count(usual)
