"""Tables: nothing lost on the way to a file, and the assignment's own table. Run: pytest tests/test_tables.py"""

import io
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from regcompare import tables
from regcompare.config import PRESETS, RunConfig, preset
from regcompare.layers import layer_table, parameter_count
from regcompare.runfile import METRICS, RunFile
from regcompare.stats import Arm, compare_all, estimate
from regcompare.store import Run

PUBLISHED = Path(__file__).parent.parent / "cache" / "published"
TINY = {"train_size": 100, "batch_size": 50, "epochs": 2}
# seed/assignment.txt, Problem 1: torchsummary's table. Its last line is cut off there; 10 classes from 84 units have 850.
ASSIGNMENT = """
BatchNorm2d-1            [-1, 1, 32, 32]               2
     Conv2d-2            [-1, 6, 28, 28]             156
BatchNorm2d-3            [-1, 6, 28, 28]              12
       ReLU-4            [-1, 6, 28, 28]               0
  MaxPool2d-5            [-1, 6, 14, 14]               0
     Conv2d-6           [-1, 16, 10, 10]           2,416
BatchNorm2d-7           [-1, 16, 10, 10]              32
       ReLU-8           [-1, 16, 10, 10]               0
  MaxPool2d-9             [-1, 16, 5, 5]               0
    Linear-10                  [-1, 120]          48,120
      ReLU-11                  [-1, 120]               0
    Linear-12                   [-1, 84]          10,164
      ReLU-13                   [-1, 84]               0
    Linear-14                   [-1, 10]             850
"""


def run_of(config, status="done", accuracy=None, **changes):
    """A row of the store, by hand."""
    summary = None
    if status == "done":
        accuracy = accuracy or [0.5 + 0.01 * k for k in range(len(config.seeds))]
        loss = [1 - value for value in accuracy]
        trained = [value + 0.1 for value in accuracy]
        summary = {"seconds": 12.34, "images_per_second": 100.0, "parameters": parameter_count(config)}
        summary |= {"test_accuracy": accuracy, "test_loss": loss, "train_accuracy": trained, "train_loss": [x / 2 for x in loss]}
    name = next((n for n in PRESETS if preset(n, **config.model_dump(exclude={"input_norm", "batch_norm", "dropout"})) == config), None)
    facts = {"created": 1e9, "started": 1e9, "finished": 1e9 + 12, "error": None, "source": "trained", "cancel": False} | changes
    return Run(config.key(), config, name, status, **facts, summary=summary)


def record_of(config, seed=0):
    """Curves of random numbers that need every digit; at the second of three points no test value was measured."""
    random = np.random.default_rng(seed)
    size = len(config.seeds)
    arrays = {"history/step": np.array([1, 2, 2**40]), "history/epoch": random.random(3)}
    arrays |= {f"history/{metric}": random.random((3, size)).astype(np.float32) for metric in METRICS}
    for metric in ("test_loss", "test_accuracy"):
        arrays[f"history/{metric}"][1] = np.nan
    return RunFile(arrays, {"config": config.model_dump(mode="json")})


# Runs and results


def test_a_row_a_run():
    done = run_of(preset("dropout", **TINY, seeds=(0, 1, 2)))
    alone = run_of(preset("baseline", seeds=(4,)), source="published")
    waiting = run_of(RunConfig(dataset="mnist", batch_norm="conv1", seeds="0-3"), "queued", created=1e9 + 0.5)
    table = tables.runs_table([done, alone, waiting])
    first, second, third = table.to_dict("records")
    assert first == {
        "status": "done",
        "arm": "dropout",
        "images": "mnist-5k, 100",
        "epochs": 2,
        "optimizer": "adam",
        "lr": 0.001,
        "batch": 50,
        "n": 3,
        "test accuracy, %": pytest.approx(51),
        "±": pytest.approx(100 * estimate([0.5, 0.51, 0.52]).half),
        "test loss": pytest.approx(0.49),
        "seconds": 12.34,
        "created": datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC),
        "source": "trained",
        "key": done.key,
    }
    assert (second["test accuracy, %"], second["source"], second["images"]) == (50, "published", "mnist-5k")
    assert np.isnan(second["±"])  # one seed has no interval
    assert (third["status"], third["arm"], third["n"]) == ("queued", waiting.label, 4)
    assert all(np.isnan(third[column]) for column in ("test accuracy, %", "±", "test loss", "seconds"))
    assert all(table[column].dtype == float for column in ("test accuracy, %", "±", "test loss", "seconds"))  # so that it sorts


def test_no_runs_keep_the_columns():
    table = tables.runs_table([])
    assert table.empty
    assert list(table.columns) == list(tables.runs_table([run_of(RunConfig())]).columns)


def test_results_carry_n_and_interval():
    (row,) = tables.results_table(iter([run_of(preset("baseline", seeds=(0, 1, 2)))])).to_dict("records")
    assert row == {
        "arm": "baseline",
        "test accuracy, %": "51.00 ± 2.48 (n = 3)",
        "test loss, nats": "0.4900 ± 0.0248 (n = 3)",
        "training accuracy, %": "61.00 ± 2.48 (n = 3)",
        "gap, points": "+10.00 ± 0.00 (n = 3)",
        "parameters": 61_706,
        "seconds": 12.3,
    }
    (alone,) = tables.results_table([run_of(preset("baseline", seeds=(0,)))]).to_dict("records")
    assert alone["test accuracy, %"] == "50.00 (n = 1, no interval)"
    assert alone["gap, points"] == "+10.00 (n = 1, no interval)"
    assert tables.results_table([]).empty


# Curves, long


FEW = [record_of(preset("dropout", **TINY, seeds=(3, 5)), 1), record_of(preset("input-bn", **TINY, seeds=(0,)), 2)]


def test_a_row_a_run_point_and_seed():
    table = tables.curves_table(FEW)
    assert list(table.columns) == ["key", "arm", "dataset", "seed", "step", "epoch", *METRICS]
    assert len(table) == 3 * 2 + 3 * 1
    for record in FEW:
        config = record.config
        mine = table[table.key == config.key()]
        for k, seed in enumerate(config.seeds):
            rows = mine[mine.seed == seed]
            assert rows.step.tolist() == [1, 2, 2**40]
            assert rows.epoch.tolist() == record.arrays["history/epoch"].tolist()
            for metric in METRICS:
                np.testing.assert_array_equal(rows[metric], record.history(metric)[:, k])
    assert set(zip(table.arm, table.dataset, strict=True)) == {("dropout", "mnist-5k"), ("input-bn", "mnist-5k")}
    assert table.test_loss.isna().sum() == table.test_accuracy.isna().sum() == 3
    assert tables.curves_table(record for record in FEW).equals(table)


def test_no_curves_keep_the_columns():
    assert list(tables.curves_table([]).columns) == list(tables.curves_table(FEW).columns)


def written(table, form):
    """The bytes that the Runs page gives out, read as a user would read them."""
    out = io.BytesIO()
    (table.to_csv if form == "csv" else table.to_parquet)(out, index=False)
    out.seek(0)
    return pd.read_csv(out, dtype={"key": "str"}) if form == "csv" else pd.read_parquet(out)


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("source", ["made", "published"])
def test_a_file_loses_nothing(form, source):
    records = FEW
    if source == "published":
        records = [RunFile.from_bytes(path.read_bytes()) for path in sorted(PUBLISHED.glob("*-mnist-5k-*"))[:2]]
    table = tables.curves_table(records)
    back = written(table, form)
    assert list(back.columns) == list(table.columns)
    for column in table:
        expected, found = table[column].to_numpy(), back[column].to_numpy()
        np.testing.assert_array_equal(found.astype(expected.dtype), expected)  # every bit of every number, and what was not measured


# Layers


def test_the_assignments_net():
    config = RunConfig(input_norm="batch", batch_norm="conv")
    expected = [
        (kind, shape, int(count.replace(",", ""))) for kind, shape, count in re.findall(r"(\w+)-\d+ +(\[.*\]) +([\d,]+)", ASSIGNMENT)
    ]
    table = tables.layers_table(config)
    assert len(expected) == 14
    assert list(table[["kind", "output shape", "parameters"]].itertuples(index=False, name=None)) == expected
    assert table.parameters.sum() == parameter_count(config) == 61_752
    assert table.layer.is_unique


@pytest.mark.parametrize("name", PRESETS)
def test_layers_of_the_presets(name):
    config = preset(name)
    table = tables.layers_table(config)
    assert len(table) == len(layer_table(config))
    kinds = table.kind.str.replace(r"\(.*", "", regex=True).value_counts().to_dict()
    normalized, dropped = len(config.normalized_places), len(config.dropout.rates())
    assert sum(kinds.get(kind, 0) for kind in ("BatchNorm1d", "BatchNorm2d")) == normalized
    assert sum(kinds.get(kind, 0) for kind in ("Dropout", "Dropout2d")) == dropped
    assert kinds.get("Normalize", 0) == (config.input_norm == "standard")
    assert (kinds["Conv2d"], kinds["Linear"], kinds["ReLU"], kinds["MaxPool2d"]) == (2, 3, 4, 2)
    assert table.layer.tolist()[-1] == "fc3"


def test_the_order_at_a_place():
    """Linear map, normalization, ReLU, pooling, dropout."""
    config = preset("bn-dropout")
    layers = tables.layers_table(config).layer.tolist()
    start = layers.index("conv1")
    assert layers[:2] == ["input_standard", "input_dropout"]
    assert layers[start : start + 5] == ["conv1", "conv1_bn", "conv1_relu", "conv1_pool", "conv1_dropout"]
    start = layers.index("fc2")
    assert layers[start:] == ["fc2", "fc2_bn", "fc2_relu", "fc2_dropout", "fc3"]


# What differs


def test_only_fields_that_differ():
    one, other = preset("baseline"), preset("dropout", epochs=5, seeds=(0, 1, 2, 9))
    table = tables.recipe_differences([one, other])
    first, second = f"baseline ({one.key()[:4]})", f"dropout ({other.key()[:4]})"
    assert table.to_dict("index") == {
        "epochs": {first: "30", second: "5"},
        "seeds": {first: "0-7", second: "0-2,9"},
        "dropout input": {first: "0", second: "0.2"},
        **{f"dropout {place}": {first: "0", second: "0.5"} for place in ("conv1", "conv2", "fc1", "fc2")},
    }


def test_words_for_what_is_empty():
    table = tables.recipe_differences([preset("baseline"), preset("input-bn"), RunConfig(batch_norm="conv1", train_size=200)])
    assert table.loc["batch_norm"].tolist() == ["none", "conv1, conv2, fc1, fc2", "conv1"]
    assert table.loc["train_size"].tolist() == ["4000", "4000", "200"]
    assert table.loc["input_norm"].tolist() == ["standard", "batch", "standard"]


@pytest.mark.parametrize("configs", [[], [RunConfig()], [RunConfig(), RunConfig()]])
def test_nothing_differs(configs):
    assert tables.recipe_differences(configs).empty


# Sides of a comparison


def test_arms_of_finished_runs():
    runs = [run_of(preset("dropout", seeds=(3, 5))), run_of(RunConfig(), "running")]
    assert tables.arms(iter(runs), "test_accuracy") == [Arm("dropout", (3, 5), [0.5, 0.51])]
    assert tables.arms(runs, "test_loss")[0].values == [0.5, 0.49]


def test_arms_of_one_name_are_told_apart():
    runs = [run_of(preset("dropout")), run_of(preset("dropout", lr=0.1)), run_of(preset("baseline"))]
    names = [arm.name for arm in tables.arms(runs, "test_accuracy")]
    assert len(set(names)) == 3
    assert names[2] == "baseline"
    assert "lr 0.1" in names[1]


@pytest.mark.parametrize(("metric", "scale"), [("test_accuracy", 100), ("test_loss", 1)])
def test_comparisons_in_points_or_nats(metric, scale):
    found = compare_all([Arm("x", range(3), [0.5, 0.6, 0.7]), Arm("y", range(3), [0.6, 0.8, 0.9]), Arm("z", (9,), [0.5])], metric)
    table = tables.comparisons_table(found)
    row = table.iloc[0]
    assert (row["a"], row["b"], row["n"], row["paired"]) == ("y", "x", 3, True)
    gain = estimate([0.1, 0.2, 0.2])
    assert row[["a minus b", "low", "high"]].tolist() == pytest.approx([scale * value for value in gain[:3]])
    assert (row["p"], row["p, Holm"]) == pytest.approx((found[0].p, found[0].p_holm))
    assert table.iloc[1][["low", "high", "p", "seeds needed"]].isna().all()  # one seed on one side
    assert tables.comparisons_table([]).empty
