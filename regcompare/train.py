"""Training as a stream of events: `train` yields, readers decide what to do with it. No callbacks, no trainer object."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from regcompare.config import PLACES, RegcompareError, RunConfig
from regcompare.data import Data, generator
from regcompare.memory import keep_freed
from regcompare.model import BN_ARRAYS, ORDER_STREAM, Folded, Stack

EVAL_BATCH = 200  # measured: larger batches leave the cache, smaller ones pay for calls
ACTIVATION_IMAGES, ACTIVATION_SAMPLES = 128, 256
SGD_MOMENTUM = 0.9
FIRST_EPOCH_TESTS = 4
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Started:
    """The nets are built, or taken up again at `step`."""

    step: int


@dataclass(frozen=True)
class Point:
    """Loss (nats) and accuracy (fraction) for each replicate after `step` steps.

    The training values are running means over the steps since the point before; the test values, where measured, are
    the whole test split in eval mode.
    """

    step: int
    epoch: float
    train_loss: list[float]
    train_accuracy: list[float]
    test_loss: list[float] | None = None
    test_accuracy: list[float] | None = None


@dataclass(frozen=True)
class EpochEnded:
    """`epoch` epochs are done. `batch_norm`: arrays [K, C] by `place/array`; `checkpoint`: all that `train` needs to resume."""

    epoch: int
    batch_norm: Arrays
    checkpoint: Arrays


@dataclass(frozen=True)
class Finished:
    """The final measurements: `arrays` has `final/*` [K], `test/*`, `activations/*` and `weights/*`."""

    arrays: Arrays
    seconds: float


Event = Started | Point | EpochEnded | Finished


class TrainingFailed(RegcompareError):
    """The loss left the finite numbers."""


def train(
    config: RunConfig, data: Data, seeds: Sequence[int] | None = None, device: str = "cpu", resume: Mapping[str, np.ndarray] | None = None
) -> Iterator[Event]:
    """Train `seeds` (all of the recipe's unless given) as one stack and yield what happens.

    `resume` is the checkpoint of an `EpochEnded`; the numbers then are those of a run that was never interrupted.

    Raises:
        TrainingFailed: a loss is not finite; the text says where, why and what to change.
    """
    began = time.perf_counter()
    net = Stack(config, seeds or config.seeds, data, device)
    optimizer = make_optimizer(config, net)
    orders = [generator(seed, ORDER_STREAM) for seed in net.seeds]
    first_epoch = restore(resume, net, optimizer, orders) if resume else 0
    window, pace = Window(net.size, device), Pace(config)
    yield Started(first_epoch * config.steps_per_epoch)
    if not resume:
        yield EpochEnded(0, batch_norm_arrays(net), {})
    for epoch in range(first_epoch, config.epochs):
        shuffled = torch.stack([torch.randperm(config.n_train, generator=order) for order in orders]).to(device)
        for index in range(config.steps_per_epoch):
            batch = shuffled[:, index * config.batch_size : (index + 1) * config.batch_size]
            window.add(*train_step(net, optimizer, *data.batch(batch)))
            step = epoch * config.steps_per_epoch + index + 1
            if pace.is_point(step):
                test = score(net.folded(), data.test_images, data.test_labels) if pace.is_test(step) else None
                yield checked(window.point(step, step / config.steps_per_epoch, test), config, net.seeds)
        yield EpochEnded(epoch + 1, batch_norm_arrays(net), checkpoint(epoch + 1, net, optimizer, orders))
    yield Finished(final_arrays(net, data), time.perf_counter() - began)


def one_core() -> None:
    """Ready this process to train beside others: one thread, which also gives the same bits whatever --jobs is, and warm memory."""
    torch.set_num_threads(1)
    keep_freed()


def train_step(net: Stack, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One step of every replicate. images [K, B, 32, 32], labels [K, B]; returns loss and share correct, each [K]."""
    logits = net(images)  # [K, B, 10]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)
    optimizer.zero_grad(set_to_none=True)
    losses.sum().backward()  # the replicates share no weight, so each gets the gradient of its own mean loss
    optimizer.step()
    correct = (logits.detach().argmax(2) == labels).float().mean(1)
    return losses.detach(), correct


def make_optimizer(config: RunConfig, net: Stack) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(net.parameters(), lr=config.lr, momentum=SGD_MOMENTUM)
    return torch.optim.Adam(net.parameters(), lr=config.lr, fused=True)


class Pace:
    """Which steps give a point, and which a test point: fixed by the recipe, so that replicates meet on one grid."""

    def __init__(self, config: RunConfig) -> None:
        self.interval = min(20, max(1, 640 // config.batch_size))  # a third of a second at most on a slow core
        self.per_epoch, self.last = config.steps_per_epoch, config.steps
        self.early = {round(self.per_epoch * part / (FIRST_EPOCH_TESTS + 1)) for part in range(1, FIRST_EPOCH_TESTS + 1)}

    def is_test(self, step: int) -> bool:
        return step % self.per_epoch == 0 or step in self.early

    def is_point(self, step: int) -> bool:
        return step in (1, 2, 5) or step % self.interval == 0 or self.is_test(step)


class Window:
    """Running mean of loss and accuracy since the last point, kept on the device: reading a point is the only wait."""

    def __init__(self, size: int, device: str) -> None:
        self.sums, self.count = torch.zeros(2, size, device=device), 0

    def add(self, losses: torch.Tensor, correct: torch.Tensor) -> None:
        self.sums[0] += losses
        self.sums[1] += correct
        self.count += 1

    def point(self, step: int, epoch: float, test: "Score | None") -> Point:
        loss, accuracy = (self.sums / self.count).tolist()
        self.sums.zero_()
        self.count = 0
        return Point(step, epoch, loss, accuracy, test and test.loss.tolist(), test and test.accuracy.tolist())


@dataclass(frozen=True)
class Score:
    """A split in eval mode: mean loss (nats) and accuracy (fraction), each [K], and the predicted class [K, n]."""

    loss: np.ndarray
    accuracy: np.ndarray
    prediction: np.ndarray


def score(net: Folded, images: torch.Tensor, labels: torch.Tensor) -> Score:
    """Score every image of a split, the last short batch included."""
    loss = torch.zeros(net.size, dtype=torch.float64, device=labels.device)
    predictions: list[torch.Tensor] = []
    for x, y in zip(images.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True):
        logits = net(x)  # [K, B, 10]
        loss += F.cross_entropy(logits.flatten(0, 1), y.repeat(net.size), reduction="none").view(net.size, -1).double().sum(1)
        predictions.append(logits.argmax(2).to(torch.uint8))
    prediction = torch.cat(predictions, 1)
    accuracy = (prediction == labels).double().mean(1)
    return Score((loss / len(labels)).cpu().numpy(), accuracy.cpu().numpy(), prediction.cpu().numpy())


def checked(point: Point, config: RunConfig, seeds: Sequence[int]) -> Point:
    """The point, if its losses are finite.

    Raises:
        TrainingFailed: one is not.
    """
    losses = np.array([point.train_loss, point.test_loss or point.train_loss])
    bad = ~np.isfinite(losses).all(0)
    if bad.any():
        seed = seeds[int(bad.argmax())]
        raise TrainingFailed(
            f"Training stopped at step {point.step} (epoch {point.epoch:.2f}): the loss of seed {seed} is no longer a finite number. "
            f"Steps of {config.optimizer} at learning rate {config.lr:g} overshoot and grow without bound. "
            f"Lower --lr to {config.lr / 10:g} or less{'' if config.batch_norm else ', or turn batch norm on'}."
        )
    return point


def batch_norm_arrays(net: Stack) -> Arrays:
    """Weight, bias, running mean and variance, each [K, C], under `place/array`."""
    return {
        f"{place}/{array}": net.tensor(f"{place}_bn.{array}").detach().cpu().numpy().copy()
        for place in net.config.normalized_places
        for array in BN_ARRAYS
    }


def final_arrays(net: Stack, data: Data) -> Arrays:
    """What a finished stack leaves behind; the shapes are in `store`'s table of a run file."""
    folded = net.folded()
    test = score(folded, data.test_images, data.test_labels)
    trained = score(folded, data.train_images, data.train_labels)
    arrays = {
        "final/test_loss": test.loss,
        "final/test_accuracy": test.accuracy,
        "final/train_loss": trained.loss,
        "final/train_accuracy": trained.accuracy,
        "test/prediction": test.prediction,
        "test/label": data.test_labels.to(torch.uint8).cpu().numpy(),
    }
    activations: dict[str, torch.Tensor] = {}
    folded(data.test_images[:ACTIVATION_IMAGES], activations)
    for place in PLACES:
        values = activations[place].flatten(1)  # [K, values]
        chosen = torch.randint(values.shape[1], (ACTIVATION_SAMPLES,), generator=generator(0, 3)).to(values.device)
        arrays[f"activations/{place}"] = values[:, chosen].cpu().numpy()
    return arrays | {f"weights/{name}": value.numpy() for name, value in net.replicates().items()}


def checkpoint(epoch: int, net: Stack, optimizer: torch.optim.Optimizer, orders: Sequence[torch.Generator]) -> Arrays:
    """Weights, statistics, optimizer moments and generator states after `epoch` epochs, as arrays."""
    arrays = {"epoch": np.array(epoch)} | {f"net/{name}": value.numpy() for name, value in net.replicates().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        arrays |= {f"optimizer/{index}/{slot}": value.cpu().numpy().copy() for slot, value in slots.items()}
    for name, sources in (("order", orders), ("masks", net.masks)):
        arrays |= {f"{name}/{index}": source.get_state().numpy() for index, source in enumerate(sources)}
    return arrays


def restore(arrays: Mapping[str, np.ndarray], net: Stack, optimizer: torch.optim.Optimizer, orders: Sequence[torch.Generator]) -> int:
    """Put a checkpoint back; returns the epochs that are done."""
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    net.load_state_dict({name: tensors["net/" + name.replace("|", ".")] for name in net.state_dict()})
    state = optimizer.state_dict()
    state["state"] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            index, slot = rest.split("/")
            state["state"].setdefault(int(index), {})[slot] = value
        elif kind == "order":
            orders[int(rest)].set_state(value)
        elif kind == "masks":
            net.masks[int(rest)].set_state(value)
    optimizer.load_state_dict(state)
    return int(tensors["epoch"])
