"""The recipe as plain PyTorch: it runs, it is what the recipe says and no more, and it gives the numbers of `train`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from regcompare.config import DATASETS, PRESETS, make_config, preset
from regcompare.data import load
from regcompare.script import script
from regcompare.train import Finished, train

SMALL = {"train_size": 210, "batch_size": 19, "epochs": 2, "seeds": (0, 5)}  # 12 steps an epoch, the last batch of one left out
RECIPES = {name: preset(name, **SMALL) for name in PRESETS} | {
    "dropout first": preset("bn-dropout", dropout_order="before", **SMALL),
    "single layers": make_config(
        {"input_norm": "none", "batch_norm": "conv1,fc2", "dropout": {"conv2": 0.1, "fc2": 0.3}, "optimizer": "sgd", "lr": 0.002} | SMALL
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_gives_the_numbers_of_train(name, tmp_path):
    """Loss and accuracy of each seed after 22 steps. Float32 rounding moves the loss by 2 % at most (see docs/architecture.md)."""
    config = RECIPES[name]
    path = tmp_path / "recipe.py"
    path.write_text(script(config), encoding="utf-8")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = re.findall(r"^seed (\d+): test loss (\S+), test accuracy (\S+)$", done.stdout, re.MULTILINE)
    (last,) = [event for event in train(config, load(config)) if isinstance(event, Finished)]
    assert [int(seed) for seed, _, _ in found] == list(config.seeds)
    assert [float(loss) for _, loss, _ in found] == pytest.approx(last.arrays["final/test_loss"].tolist(), rel=2e-2)
    assert [float(accuracy) for *_, accuracy in found] == pytest.approx(last.arrays["final/test_accuracy"].tolist(), abs=0.02)
    assert "(95 % interval over n = 2 seeds)" in done.stdout


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", RECIPES)
def test_it_holds_what_the_recipe_has_and_no_more(name, dataset, tmp_path):
    config = make_config(RECIPES[name].model_dump() | {"dataset": dataset})
    text = script(config)
    compile(text, "recipe.py", "exec")
    assert "import regcompare" not in text
    assert ("BatchNorm" in text) == bool(config.normalized_places)
    assert text.count("nn.BatchNorm") == len(config.normalized_places)
    assert ("class Dropout" in text) == bool(config.dropout.rates())
    assert text.count("Dropout(0.") == len(config.dropout.rates())
    assert max(map(len, text.splitlines())) <= 110
    assert len(text.splitlines()) <= 135
    path = tmp_path / "recipe.py"
    path.write_text(text, encoding="utf-8")
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run(
        [ruff, "check", "--isolated", "--select", "E4,E7,E9,F,B", "--ignore", "E402", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
