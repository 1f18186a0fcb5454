"""What happens inside the nets: measurements behind the Why page. Arrays in, arrays out; no store, no screen, and never the page server.

Everywhere K is the number of replicates in the recipe's seed order, a value stands for one replicate, and `stats.estimate` turns
K of them into a mean with an interval. `weights` are a finished run's: LeNet5's state dict with the replicate as first axis
(`weights_of`). Nets are plain `LeNet5`s in eval mode unless a docstring says otherwise; accuracies are fractions of the whole test
split, losses nats. Random draws come from stream `PROBE_STREAM` of a replicate's seed, so arms that share seeds share them.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from regcompare.config import HIDDEN_PLACES, RegcompareError, RunConfig
from regcompare.data import Data, generator
from regcompare.layers import CONVS, WIDTHS
from regcompare.model import EPS, ORDER_STREAM, LeNet5, Stack, unstack
from regcompare.train import Arrays, make_optimizer, train_step

PROBE_STREAM = 4
BATCH = 250  # images a forward pass; measured, see EVAL_BATCH in train
PERCENTILES = (15, 50, 85)
DRIFT_IMAGES, DRIFT_STEPS = 256, 40
SHIFT_BATCHES = 200
SPARSITY_EDGES = np.linspace(0, 10, 41)
Weights = Mapping[str, np.ndarray]


def weights_of(arrays: Weights) -> Arrays:
    """The `weights/*` of a run file's arrays under LeNet5's names, each [K, ...].

    Raises:
        RegcompareError: the run file was kept without weights.
    """
    found = {name.removeprefix("weights/"): values for name, values in arrays.items() if name.startswith("weights/")}
    if not found:
        raise RegcompareError("the run must come with weights, got a run file without any. Train it again, or export it with weights.")
    return found


def replicates(config: RunConfig, weights: Weights) -> Iterator[LeNet5]:
    """Each replicate as a plain net of its own, in eval mode; changing it changes nothing else."""
    for index, seed in enumerate(config.seeds):
        net = LeNet5(config, seed)
        net.load_state_dict({name: torch.from_numpy(np.array(values[index])) for name, values in weights.items()})
        yield net.eval()


def pixels(images: torch.Tensor) -> torch.Tensor:
    """8-bit images [B, 32, 32] as pixels in [0, 1], [B, 1, 32, 32]."""
    return images[:, None].float() / 255


def walk(net: LeNet5, x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The forward pass, layer by layer: name, what goes in, what comes out."""
    for name, layer in net.body.named_children():
        before, x = x, layer(x)
        yield name, before, x


def layer_names(net: LeNet5) -> list[str]:
    return [name for name, _ in net.body.named_children()]


def by_unit(values: torch.Tensor) -> torch.Tensor:
    """[B, C, ...] as [C, values]: a channel's positions count as values of one unit, as batch norm counts them."""
    return values.transpose(0, 1).flatten(1)


def stacked(rows: Sequence[Arrays]) -> Arrays:
    """One dict per replicate as one dict, the replicate as first axis."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def measured(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Accuracy (fraction) and mean loss (nats) of logits [n, 10]."""
    return (logits.argmax(1) == labels).double().mean().item(), F.cross_entropy(logits.double(), labels).item()


@torch.no_grad()
def score_net(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, mean: float = 0.0, std: float = 1.0) -> tuple[float, float]:
    """Accuracy and loss on a whole split; `mean` and `std` normalize the pixels before the net sees them."""
    return measured(torch.cat([net((pixels(part) - mean) / std) for part in images.split(BATCH)]), labels)


# Internal covariate shift


def drift_steps(config: RunConfig, count: int = DRIFT_STEPS) -> np.ndarray:
    """At most `count` steps at which to look: before the first, then spread evenly in the logarithm up to the last."""
    return np.unique(np.concatenate(([0], np.geomspace(1, config.steps, count - 1).round()))).astype(np.int64)


def training_steps(config: RunConfig, data: Data, net: Stack) -> Iterator[int]:
    """Train a stack as `train` does, to the same bits, and yield the steps that are done, 0 first: for who must look inside."""
    optimizer = make_optimizer(config, net)
    orders = [generator(seed, ORDER_STREAM) for seed in net.seeds]
    yield 0
    for epoch in range(config.epochs):
        shuffled = torch.stack([torch.randperm(config.n_train, generator=order) for order in orders])
        for index in range(config.steps_per_epoch):
            batch = shuffled[:, index * config.batch_size : (index + 1) * config.batch_size]
            train_step(net, optimizer, *data.batch(batch))
            yield epoch * config.steps_per_epoch + index + 1


def activation_drift(config: RunConfig, data: Data) -> Arrays:
    """Train the recipe and follow what goes into each ReLU, on one fixed batch of 256 test images.

    After Ioffe & Szegedy 2015, Fig. 1 (b, c): the 15th, 50th and 85th percentile of the inputs of a nonlinearity over the course
    of training. Theirs is one typical unit of the last hidden layer; here is each layer as a whole, and one unit of it.

    The net is in train mode: batch norm uses the statistics of this batch, as in every training step, because the shift that
    Ioffe & Szegedy describe is the one that a layer meets while it learns; the running statistics are an average over the past
    and would add a lag of their own. Dropout is on too, with the same masks at every look, so that only the weights move.
    The nets that are trained notice nothing: a look uses a copy of their weights.

    Returns:
        steps [S]; for each hidden place: `place` [S, K, 3], what goes into the ReLU, over all units; `place/unit` [S, K, 3], the
        same of its first unit (chosen by number, not by looks); `place/linear` [S, K, 3], the linear map's output over all
        units, which is what batch norm, where there is one, gets to see.
    """
    steps, looks = drift_steps(config), []
    for seeds in config.stacks():
        net = Stack(config, seeds, data)
        looks.append([_look(config, data, net) for step in training_steps(config, data, net) if step in steps])
    joined = [{name: np.concatenate([look[name] for look in at]) for name in at[0]} for at in zip(*looks, strict=True)]
    return {"steps": steps} | stacked(joined)


@torch.no_grad()
def _look(config: RunConfig, data: Data, net: Stack) -> Arrays:
    """Percentiles of the pre-activations of a stack's replicates now, each [K, 3]."""
    weights, rows = net.replicates(), []
    for index, seed in enumerate(net.seeds):
        plain, row = LeNet5(config, seed), {}  # built anew for each look: its dropout masks start from the seed
        plain.load_state_dict(unstack(weights, index))
        for name, before, after in walk(plain.train(), pixels(data.test_images[:DRIFT_IMAGES])):
            place = name.removesuffix("_relu")
            if name in HIDDEN_PLACES:
                row[f"{name}/linear"] = np.percentile(after.numpy(), PERCENTILES)
            elif place in HIDDEN_PLACES:
                row[place] = np.percentile(before.numpy(), PERCENTILES)
                row[f"{place}/unit"] = np.percentile(before[:, 0].numpy(), PERCENTILES)
        rows.append(row)
    return stacked(rows)


# Co-adaptation


@torch.no_grad()
def silencing(
    config: RunConfig, data: Data, weights: Weights, shares: Sequence[float], masks: int, places: Sequence[str] = ("fc1", "fc2")
) -> Arrays:
    """Test accuracy when a share of the hidden units is silenced at random: units that lean on each other fail together.

    At every one of `places` round(share * units) units (whole channels at conv places) give 0 after their ReLU. What is left is
    NOT scaled up: a lost unit is lost, unlike in training, where dropout divides by the share that is kept (Srivastava et al.
    2014, sections 1 and 4, on co-adaptation and on why the scale changes there). A mask grows: the units silenced at a share stay
    silenced at a larger one. Masks are drawn from the replicate's seed, so arms on the same seeds lose the same units.

    Returns:
        shares [S] and accuracy [S, masks, K].
    """
    accuracy = np.empty((len(shares), masks, len(config.seeds)))
    for k, net in enumerate(replicates(config, weights)):
        source = generator(config.seeds[k], PROBE_STREAM)
        orders = [{place: torch.randperm(WIDTHS[place], generator=source) for place in HIDDEN_PLACES} for _ in range(masks)]
        first = min(layer_names(net).index(f"{place}_relu") for place in places)
        # What comes before the first silenced place is the same for every mask.
        features = torch.cat([net.body[:first](pixels(part)) for part in data.test_images.split(BATCH)])
        for s, share in enumerate(shares):
            for m, order in enumerate(orders):
                keep = {place: torch.ones(WIDTHS[place]) for place in places}
                for place, kept in keep.items():
                    kept[order[place][: round(share * len(kept))]] = 0
                logits = torch.cat([_silenced(net.body[first:], part, keep) for part in features.split(BATCH)])
                accuracy[s, m, k] = measured(logits, data.test_labels)[0]
    return {"shares": np.array(shares, dtype=float), "accuracy": accuracy}


def _silenced(layers: nn.Module, x: torch.Tensor, keep: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`layers` on x, with the output of each place's ReLU times its mask in `keep` [units]."""
    for name, layer in layers.named_children():
        x = layer(x)
        if name.endswith("_relu") and (mask := keep.get(name.removesuffix("_relu"))) is not None:
            x = x * mask.view(-1, *[1] * (x.dim() - 2))
    return x


@torch.no_grad()
def _outputs(net: LeNet5, images: torch.Tensor) -> dict[str, np.ndarray]:
    """What each hidden place hands on (after ReLU and pooling), [units, values] float32: an image is a value, or all of a map's."""
    parts: dict[str, list[torch.Tensor]] = {place: [] for place in HIDDEN_PLACES}
    for batch in images.split(BATCH):
        for name, _, after in walk(net, pixels(batch)):
            place, _, layer = name.partition("_")
            if place in HIDDEN_PLACES and layer == ("pool" if place in CONVS else "relu"):
                parts[place].append(by_unit(after))
    return {place: torch.cat(part, 1).numpy() for place, part in parts.items()}


def unit_correlation(config: RunConfig, data: Data, weights: Weights) -> Arrays:
    """Mean absolute Pearson correlation over all pairs of units of a hidden place, on the test images; 0 is no two alike.

    Units are the outputs after ReLU and pooling; at conv places a unit is a channel and each position of its map a value. Units
    that never change have no correlation and are left out. As a measure of redundant, co-adapted units: Cogswell et al. 2016
    ("Reducing overfitting in deep networks by decorrelating representations"), who make a penalty of the covariances.

    Returns:
        for each hidden place: `place` [K], NaN where fewer than two units live, and `place/dead` [K], how many were left out.
    """
    rows = []
    for net in replicates(config, weights):
        row = {}
        for place, values in _outputs(net, data.test_images).items():
            alive = values[values.min(1) < values.max(1)]
            pairs = np.abs(np.corrcoef(alive))[np.triu_indices(len(alive), 1)] if len(alive) > 1 else np.array([np.nan])
            row |= {place: pairs.mean(), f"{place}/dead": np.array(len(values) - len(alive))}
        rows.append(row)
    return stacked(rows)


def sparsity(config: RunConfig, data: Data, weights: Weights) -> Arrays:
    """Histograms of the hidden activations on the test images, as Fig. 8 of Srivastava et al. 2014 (theirs: one mini-batch, ReLU).

    Activations are the outputs after ReLU and pooling. Bins are fixed, 40 of width 0.25 from 0 to 10; what is larger is in the last.

    Returns:
        edges [41]; for each hidden place: `place/activations` [K, 40], shares of all activations; `place/units` [K, 40], shares of
        the units by their mean activation; `place/mean` [K], the mean activation; `place/zero` [K], the share of exact zeros.
    """
    rows = []
    for net in replicates(config, weights):
        row = {}
        for place, values in _outputs(net, data.test_images).items():
            means = values.mean(1, dtype=np.float64)
            row |= {f"{place}/activations": _shares(values), f"{place}/units": _shares(means)}
            row |= {f"{place}/mean": means.mean(), f"{place}/zero": (values == 0).mean()}
        rows.append(row)
    return {"edges": SPARSITY_EDGES.copy()} | stacked(rows)


def _shares(values: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(np.minimum(values, SPARSITY_EDGES[-1]), SPARSITY_EDGES)
    return counts / values.size


def first_filters(weights: Weights) -> np.ndarray:
    """The kernels of conv1, [K, 6, 5, 5]; beside Fig. 7 of Srivastava et al. 2014 (features with and without dropout)."""
    return weights["body.conv1.weight"][:, :, 0]


# Both together: variance shift


@torch.no_grad()
def variance_shift(config: RunConfig, data: Data, weights: Weights, batches: int = SHIFT_BATCHES) -> Arrays:
    """How far the variance that batch norm meets in training is from the one that it meets in testing (Li et al. 2019, CVPR).

    The variance of what goes into each batch norm, by channel, over batches of the recipe's size drawn from the training images:
    once in train mode (dropout on, batch norms before it on batch statistics: what the running variance averages), once in eval
    mode (dropout off, running statistics), the same images both times. A channel's shift is max(test / train, train / test), 1
    for none; batch norm's epsilon is added to both, as it is where they are used. `batches` bounds the work: 200 are 12,800 images.

    Returns:
        for each place with batch norm: `place` [K], the mean shift over channels; `place/train` and `place/test` [K, C], variances.
    """
    size = config.batch_size
    chosen = torch.randperm(config.n_train, generator=generator(0, PROBE_STREAM))[: batches * size]
    drawn = [batch for batch in chosen.split(size) if len(batch) == min(size, config.n_train)]
    rows = []
    for net in replicates(config, weights):
        row: Arrays = {}
        for mode in ("test", "train"):  # in this order: train mode moves the running statistics
            net.train(mode == "train")
            for batch in drawn:
                for name, before, _ in walk(net, pixels(data.train_images[batch])):
                    if name.endswith("_bn"):
                        key = f"{name.removesuffix('_bn')}/{mode}"
                        row[key] = row.get(key, np.zeros(1)) + by_unit(before).double().var(1).numpy() / len(drawn)
        for place in config.normalized_places:
            ratio = (row[f"{place}/test"] + EPS) / (row[f"{place}/train"] + EPS)
            row[place] = np.maximum(ratio, 1 / ratio).mean()
        rows.append(row)
    return stacked(rows)


def reestimate(config: RunConfig, data: Data, weights: Weights) -> Arrays:
    """Give batch norm the statistics of testing: over all training images with dropout off, exact, not a running average.

    Place by place from the input on, since a place's statistics rest on those before it. A remedy for the variance shift of Li et
    al. 2019, whose weights stay as they are. Compare with a net without dropout: to replace a running average, which follows the
    last few hundred images, by an exact one is worth something there too. Without batch norm nothing changes.

    Returns:
        before, after [K], test accuracy; before_loss, after_loss [K].
    """
    rows = []
    for net in replicates(config, weights):
        accuracy, loss = score_net(net, data.test_images, data.test_labels)
        for place in config.normalized_places:
            _set_statistics(net, place, data.train_images)
        after, after_loss = score_net(net, data.test_images, data.test_labels)
        rows.append(
            {"before": np.array(accuracy), "before_loss": np.array(loss), "after": np.array(after), "after_loss": np.array(after_loss)}
        )
    return stacked(rows)


@torch.no_grad()
def _set_statistics(net: LeNet5, place: str, images: torch.Tensor) -> None:
    """Mean and variance of what goes into a place's batch norm, over all images, as its running statistics."""
    layer = net.body.get_submodule(f"{place}_bn")
    head = net.body[: layer_names(net).index(f"{place}_bn")]
    count, mean, square = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for part in images.split(BATCH):
        var, middle = torch.var_mean(by_unit(head(pixels(part))), 1, correction=0)
        count += len(part)
        mean = mean + len(part) * middle.double()
        square = square + len(part) * (var.double() + middle.double() ** 2)
    layer.get_buffer("running_mean").copy_(mean / count)
    layer.get_buffer("running_var").copy_(square / count - (mean / count) ** 2)
