"""The recipe: everything that decides a result, its limits, and the five presets.

Knows nothing of torch, of the store or of any screen. One definition feeds the command line's help, the page's tooltips,
the store and the run files.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

Dataset = Literal["mnist-5k", "mnist", "fashion-mnist"]
InputNorm = Literal["none", "standard", "batch"]
Place = Literal["input", "conv1", "conv2", "fc1", "fc2"]
DropoutOrder = Literal["after", "before"]
HiddenPlace = Literal["conv1", "conv2", "fc1", "fc2"]

DATASETS: tuple[str, ...] = get_args(Dataset)
INPUT_NORMS: tuple[str, ...] = get_args(InputNorm)
PLACES: tuple[str, ...] = get_args(Place)
HIDDEN_PLACES: tuple[str, ...] = get_args(HiddenPlace)
BATCH_NORM_WORDS: dict[str, tuple[str, ...]] = {"none": (), "conv": ("conv1", "conv2"), "all": HIDDEN_PLACES}

CLASSES = 10
DEFAULT_SEEDS = tuple(range(8))
DEFAULT_EPOCHS = {"mnist-5k": 30, "mnist": 5, "fashion-mnist": 5}
SPLIT_SIZES = {"mnist-5k": (4_000, 1_000), "mnist": (60_000, 10_000), "fashion-mnist": (60_000, 10_000)}
MAX_SEEDS = 64
# Streams of one seed are its value plus a multiple of this (see `data.generator`), and the CPU generator keeps 32 bits.
SEED_LIMIT = 1_000_000_000
# Measured: a step of four replicates together costs under half of four steps apart, more together gain nothing.
# It decides the grouping and so the last bit of a result, hence no setting of one machine.
STACK_SIZE = 4
# Written into run files; a reader refuses what it does not know.
RECIPE_VERSION = 1


def one_line(text: str) -> str:
    """The text with line breaks and other unprintable characters written out, as in `\\n`."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: Any) -> str:
    """A value as a message quotes it: one line, at most 60 characters."""
    text = one_line(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= 60 else text[:57] + "..."


class RegcompareError(Exception):
    """Anything that a user can put right; its text is one line that says how."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


class BadInput(RegcompareError):
    """A value that is not allowed: what, the value, what is allowed, the way out."""

    def __init__(self, what: str, value: Any, allowed: str, way_out: str) -> None:
        super().__init__(f"{what} must be {allowed}, got '{shown(value)}'. {way_out}")
        self.what, self.value, self.allowed, self.way_out = what, value, allowed, way_out


def _rule(allowed: str, example: str) -> dict[str, Any]:
    return {"allowed": allowed, "example": example}


Rate = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
RATE_RULE = "a number of at least 0 and below 1"


class Dropout(BaseModel):
    """Dropout rate at each place: the chance that a value is silenced in a training step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Rate = Field(default=0.0, description="Share of the input pixels silenced in each training step.")
    conv1: Rate = Field(default=0.0, description="Share of the first convolution's channels silenced, whole channels at a time.")
    conv2: Rate = Field(default=0.0, description="Share of the second convolution's channels silenced, whole channels at a time.")
    fc1: Rate = Field(default=0.0, description="Share of the first dense layer's units silenced.")
    fc2: Rate = Field(default=0.0, description="Share of the second dense layer's units silenced.")

    def rates(self) -> dict[str, float]:
        """Rate by place, only where it is above zero, in the net's order."""
        return {place: rate for place in PLACES if (rate := getattr(self, place)) > 0}

    @classmethod
    def of(cls, input: float = 0.0, conv: float = 0.0, fc: float = 0.0) -> "Dropout":
        return cls(input=input, conv1=conv, conv2=conv, fc1=fc, fc2=fc)


class RunConfig(BaseModel):
    """A recipe. Two equal recipes have the same `key()`, and the same numbers on the same machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: Dataset = Field(
        default="mnist-5k",
        description="The images: mnist-5k ships with the tool (4,000 to train, 1,000 to test); the others have 60,000 and 10,000.",
        json_schema_extra=_rule("mnist-5k, mnist or fashion-mnist", "--dataset mnist-5k"),
    )
    train_size: int | None = Field(
        default=None,
        ge=20,
        le=60_000,
        description="Train on the first N images of a seeded shuffle; empty means all of them.",
        json_schema_extra=_rule(
            "a whole number from 20 to the number of training images (4,000 for mnist-5k, else 60,000)", "--train-size 1000"
        ),
    )
    input_norm: InputNorm = Field(
        default="standard",
        description="What is done to the pixels: nothing, the training images' mean and deviation, or a learned batch norm.",
        json_schema_extra=_rule("none, standard or batch", "--input-norm standard"),
    )
    batch_norm: tuple[HiddenPlace, ...] = Field(
        default=(),
        description="Which hidden layers carry batch normalization: none, conv, all, or a list such as conv1,fc2.",
        json_schema_extra=_rule("none, conv, all, or a list of conv1, conv2, fc1, fc2", "--hidden-bn conv1,fc2"),
    )
    dropout: Dropout = Field(
        default=Dropout(),
        description="Dropout rate at each place: pixels at the input, whole channels at conv places, units at dense ones.",
        json_schema_extra=_rule("rates of at least 0 and below 1 at input, conv1, conv2, fc1, fc2", "--dropout conv1=.2,fc1=.5"),
    )
    dropout_order: DropoutOrder = Field(
        default="after",
        description="Where dropout stands in a hidden layer with batch norm: after it and the ReLU (the usual), or before batch norm.",
        json_schema_extra=_rule("after or before", "--dropout-order before"),
    )
    optimizer: Literal["adam", "sgd"] = Field(
        default="adam",
        description="How weights follow the gradient: Adam, or stochastic gradient descent with momentum 0.9.",
        json_schema_extra=_rule("adam or sgd", "--optimizer adam"),
    )
    lr: float = Field(
        default=0.001,
        gt=0,
        le=10,
        allow_inf_nan=False,
        description="Learning rate: the size of each step.",
        json_schema_extra=_rule("a number above 0 and at most 10", "--lr 0.001"),
    )
    batch_size: int = Field(
        default=64,
        ge=2,
        le=4096,
        description="Images in each training step.",
        json_schema_extra=_rule("a whole number from 2 to 4096", "--batch-size 64"),
    )
    epochs: int = Field(
        default=DEFAULT_EPOCHS["mnist-5k"],
        ge=1,
        le=200,
        description="Passes over the training images; 30 for mnist-5k and 5 for the others unless set.",
        json_schema_extra=_rule("a whole number from 1 to 200", "--epochs 5"),
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=SEED_LIMIT)], ...] = Field(
        default=DEFAULT_SEEDS,
        min_length=1,
        max_length=MAX_SEEDS,
        description="One network is trained from each seed; the same seeds pair the arms of a comparison.",
        json_schema_extra=_rule(
            f"1 to {MAX_SEEDS} different whole numbers from 0 to {SEED_LIMIT - 1}, as a range or a list", "--seeds 0-3 or --seeds 0,5,9"
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _follow_the_dataset(cls, values: Any) -> Any:
        """Epochs default to the data set's."""
        dataset = str(values.get("dataset", "mnist-5k")) if isinstance(values, Mapping) else ""
        if dataset in DATASETS and values.get("epochs") is None:
            values = {**values, "epochs": DEFAULT_EPOCHS[dataset]}
        return values

    @field_validator("train_size")
    @classmethod
    def _train_size_fits(cls, size: int | None, info: ValidationInfo) -> int | None:
        """At most all the images; all of them is no train size, so that the keys agree."""
        if size is None or "dataset" not in info.data:
            return size
        available = SPLIT_SIZES[info.data["dataset"]][0]
        if size > available:
            raise ValueError(f"there are only {available} images to train on")
        return None if size == available else size

    @field_validator("batch_norm", mode="before")
    @classmethod
    def _words_to_places(cls, value: Any) -> Any:
        if isinstance(value, str):
            words = value.lower().replace(" ", "")
            value = BATCH_NORM_WORDS.get(words, words.split(","))
        known = isinstance(value, list | tuple) and all(place in HIDDEN_PLACES for place in value)
        return tuple(place for place in HIDDEN_PLACES if place in value) if known else value

    @field_validator("dropout_order")
    @classmethod
    def _order_matters(cls, order: str, info: ValidationInfo) -> str:
        """Where no layer has both there is nothing to order; one word for it, so that the keys agree."""
        both = [place for place in info.data.get("batch_norm", ()) if getattr(info.data.get("dropout"), place, 0) > 0]
        return order if both else "after"

    @field_validator("seeds", mode="before")
    @classmethod
    def _text_to_seeds(cls, value: Any) -> Any:
        return parse_seeds(value) if isinstance(value, str) else value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("seeds must differ")
        return tuple(sorted(seeds))

    def canonical_json(self) -> str:
        """The recipe as JSON with sorted keys: equal recipes give equal text."""
        values = self.model_dump(mode="json")
        if self.dropout_order == "after":  # younger than the first keys, which hold for this order
            del values["dropout_order"]
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    def key(self) -> str:
        """The run's name: 16 hexadecimal digits of the canonical JSON's SHA-256."""
        return hashlib.sha256(f"{RECIPE_VERSION}:{self.canonical_json()}".encode()).hexdigest()[:16]

    @property
    def n_train(self) -> int:
        return self.train_size or SPLIT_SIZES[self.dataset][0]

    @property
    def n_test(self) -> int:
        return SPLIT_SIZES[self.dataset][1]

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in an epoch. A last batch of one image is left out: batch norm has no variance there."""
        full, rest = divmod(self.n_train, self.batch_size)
        return full + (rest > 1)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def normalized_places(self) -> tuple[str, ...]:
        """Places that carry batch norm, the input included, in the net's order."""
        return (("input",) if self.input_norm == "batch" else ()) + self.batch_norm

    def stacks(self) -> tuple[tuple[int, ...], ...]:
        """The seeds in the groups that train together; fixed by the recipe, so `--jobs` cannot change a number."""
        return tuple(self.seeds[i : i + STACK_SIZE] for i in range(0, len(self.seeds), STACK_SIZE))


# Input norm, hidden batch norm, dropout: a preset fixes these three and nothing else (seed assignment, Problems 2-5).
PRESETS: dict[str, dict[str, Any]] = {
    "baseline": {"input_norm": "standard", "batch_norm": (), "dropout": Dropout()},
    "standard-bn": {"input_norm": "standard", "batch_norm": HIDDEN_PLACES, "dropout": Dropout()},
    "input-bn": {"input_norm": "batch", "batch_norm": HIDDEN_PLACES, "dropout": Dropout()},
    "dropout": {"input_norm": "standard", "batch_norm": (), "dropout": Dropout.of(0.2, 0.5, 0.5)},
    "bn-dropout": {"input_norm": "standard", "batch_norm": HIDDEN_PLACES, "dropout": Dropout.of(0.2, 0.5, 0.5)},
}
FACTORIAL = ("baseline", "standard-bn", "dropout", "bn-dropout")  # without and with each: the 2x2 of the interaction
# The second net of the notebook that this began with: batch norm on the input and both convolutions.
NOTEBOOK_NET = RunConfig(dataset="mnist", input_norm="batch", batch_norm=("conv1", "conv2"), epochs=2, lr=0.01)
# bn-dropout in the other order, for the variance shift of Li et al. 2019.
DROPOUT_FIRST = RunConfig(dataset="mnist", batch_norm=HIDDEN_PLACES, dropout=Dropout.of(0.2, 0.5, 0.5), dropout_order="before")  # type: ignore[arg-type]
ARM_FIELDS = ("input_norm", "batch_norm", "dropout", "dropout_order")
PRESET_TITLES = {
    "baseline": "neither (the control)",
    "standard-bn": "batch norm in the hidden layers (Problem 2)",
    "input-bn": "batch norm on the input too (Problem 3)",
    "dropout": "dropout, no batch norm (Problem 4)",
    "bn-dropout": "both (Problem 5)",
}


def preset_fields(name: Any) -> dict[str, Any]:
    """What a preset fixes: three fields of a recipe.

    Raises:
        BadInput: no preset has that name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise BadInput("--preset", name, "one of " + ", ".join(PRESETS), "For example: --preset standard-bn.")
    return dict(PRESETS[name])


def preset(name: str, **changes: Any) -> RunConfig:
    """The recipe of a preset, with `changes` on top.

    Raises:
        BadInput: no preset has that name, or a change is not allowed.
    """
    return make_config(preset_fields(name) | changes)


def preset_of(config: RunConfig) -> str | None:
    """The preset whose three fields this recipe has, whatever its data, training and seeds."""
    for name, fields in PRESETS.items():
        if config.dropout_order == "after" and all(getattr(config, field) == value for field, value in fields.items()):
            return name
    return None


OPTION_NAMES = {"batch_norm": "--hidden-bn", "dropout": "--dropout"}


def option_name(field: str) -> str:
    """The command-line option of a field."""
    return OPTION_NAMES.get(field, "--" + field.replace("_", "-"))


def field_rule(field: str) -> dict[str, str]:
    """What a field allows, in words, and an example on the command line."""
    return RunConfig.model_fields[field].json_schema_extra  # type: ignore[return-value]


def describe(field: str) -> str:
    """One sentence on a field: the help of the command line and the tooltip of the page."""
    return RunConfig.model_fields[field].description or ""


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """`RunConfig` with one readable line instead of pydantic's report.

    Raises:
        BadInput: a field is unknown or its value is not allowed.
    """
    values = dict(values)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise _readable(error.errors()[0], values) from None


def _readable(error: Any, values: Mapping[str, Any]) -> BadInput:
    field = str(error["loc"][0]) if error["loc"] else "recipe"
    if field not in RunConfig.model_fields:
        return BadInput("a recipe's field", field, "one of " + ", ".join(RunConfig.model_fields), "Remove it or correct its name.")
    rule, name = field_rule(field), option_name(field)
    way_out = f"For example: {rule['example']}."
    if field == "dropout" and len(error["loc"]) > 1:
        place = str(error["loc"][1])
        if place not in PLACES:
            return BadInput(f"a place of {name}", place, "one of " + ", ".join(PLACES), way_out)
        return BadInput(f"{name} {place}", error["input"], RATE_RULE, way_out)
    return BadInput(name, values[field], rule["allowed"], way_out)


def bounds(field: str) -> tuple[Any, Any]:
    """The least and the greatest value of a number field; None where there is none."""
    limits: dict[str, Any] = {}
    for rule in RunConfig.model_fields[field].metadata:
        limits |= {name: getattr(rule, name) for name in ("ge", "gt", "le", "lt") if hasattr(rule, name)}
    return limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))


def format_seeds(seeds: tuple[int, ...]) -> str:
    """Seeds as `--seeds` takes them: `0-7`, `0,5,9`, `0-3,8`."""
    ranges: list[list[int]] = []
    for seed in sorted(seeds):
        if ranges and seed == ranges[-1][1] + 1:
            ranges[-1][1] = seed
        else:
            ranges.append([seed, seed])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0-3` or `0,5,9` or a mix of both, as numbers.

    Raises:
        BadInput: it is neither.
    """
    rule = field_rule("seeds")
    seeds: list[int] = []
    try:
        for part in text.replace(" ", "").split(","):
            found = re.fullmatch("([0-9]+)(?:-([0-9]+))?", part)
            low, high = (int(end or found[1]) for end in found.groups()) if found else (0, -1)
            if not low <= high < low + MAX_SEEDS:
                raise ValueError
            seeds.extend(range(low, high + 1))
    except ValueError:
        raise BadInput("--seeds", text, rule["allowed"], f"For example: {rule['example']}.") from None
    return tuple(seeds)


def parse_dropout(text: str) -> dict[str, float]:
    """`conv1=.2,fc1=.5` as rates by place.

    Raises:
        BadInput: a part is not `place=rate`, or a place is unknown or named twice.
    """
    rule = field_rule("dropout")
    rates: dict[str, float] = {}
    for part in text.replace(" ", "").split(","):
        place, _, rate = part.partition("=")
        if place not in PLACES or place in rates:
            raise BadInput("--dropout", text, "PLACE=RATE pairs, each place once: " + ", ".join(PLACES), f"For example: {rule['example']}.")
        rates[place] = parse_rate(rate, f"--dropout {place}")
    return rates


def parse_rate(text: str, what: str) -> float:
    """A dropout rate.

    Raises:
        BadInput: it is no number of at least 0 and below 1.
    """
    try:
        rate = float(text)
        if not 0 <= rate < 1:
            raise ValueError
    except ValueError:
        raise BadInput(what, text, RATE_RULE, "For example: 0.5.") from None
    return rate


def label(config: RunConfig) -> str:
    """A short name for a recipe: its preset's, or what it is made of."""
    name = preset_of(config)
    if name:
        return name
    if config.dropout_order == "before" and (name := preset_of(config.model_copy(update={"dropout_order": "after"}))):
        return f"{name}, dropout first"
    words = next((w for w, places in BATCH_NORM_WORDS.items() if places == config.batch_norm), "+".join(config.batch_norm))
    parts = [f"{config.input_norm} input"] + ([f"BN {words}"] if config.batch_norm else [])
    rates = config.dropout.rates()
    if rates:
        before = " before BN" if config.dropout_order == "before" else ""
        parts.append("dropout " + " ".join(f"{place} {rate:g}" for place, rate in rates.items()) + before)
    return ", ".join(parts)


def setting(config: RunConfig) -> tuple[Any, ...]:
    """What arms share that may be compared: everything in a recipe but the net."""
    return tuple(getattr(config, field) for field in RunConfig.model_fields if field not in ARM_FIELDS)


def setting_title(config: RunConfig) -> str:
    """A recipe's data and training in words: `mnist, 5 epochs, adam lr 0.001, batch 64, seeds 0-7`."""
    size = f", first {config.train_size}" if config.train_size else ""
    epochs = f"{config.epochs} epoch{'s' * (config.epochs > 1)}"
    training = f"{config.optimizer} lr {config.lr:g}, batch {config.batch_size}, seeds {format_seeds(config.seeds)}"
    return f"{config.dataset}{size}, {epochs}, {training}"


def short_title(config: RunConfig) -> str:
    """An arm in its setting, what is as usual left out: `dropout (mnist, 5 epochs, lr 0.001)`."""
    usual = RunConfig.model_fields
    parts = [config.dataset + (f", first {config.train_size}" if config.train_size else "")]
    parts += [f"{config.epochs} epoch{'s' * (config.epochs > 1)}", f"lr {config.lr:g}"]
    parts += [config.optimizer] if config.optimizer != usual["optimizer"].default else []
    parts += [f"batch {config.batch_size}"] if config.batch_size != usual["batch_size"].default else []
    parts += [f"seeds {format_seeds(config.seeds)}"] if config.seeds != DEFAULT_SEEDS else []
    return f"{label(config)} ({', '.join(parts)})"


def arm_names(configs: Sequence[RunConfig]) -> list[str]:
    """A name an arm: short where that tells it apart, else with the setting, else with the key too."""
    short = [label(config) for config in configs]
    names = [name if short.count(name) == 1 else short_title(config) for name, config in zip(short, configs, strict=True)]
    return [name if names.count(name) == 1 else f"{name} {config.key()[:6]}" for name, config in zip(names, configs, strict=True)]
