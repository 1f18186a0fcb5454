"""Training speed: the notebook's loop, the best plain loop, the stack, the product, and the limit of this machine's arithmetic.

    make bench                                        (or: PYTHONPATH=. .venv/bin/python benchmarks/training.py --json)
    pip install -r benchmarks/requirements.txt        adds Lightning and Keras to the contenders

One run, contenders taken in turns whose order alternates, medians over ROUNDS. Images are mnist-5k's: a step does not know
how many there are. The net is LeNet-5 with batch norm on both convolutions and both dense layers, batches of 64, Adam.
"""

import argparse
import importlib.util
import itertools
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from regcompare import train as training
from regcompare import vision
from regcompare.config import HIDDEN_PLACES, RunConfig, preset
from regcompare.data import Data, load
from regcompare.layers import CONVS, FAN_INS, KERNEL, MAP_SIDES, OUTPUTS
from regcompare.model import LeNet5, Stack
from regcompare.probes import training_steps
from regcompare.store import Store
from regcompare.worker import cores, train_stack

ROUNDS = 5
BATCH = 64
SIZES = {"cpu": (1, 2, 4, 8), "cuda": (8, 32, 64, 128, 256)}
CONFIG = RunConfig(input_norm="standard", batch_norm=HIDDEN_PLACES, batch_size=BATCH)  # type: ignore[arg-type]
PRODUCT_EPOCHS, PRODUCT_SEEDS = 10, 8
# What each figure should be; the first word says which side of the number is good.
BARS = {
    "product path, images/s, over the notebook's loop": ("least", 8.0),
    "stack of 4, per core, over the best plain loop": ("least", 2.2),
    "stack of 4, time over the arithmetic limit": ("most", 2.2),
    "input-bn, time over standard-bn": ("most", 1.2),
    "recording, share added to bare training": ("most", 0.03),
    "evaluation, share of bare training": ("most", 0.15),
    "time of 8 seeds over 1": ("most", 4.5),
}
Contender = Callable[[int], float]  # steps -> seconds


def multiply_adds() -> int:
    """Of one image forward and backward: each map thrice (output, weight gradient, input gradient), the pixels' gradient left out."""
    total = {}
    for layer, fan_in in FAN_INS.items():
        places = (MAP_SIDES[layer] ** 2 * KERNEL**2) if layer in CONVS else 1
        total[layer] = places * fan_in * OUTPUTS[layer]
    return 3 * sum(total.values()) - total["conv1"]


class NotebookImages(Dataset):
    """The notebook's data set: of each image, each epoch anew, a PIL image, torchvision's resize, tensor and normalize."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        vision.datasets()  # makes torchvision import beside a CPU torch
        from torchvision import transforms

        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index].numpy(), mode="L")), int(self.labels[index])  # as torchvision's MNIST


def synchronized(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def notebook(data: Data) -> Contender:
    net, loss_of = LeNet5(RunConfig(batch_norm=HIDDEN_PLACES)), nn.CrossEntropyLoss()  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    raw = data.train_images[:, 2:30, 2:30]  # 28 x 28, as MNIST's files have them
    loader = DataLoader(NotebookImages(raw, data.train_labels), batch_size=BATCH, shuffle=True)
    batches = iter(itertools.chain.from_iterable(itertools.repeat(loader)))

    def steps(count: int) -> float:
        began, total = time.perf_counter(), 0.0
        for _ in range(count):
            images, labels = next(batches)
            logits = net(images)
            loss = loss_of(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            total += (logits.argmax(1) == labels).sum().item()
        return time.perf_counter() - began

    return steps


def plain(data: Data, device: str, threads: int) -> Contender:
    """One net in ordinary layers, all that helps it in place: resident float images, fused Adam, channels last."""
    net = LeNet5(RunConfig(batch_norm=HIDDEN_PLACES)).to(device, memory_format=torch.channels_last)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001, fused=True)
    images = ((data.train_images.float() / 255 - data.mean) / data.std)[:, None].to(device)
    labels = data.train_labels.to(device)

    def steps(count: int) -> float:
        torch.set_num_threads(threads)
        began = synchronized(device)
        for batch in torch.randint(len(labels), (count, BATCH), device=device):
            loss = F.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        seconds = synchronized(device) - began
        torch.set_num_threads(cores())
        return seconds

    return steps


def stacked(config: RunConfig, data: Data, size: int, device: str) -> Contender:
    """The product's step on one thread; seconds are for `size` replicates together."""
    net = Stack(config, range(size), data, device)
    optimizer = training.make_optimizer(config, net)
    window = training.Window(size, device)

    def steps(count: int) -> float:
        training.one_core()
        began = synchronized(device)
        for batch in torch.randint(len(data.train_labels), (count, size, BATCH), device=device):
            window.add(*training.train_step(net, optimizer, *data.batch(batch)))
        seconds = synchronized(device) - began
        torch.set_num_threads(cores())
        return seconds

    return steps


def arithmetic() -> Contender:
    """The step's multiplications and additions alone, at the rate of a large matrix product on one thread."""
    a, b, out = torch.randn(768, 768), torch.randn(768, 768), torch.empty(768, 768)

    def steps(count: int) -> float:
        training.one_core()
        began = time.perf_counter()
        repeats = max(3, count // 8)
        for _ in range(repeats):
            torch.mm(a, b, out=out)
        rate = repeats * 768**3 / (time.perf_counter() - began)
        torch.set_num_threads(cores())
        return count * BATCH * multiply_adds() / rate

    return steps


def lightning_trainer(data: Data) -> Contender:
    vision.datasets()  # torchmetrics imports torchvision
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = LeNet5(RunConfig(batch_norm=HIDDEN_PLACES))  # type: ignore[arg-type]

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.001)

        def on_train_start(self) -> None:
            self.began = time.perf_counter()

        def on_train_end(self) -> None:
            self.seconds = time.perf_counter() - self.began

    images = ((data.train_images.float() / 255 - data.mean) / data.std)[:, None]
    loader = DataLoader(TensorDataset(images, data.train_labels), batch_size=BATCH, shuffle=True)
    module = Module()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}

    def steps(count: int) -> float:
        trainer = lightning.Trainer(max_steps=count, max_epochs=-1, accelerator="cpu", barebones=False, **quiet)
        trainer.fit(module, loader)
        return module.seconds

    return steps


def keras_fit(data: Data) -> Contender:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    layers = keras.layers
    net = keras.Sequential([keras.Input((32, 32, 1))])
    for place in CONVS:
        for layer in (layers.Conv2D(OUTPUTS[place], KERNEL), layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D()):
            net.add(layer)
    net.add(layers.Flatten())
    for place in ("fc1", "fc2"):
        for layer in (layers.Dense(OUTPUTS[place]), layers.BatchNormalization(), layers.ReLU()):
            net.add(layer)
    net.add(layers.Dense(OUTPUTS["fc3"]))
    net.compile(keras.optimizers.Adam(0.001), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = ((data.train_images.float() / 255 - data.mean) / data.std).numpy()[..., None]

    def steps(count: int) -> float:
        count_images = min(count * BATCH, len(images) // BATCH * BATCH)
        began = time.perf_counter()
        net.fit(images[:count_images], data.train_labels[:count_images].numpy(), batch_size=BATCH, epochs=1, verbose=0)
        return (time.perf_counter() - began) * count * BATCH / count_images

    return steps


def product(jobs: int, seeds: str, presets: tuple[str, ...] = (), epochs: int = PRODUCT_EPOCHS) -> float:
    """Seconds of the command as a user types it: start, data, training, evaluation, store and JSON included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "regcompare.run", "--json", "--quiet", "--dataset", "mnist-5k", "--device", "cpu"]
        command += ["--epochs", str(epochs), "--seeds", seeds, "--jobs", str(jobs), "--store", f"sqlite:///{folder}/s.db"]
        command += [word for name in presets for word in ("--preset", name)]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def bare(config: RunConfig, data: Data) -> float:
    """Seconds of `train`, its events read and dropped."""
    began = time.perf_counter()
    for _ in training.train(config, data):
        pass
    return time.perf_counter() - began


def steps_alone(config: RunConfig, data: Data) -> float:
    """Seconds of the same steps with no point, test or checkpoint."""
    began = time.perf_counter()
    for _ in training_steps(config, data, Stack(config, config.seeds, data)):
        pass
    return time.perf_counter() - began


def recorded(config: RunConfig, folder: str) -> float:
    """Seconds of the same training as the worker does it: points, checkpoints and the result into a store."""
    store, owner = Store(f"sqlite:///{folder}/{uuid.uuid4().hex}.db"), uuid.uuid4().hex
    run = store.request(config)
    store.claim(owner, key=run.key)
    began = time.perf_counter()
    train_stack(store.url, run.key, 0, owner, device="cpu")
    seconds = time.perf_counter() - began
    store.close()
    return seconds


def in_turns(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contender once a round, forwards and backwards in turn, after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            seconds = contenders[name]()
            if number:
                found[name].append(seconds)
    return found


def ratio(a: list[float], b: list[float]) -> float:
    """Median over rounds of a/b: what slows a whole round cancels."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def engines(data: Data, rounds: int, steps: int) -> tuple[list[dict[str, object]], dict[str, float], float]:
    """Loops and stacks, step by step. Returns table rows, ratios, and the notebook's images per second on all cores."""
    every = cores()
    contenders: dict[str, tuple[Contender, int, int]] = {  # name -> loop, replicates, cores it may use
        f"notebook's loop, {every} threads": (notebook(data), 1, every),
        "plain loop, 1 thread": (plain(data, "cpu", 1), 1, 1),
        f"plain loop, {every} threads": (plain(data, "cpu", every), 1, every),
        **{f"stack of {size}, 1 thread": (stacked(CONFIG, data, size, "cpu"), size, 1) for size in SIZES["cpu"]},
        "standard-bn, stack of 4": (stacked(preset("standard-bn"), data, 4, "cpu"), 4, 1),
        "input-bn, stack of 4": (stacked(preset("input-bn"), data, 4, "cpu"), 4, 1),
        "arithmetic alone, 1 thread": (arithmetic(), 1, 1),
    }
    for name, module, make in (("Lightning", "lightning", lightning_trainer), ("Keras", "keras", keras_fit)):
        if importlib.util.find_spec(module):
            backend = f" ({os.environ.get('KERAS_BACKEND', 'torch')})" if module == "keras" else ""
            contenders[f"{name}{backend}, {every} threads"] = make(data), 1, every
    found = in_turns({name: (lambda loop=loop: loop(steps)) for name, (loop, _, _) in contenders.items()}, rounds)
    rows = []
    for name, (_, size, used) in contenders.items():
        ms = 1000 * statistics.median(found[name]) / steps / size
        rows.append(
            {"contender": name, "ms a replicate-step": ms, "images/s": 1000 * BATCH / ms, "images/s a core": 1000 * BATCH / ms / used}
        )
    best = min((f"plain loop, {n} threads" if n > 1 else "plain loop, 1 thread" for n in {1, every}), key=lambda n: _per_core(rows, n))
    used = contenders[best][2]
    four = "stack of 4, 1 thread"
    ratios = {
        "stack of 4, per core, over the best plain loop": 4 * used * ratio(found[best], found[four]),
        "stack of 4, time over the arithmetic limit": ratio(found[four], found["arithmetic alone, 1 thread"]) / 4,
        "input-bn, time over standard-bn": ratio(found["input-bn, stack of 4"], found["standard-bn, stack of 4"]),
    }
    return rows, ratios, steps * BATCH / statistics.median(found[f"notebook's loop, {every} threads"])


def _per_core(rows: list[dict[str, object]], name: str) -> float:
    return -float(next(row["images/s a core"] for row in rows if row["contender"] == name))  # type: ignore[arg-type]


def overheads(data: Data, rounds: int) -> dict[str, float]:
    """What recording and evaluation add to one stack of four on one thread."""
    training.one_core()
    config = preset("standard-bn", epochs=PRODUCT_EPOCHS, seeds=(0, 1, 2, 3))
    with tempfile.TemporaryDirectory() as folder:
        found = in_turns(
            {"steps": lambda: steps_alone(config, data), "bare": lambda: bare(config, data), "recorded": lambda: recorded(config, folder)},
            rounds,
        )
    torch.set_num_threads(cores())
    return {
        "recording, share added to bare training": ratio(found["recorded"], found["bare"]) - 1,
        "evaluation, share of bare training": 1 - ratio(found["steps"], found["bare"]),
    }


def whole_commands(rounds: int, notebook_rate: float) -> tuple[list[dict[str, object]], dict[str, float]]:
    """The command line from start to end; the notebook's rate was measured in the same run, minutes before."""
    last = PRODUCT_SEEDS - 1
    found = in_turns(
        {
            "five arms": lambda: product(cores(), f"0-{last}"),
            "one seed": lambda: product(cores(), "0", ("standard-bn",)),
            "eight seeds": lambda: product(cores(), "0-7", ("standard-bn",)),
        },
        rounds,
    )
    images = 5 * PRODUCT_SEEDS * PRODUCT_EPOCHS * (preset("baseline").n_train // BATCH * BATCH)
    rate = images / statistics.median(found["five arms"])
    row = {"contender": f"product: five arms, {PRODUCT_SEEDS} seeds, --jobs {cores()}", "ms a replicate-step": None}
    rows = [row | {"images/s": rate, "images/s a core": rate / cores()}]
    return rows, {
        "product path, images/s, over the notebook's loop": rate / notebook_rate,
        "time of 8 seeds over 1": ratio(found["eight seeds"], found["one seed"]),
    }


def on_cuda(rounds: int, steps: int) -> list[dict[str, object]]:
    """The same step on a GPU: one plain net, and larger and larger stacks."""
    data = load(CONFIG, device="cuda")
    contenders = {"plain loop": (plain(load(CONFIG), "cuda", cores()), 1)}
    contenders |= {f"stack of {size}": (stacked(CONFIG, data, size, "cuda"), size) for size in SIZES["cuda"]}
    found = in_turns({name: (lambda loop=loop: loop(steps)) for name, (loop, _) in contenders.items()}, rounds)
    rows = []
    for name, (_, size) in contenders.items():
        ms = 1000 * statistics.median(found[name]) / steps / size
        rows.append({"contender": f"{name}, CUDA", "ms a replicate-step": ms, "images/s": 1000 * BATCH / ms, "images/s a core": None})
    return rows


def holds(name: str, value: float) -> bool:
    side, bar = BARS[name]
    return value >= bar if side == "least" else value <= bar


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--steps", type=int, default=60, help="training steps of a loop in a round")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=("engines", "overheads", "commands"), action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    parts = options.only or ["engines", "overheads", "commands"]
    rows: list[dict[str, object]] = []
    ratios: dict[str, float] = {}
    if options.device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("--device cuda needs a CUDA device, and PyTorch finds none here. Leave it out to measure the CPU.")
        rows = on_cuda(options.rounds, options.steps)
    else:
        data = load(CONFIG)
        if "engines" in parts or "commands" in parts:
            rows, ratios, notebook_rate = engines(data, options.rounds, options.steps)
        if "overheads" in parts:
            ratios |= overheads(data, options.rounds)
        if "commands" in parts:
            more, others = whole_commands(options.rounds, notebook_rate)
            rows, ratios = rows + more, ratios | others
    if options.json:
        print(json.dumps({"rows": rows, "ratios": ratios, "bars": BARS, "rounds": options.rounds, "cores": cores()}))
        return
    print(f"{platform.system()} {platform.machine()}, {cores()} cores, torch {torch.__version__}, medians of {options.rounds} rounds")
    for row in rows:
        shown = [
            "" if row[name] is None else f"{row[name]:,.{digits}f}"
            for name, digits in (("ms a replicate-step", 2), ("images/s", 0), ("images/s a core", 0))
        ]
        print(f"{row['contender']:<44}{shown[0]:>8} ms{shown[1]:>10} images/s{shown[2]:>10} a core")
    for name, value in ratios.items():
        side, bar = BARS[name]
        print(f"{name:<52}{value:>8.2f}   at {side} {bar:g}: {'met' if holds(name, value) else 'NOT met'}")


if __name__ == "__main__":
    main()
