"""A finished run as one `.safetensors` file: arrays and a JSON header. Never a pickle.

Arrays (K replicates in the recipe's seed order, T points, E epochs, C channels, n test images; float32 unless said):

    history/step [T] int64, history/epoch [T] float64
    history/train_loss, train_accuracy, test_loss, test_accuracy [T, K]; test values are NaN where not measured
    final/train_loss, train_accuracy, test_loss, test_accuracy [K] float64; whole split, eval mode
    test/prediction [K, n] uint8, the predicted class of every test image; test/label [n] uint8, the true one
    batch_norm/<place>/weight, bias, running_mean, running_var [E + 1, K, C]; the first is the initial state
    activations/<place> [K, 256], a sample of the place's outputs on test images, eval mode
    weights/<name> [K, ...], LeNet5's state dict; optional
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save

from regcompare.config import CLASSES, PLACES, RegcompareError, RunConfig, make_config, shown
from regcompare.layers import WIDTHS, parameter_count

FORMAT = 1
METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
BN_ARRAYS = ("weight", "bias", "running_mean", "running_var")
Arrays = dict[str, np.ndarray[Any, Any]]


def save_arrays(arrays: Arrays, metadata: dict[str, str] | None = None) -> bytes:
    """The arrays as safetensors. In C order: the library would write any other as it lies in memory, wrong and without a word."""
    return save({name: np.asarray(values, order="C") for name, values in arrays.items()}, metadata)


class RunFileError(RegcompareError):
    """Not a run file, or not one that can be trusted; the text says what is wrong."""


@dataclass(frozen=True)
class RunFile:
    """The arrays and facts of a finished run. `facts`: format, config, seconds, finished, versions, device."""

    arrays: Arrays
    facts: dict[str, Any]

    @property
    def config(self) -> RunConfig:
        return make_config(self.facts["config"])

    def to_bytes(self) -> bytes:
        return save_arrays(self.arrays, metadata={"regcompare": json.dumps(self.facts, sort_keys=True)})

    @staticmethod
    def from_bytes(content: bytes, trusted: bool = False) -> "RunFile":
        """Read a run file and check every array it must have; `trusted` leaves the check out for what this store wrote.

        Raises:
            RunFileError: something is missing, of another shape, or not finite.
        """
        try:
            length = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + length]) if 2 <= length <= len(content) - 8 else {}
            facts = json.loads(header["__metadata__"]["regcompare"])
            arrays = load_arrays(content)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
            raise RunFileError(
                "This is not a run file of regcompare. Choose a .safetensors file that Runs, or --export DIR, has written."
            ) from None
        if not isinstance(facts, dict) or facts.get("format") != FORMAT:
            found = facts.get("format") if isinstance(facts, dict) else None
            raise RunFileError(f"The run file's format must be {FORMAT}, got '{shown(found)}'. Update regcompare, or export the run again.")
        run_file = RunFile(arrays, facts)
        if not trusted:
            _check(run_file)
        return run_file

    @staticmethod
    def from_points(points: Sequence[tuple[int, Mapping[str, Any]]], arrays: Arrays, facts: dict[str, Any]) -> "RunFile":
        """One stack's result: its points as arrays beside what training left behind."""
        empty = [np.nan] * len(arrays["final/test_loss"])
        history: Arrays = {f"history/{m}": np.array([value[m] or empty for _, value in points], np.float32) for m in METRICS}
        history["history/step"] = np.array([step for step, _ in points], np.int64)
        history["history/epoch"] = np.array([value["epoch"] for _, value in points], np.float64)
        return RunFile(history | arrays, facts | {"format": FORMAT})

    def history(self, metric: str) -> np.ndarray:
        """[T, K]; NaN where a test value was not measured."""
        return self.arrays[f"history/{metric}"]

    def final(self, metric: str) -> np.ndarray:
        """[K]; whole split, eval mode."""
        return self.arrays[f"final/{metric}"]

    def summary(self) -> dict[str, Any]:
        """What tables show, without reading the arrays: final values by seed, seconds, images a second."""
        config = self.config
        seconds = float(self.facts["seconds"])
        images = config.n_train * config.epochs * len(config.seeds)
        return {
            "seconds": seconds,
            "images_per_second": images / seconds if seconds > 0 else None,
            "parameters": parameter_count(config),
            **{metric: self.final(metric).tolist() for metric in METRICS},
        }


def merge_stacks(config: RunConfig, stacks: Sequence[RunFile]) -> RunFile:
    """The results of a run's stacks, in order, as one: the replicate axes joined."""
    axis = {"history": 1, "batch_norm": 1}
    arrays: Arrays = {}
    for name, first in stacks[0].arrays.items():
        if name in ("history/step", "history/epoch", "test/label"):
            arrays[name] = first
        else:
            arrays[name] = np.concatenate([part.arrays[name] for part in stacks], axis.get(name.partition("/")[0], 0))
    began, ended = min(part.facts["began"] for part in stacks), max(part.facts["ended"] for part in stacks)
    shared = {name: value for name, value in stacks[0].facts.items() if name not in ("began", "ended")}
    return RunFile(arrays, shared | {"config": config.model_dump(mode="json"), "seconds": ended - began, "finished": ended})


def _check(run_file: RunFile) -> None:
    """Refuse what pages and tables could not show.

    Raises:
        RunFileError: see `RunFile.from_bytes`.
    """

    def require(holds: bool, what: str, rule: str) -> None:
        if not holds:
            raise RunFileError(f"The run file's {what} must {rule}. Export the run again with this version.")

    try:
        config = run_file.config
    except (RegcompareError, KeyError, TypeError, ValueError) as error:
        raise RunFileError(f"The run file's recipe is not valid ({error}). Export the run again with this version.") from None
    arrays, size = run_file.arrays, len(config.seeds)
    length = np.size(arrays.get("history/step", ()))
    require(length > 0, "array history/step", "hold at least one point")
    expected: dict[str, tuple[int, ...]] = {"history/step": (length,), "history/epoch": (length,)}
    expected |= {f"history/{metric}": (length, size) for metric in METRICS}
    expected |= {f"final/{metric}": (size,) for metric in METRICS}
    expected |= {"test/prediction": (size, config.n_test), "test/label": (config.n_test,)}
    for place in config.normalized_places:
        expected |= {f"batch_norm/{place}/{array}": (config.epochs + 1, size, WIDTHS[place]) for array in BN_ARRAYS}
    for name, shape in expected.items():
        found = arrays[name].shape if name in arrays else "none"
        require(found == shape, f"array {name}", f"have shape {shape}, got '{found}'")
    for name, values in arrays.items():
        kind, _, rest = name.partition("/")
        known = name in expected or (kind == "activations" and rest in PLACES) or (kind == "weights" and rest)
        require(bool(known), f"array {shown(name)}", "be one that regcompare writes")
        replicates = name in expected or (values.ndim > (kind == "activations") and len(values) == size)
        require(replicates, f"array {shown(name)}", f"hold {size} replicates")
        measured = ~np.isnan(values).all(-1) if name.startswith("history/test") else slice(None)
        require(bool(np.isfinite(values[measured]).all()), f"array {shown(name)}", "hold finite numbers only")
        if name.endswith("_accuracy"):
            require(bool(((values[measured] >= 0) & (values[measured] <= 1)).all()), name, "lie between 0 and 1")
        if name in ("history/step", "test/prediction", "test/label"):
            top = CLASSES - 1 if kind == "test" else config.steps
            whole = values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= top
            require(bool(whole), f"array {name}", f"hold whole numbers from 0 to {top}")
    for fact, value in (("seconds", run_file.facts.get("seconds")), ("finished", run_file.facts.get("finished", 0))):
        require(isinstance(value, int | float) and 0 <= value < 1e12, fact, f"be a number of at least 0, got '{shown(value)}'")
