"""Numbers to pandas tables: what pages list and what files carry. Pure functions; know neither Streamlit nor SQL."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from regcompare.config import RunConfig, arm_names, format_seeds, label, setting_title, short_title
from regcompare.layers import layer_table
from regcompare.runfile import BN_ARRAYS, METRICS, RunFile
from regcompare.stats import Arm, Comparison, binomial, difference, estimate, mcnemar, nats, number, percent
from regcompare.store import Run


def runs_table(runs: Iterable[Run]) -> pd.DataFrame:
    """A row a run. Accuracies and `±`, half the 95 % interval over seeds, in percent; losses in nats; times in UTC."""
    columns = ["status", "arm", "images", "epochs", "optimizer", "lr", "batch", "n", "test accuracy, %", "±", "test loss", "seconds"]
    return pd.DataFrame([_run_row(run) for run in runs], columns=[*columns, "created", "source", "key"])


@lru_cache(maxsize=20_000)  # of many runs only those that changed are worked out again
def _run_row(run: Run) -> tuple[Any, ...]:
    config, summary = run.config, run.summary or {}
    accuracy = estimate(summary["test_accuracy"]) if summary else None
    images = config.dataset if config.train_size is None else f"{config.dataset}, {config.train_size}"
    return (
        *(run.status, run.label, images, config.epochs, config.optimizer, config.lr, config.batch_size, len(config.seeds)),
        100 * accuracy.mean if accuracy else None,
        100 * accuracy.half if accuracy and accuracy.half is not None else None,
        estimate(summary["test_loss"]).mean if summary else None,
        summary.get("seconds"),
        *(datetime.fromtimestamp(run.created, UTC), run.source, run.key),
    )


@lru_cache(maxsize=20_000)  # each search looks at all of them
def search_text(run: Run) -> str:
    """What a search on the Runs page looks at."""
    return f"{run.key} {run.status} {run.source} {run.preset} {short_title(run.config)} {setting_title(run.config)}".lower()


def curves_table(records: Iterable[RunFile]) -> pd.DataFrame:
    """The learning curves, a row a run, point and seed. Accuracies are fractions; a test value not measured is empty."""
    parts = []
    for record in records:
        config = record.config
        length, size = record.history("train_loss").shape
        table = {"key": config.key(), "arm": label(config), "dataset": config.dataset, "seed": np.tile(config.seeds, length)}
        table |= {name: np.repeat(record.arrays[f"history/{name}"], size) for name in ("step", "epoch")}
        table |= {metric: record.history(metric).ravel() for metric in METRICS}
        parts.append(pd.DataFrame(table))
    return (
        pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["key", "arm", "dataset", "seed", "step", "epoch", *METRICS])
    )


def results_table(runs: Iterable[Run]) -> pd.DataFrame:
    """Arms with final values, mean ± half the 95 % interval over seeds (n)."""
    rows = []
    for run in runs:
        summary = run.summary or {}
        rows.append(
            {
                "arm": run.label,
                "test accuracy, %": percent(estimate(summary["test_accuracy"])),
                "test loss, nats": nats(estimate(summary["test_loss"])),
                "training accuracy, %": percent(estimate(summary["train_accuracy"])),
                "gap, points": percent(difference(summary["train_accuracy"], summary["test_accuracy"]), signed=True),
                "parameters": summary["parameters"],
                "seconds": round(summary["seconds"], 1),
            }
        )
    return pd.DataFrame(rows)


def arms(runs: Iterable[Run], metric: str) -> list[Arm]:
    """Finished runs as sides of a comparison; named by their setting too where two would have one name."""
    runs = [run for run in runs if run.summary]
    titles = arm_names([run.config for run in runs])
    return [Arm(title, run.config.seeds, (run.summary or {})[metric]) for title, run in zip(titles, runs, strict=True)]


def comparisons_table(found: Iterable[Comparison]) -> pd.DataFrame:
    """A row a pair of arms; differences and intervals in points (accuracy) or nats (loss)."""
    rows = []
    for one in found:
        scale = 100 if one.metric.endswith("accuracy") else 1
        gain = one.difference
        rows.append(
            {
                "a": one.a,
                "b": one.b,
                "a minus b": scale * gain.mean,
                "low": None if gain.low is None else scale * gain.low,
                "high": None if gain.high is None else scale * gain.high,
                "n": gain.n,
                "paired": one.paired,
                "p": one.p,
                "p, Holm": one.p_holm,
                "p, Wilcoxon": one.p_wilcoxon,
                "least p": one.p_floor,
                "effect": one.effect,
                "seeds needed": one.needed,
            }
        )
    return pd.DataFrame(rows)


def images_table(records: Iterable[RunFile]) -> pd.DataFrame:
    """Test accuracy of each arm in percent, with both uncertainties: over seeds, and over test images for one net."""
    rows = []
    for record in records:
        found = estimate(record.final("test_accuracy"))
        one = binomial(round(found.mean * record.config.n_test), record.config.n_test)
        half = None if one.low is None or one.high is None else 50 * (one.high - one.low)
        over_seeds = "one seed: none" if found.half is None else f"± {100 * found.half:.2f} (n = {found.n} seeds)"
        over_images = f"± {half:.2f} (n = {one.n:,} images)"
        rows.append(
            {
                "arm": label(record.config),
                "test accuracy, %": f"{100 * found.mean:.2f}",
                "over seeds": over_seeds,
                "over images": over_images,
            }
        )
    return pd.DataFrame(rows)


def mcnemar_table(a: RunFile, b: RunFile) -> pd.DataFrame:
    """Two arms on the seeds that both have: images that only one of the two nets gets right, and McNemar's p."""
    first, second = arm_names([a.config, b.config])
    rows = []
    for seed in sorted(set(a.config.seeds) & set(b.config.seeds)):
        right = [r.arrays["test/prediction"][r.config.seeds.index(seed)] == r.arrays["test/label"] for r in (a, b)]
        found = mcnemar(*right)
        rows.append({"seed": seed, f"only {first} right": found.only_a, f"only {second} right": found.only_b, "p": found.p})
    return pd.DataFrame(rows)


def layers_table(config: RunConfig) -> pd.DataFrame:
    """The net of a recipe, layer by layer, as the table in the assignment prints it."""
    rows = [(layer.name, layer.kind, str([-1, *layer.shape]), layer.parameters) for layer in layer_table(config)]
    return pd.DataFrame(rows, columns=["layer", "kind", "output shape", "parameters"])


def parameters_table(record: RunFile) -> pd.DataFrame:
    """Learned batch-norm values at the end, a row a place: mean over channels, ± half the 95 % interval over seeds (n)."""
    rows = []
    for place in record.config.normalized_places:
        values = {array: record.arrays[f"batch_norm/{place}/{array}"][-1] for array in BN_ARRAYS}  # each [K, C]
        cells = {array.replace("_", " "): number(estimate(value.mean(1))) for array, value in values.items()}
        rows.append({"place": place, "channels": values["weight"].shape[1]} | cells)
    return pd.DataFrame(rows)


def recipe_differences(configs: Sequence[RunConfig]) -> pd.DataFrame:
    """The fields in which recipes differ, a column a recipe; empty if they do not."""
    columns = {f"{label(config)} ({config.key()[:4]})": _flat(config) for config in configs}
    table = pd.DataFrame(columns)
    return table.loc[table.nunique(axis=1) > 1, :]


def _flat(config: RunConfig) -> dict[str, str]:
    """Every field of a recipe as text; the dropout rates one by one."""
    values = config.model_dump(mode="json")
    rates = {f"dropout {place}": f"{rate:g}" for place, rate in values.pop("dropout").items()}
    text = {name: ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value) for name, value in values.items()}
    return text | {"seeds": format_seeds(config.seeds), "train_size": str(config.n_train)} | rates
