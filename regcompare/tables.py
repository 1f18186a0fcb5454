"""Numbers to pandas tables: what pages list and what files carry. Pure functions; know neither Streamlit nor SQL."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from regcompare.config import RunConfig, format_seeds, label
from regcompare.layers import layer_table
from regcompare.runfile import METRICS, RunFile
from regcompare.stats import difference, estimate, nats, percent
from regcompare.store import Run


def runs_table(runs: Iterable[Run]) -> pd.DataFrame:
    """A row a run. Accuracies and `±`, half the 95 % interval over seeds, in percent; losses in nats; times in UTC."""
    rows = []
    for run in runs:
        config, summary = run.config, run.summary or {}
        accuracy = estimate(summary["test_accuracy"]) if summary else None
        loss = estimate(summary["test_loss"]) if summary else None
        rows.append(
            {
                "status": run.status,
                "arm": run.label,
                "images": config.dataset if config.train_size is None else f"{config.dataset}, {config.train_size}",
                "epochs": config.epochs,
                "optimizer": config.optimizer,
                "lr": config.lr,
                "batch": config.batch_size,
                "n": len(config.seeds),
                "test accuracy, %": 100 * accuracy.mean if accuracy else None,
                "±": 100 * accuracy.half if accuracy and accuracy.half is not None else None,
                "test loss": loss.mean if loss else None,
                "seconds": summary.get("seconds"),
                "created": datetime.fromtimestamp(run.created, UTC),
                "source": run.source,
                "key": run.key,
            }
        )
    columns = ["status", "arm", "images", "epochs", "optimizer", "lr", "batch", "n", "test accuracy, %", "±", "test loss", "seconds"]
    return pd.DataFrame(rows, columns=[*columns, "created", "source", "key"])


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


def layers_table(config: RunConfig) -> pd.DataFrame:
    """The net of a recipe, layer by layer, as the table in the assignment prints it."""
    rows = [(layer.name, layer.kind, str([-1, *layer.shape]), layer.parameters) for layer in layer_table(config)]
    return pd.DataFrame(rows, columns=["layer", "kind", "output shape", "parameters"])


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
