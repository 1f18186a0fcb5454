"""LeNet-5 twice: `LeNet5`, one replicate in ordinary layers to read and export, and `Stack`, K replicates as one net.

At each place: linear map, normalization, ReLU, max pooling (conv places), dropout; or, by the recipe's `dropout_order`, dropout right
behind the linear map. LeCun et al. 1998 for the shapes; ReLU
and max pooling as in the assignment. A stack's parameters carry the replicate as their first axis under LeNet5's names,
so `stack` and `unstack` are a `torch.stack` and an index.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from regcompare.config import HIDDEN_PLACES, RunConfig
from regcompare.data import Data, generator
from regcompare.layers import CONVS, FAN_INS, KERNEL, OUTPUTS, WIDTHS
from regcompare.normpool import norm_pool_relu

EPS, MOMENTUM = 1e-5, 0.1  # of batch norm, PyTorch's defaults
INIT_STREAM, ORDER_STREAM, DROPOUT_STREAM = 0, 1, 2
BN_ARRAYS = ("weight", "bias", "running_mean", "running_var")
State = dict[str, torch.Tensor]


class SeededDropout(nn.Module):
    """Dropout whose masks come from an owned generator; `whole_channels` silences a map at a time (`nn.Dropout2d`)."""

    def __init__(self, rate: float, whole_channels: bool, source: torch.Generator) -> None:
        super().__init__()
        self.rate, self.whole_channels, self.source = rate, whole_channels, source

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        shape = (*x.shape[:2], 1, 1) if self.whole_channels else x.shape
        keep = torch.empty(shape, device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate, generator=self.source)
        return x * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"{self.rate:g}, whole_channels={self.whole_channels}"


class Standardize(nn.Module):
    """(x - mean) / std with the training images' statistics, kept with the weights so that they cannot be mixed up."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


class LeNet5(nn.Module):
    """One replicate. `forward` maps pixels in [0, 1] of shape [B, 1, 32, 32] to logits [B, 10].

    `mean` and `std` are the training images' pixel statistics; only `input_norm="standard"` uses them.
    """

    def __init__(self, config: RunConfig, seed: int = 0, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential()
        with torch.random.fork_rng(devices=[]):  # layers draw weights as they are made; that must not move the global generator
            self._build(config, generator(seed, DROPOUT_STREAM), mean, std)
        initialize(self, seed)

    def _build(self, config: RunConfig, masks: torch.Generator, mean: float, std: float) -> None:
        rates = config.dropout.rates()
        if config.input_norm == "standard":
            self.body.add_module("input_standard", Standardize(mean, std))
        if config.input_norm == "batch":
            self.body.add_module("input_bn", nn.BatchNorm2d(1))
        if "input" in rates:
            self.body.add_module("input_dropout", SeededDropout(rates["input"], False, masks))
        for place in HIDDEN_PLACES:
            conv = place in CONVS
            if place == "fc1":
                self.body.add_module("flatten", nn.Flatten())
            linear = nn.Conv2d(FAN_INS[place], OUTPUTS[place], KERNEL) if conv else nn.Linear(FAN_INS[place], OUTPUTS[place])
            self.body.add_module(place, linear)
            if place in rates and config.dropout_order == "before":
                self.body.add_module(f"{place}_dropout", SeededDropout(rates[place], conv, masks))
            if place in config.batch_norm:
                self.body.add_module(f"{place}_bn", (nn.BatchNorm2d if conv else nn.BatchNorm1d)(WIDTHS[place]))
            self.body.add_module(f"{place}_relu", nn.ReLU())
            if conv:
                self.body.add_module(f"{place}_pool", nn.MaxPool2d(2))
            if place in rates and config.dropout_order == "after":
                self.body.add_module(f"{place}_dropout", SeededDropout(rates[place], conv, masks))
        self.body.add_module("fc3", nn.Linear(FAN_INS["fc3"], OUTPUTS["fc3"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def initialize(net: LeNet5, seed: int) -> None:
    """PyTorch's default initial weights, drawn from the seed's own generator in the order a constructor draws them.

    So `torch.manual_seed(seed)` before building the same layers gives the same weights, and every arm of a study starts
    from the same ones: batch norm and dropout draw nothing.
    """
    source = generator(seed, INIT_STREAM)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=source)
            bound = 1 / math.sqrt(layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=source)


def stack(states: Sequence[Mapping[str, torch.Tensor]]) -> State:
    """State dicts of K plain nets as one, the replicate as the first axis."""
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def unstack(state: Mapping[str, torch.Tensor], index: int) -> State:
    """The state dict of replicate `index`, ready for `LeNet5.load_state_dict`."""
    return {name: value[index].clone() for name, value in state.items()}


class Stack(nn.Module):
    """K replicates of one recipe trained as one net: grouped convolutions, batched matrix products, channels-last.

    Every replicate has its own weights, statistics and dropout masks and computes what `LeNet5` computes alone, to
    float32 rounding. All of `state_dict()` has the replicate as its first axis.
    """

    def __init__(self, config: RunConfig, seeds: Sequence[int], data: Data, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.config, self.seeds, self.size = config, tuple(seeds), len(seeds)
        state = stack([LeNet5(config, seed, data.mean, data.std).state_dict() for seed in seeds])
        names = {name for name, _ in LeNet5(config).named_parameters()}
        # nn.Module forbids dots in names; state_dict() puts LeNet5's names back.
        for name, value in state.items():
            if name in names:
                self.register_parameter(_attribute(name), nn.Parameter(value))
            else:
                self.register_buffer(_attribute(name), value)
        self.masks = [generator(seed, DROPOUT_STREAM, device) for seed in seeds]
        self.to(device)

    def tensor(self, name: str) -> torch.Tensor:
        """A parameter or buffer by LeNet5's name, [K, ...]."""
        return getattr(self, _attribute("body." + name))

    def replicates(self) -> State:
        """A copy of all parameters and buffers under LeNet5's names, each [K, ...], on the CPU."""
        return {name.replace("|", "."): value.detach().cpu().clone() for name, value in self.state_dict().items()}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [K, B, 10] in training mode for 8-bit images [K, B, 32, 32], a batch of its own for each replicate."""
        size, batch = images.shape[:2]
        weight, bias = self.tensor("conv1.weight").flatten(0, 1), self.tensor("conv1.bias").flatten()
        x = images.permute(1, 2, 3, 0).contiguous().to(weight.dtype).permute(0, 3, 1, 2).div_(255)  # [B, K, 32, 32], channels last
        rates = self.config.dropout.rates()
        if self.config.input_norm == "standard":  # all replicates have the same data: one number is faster than K
            x = x.sub_(self.tensor("input_standard.mean")[0]).div_(self.tensor("input_standard.std")[0])
        elif self.config.input_norm == "batch" and "input" in rates:
            x = self._batch_norm(x, "input")
        elif self.config.input_norm == "batch":
            # The convolution is linear: with the learned scale and shift moved behind it, no gradient has to flow
            # through it to the pixels.
            x = self._batch_norm(x, "input", affine=False)
            width = WIDTHS["conv1"]
            shift = self.tensor("input_bn.bias").repeat_interleave(width, 0).flatten()
            bias = bias + shift * weight.sum((1, 2, 3))
            weight = weight * self.tensor("input_bn.weight").repeat_interleave(width, 0).view(-1, 1, 1, 1)
        x = self._dropout(x, "input", batch, self.config.dropout_order)
        for place in CONVS:
            if place != "conv1":
                weight, bias = self.tensor(f"{place}.weight").flatten(0, 1), self.tensor(f"{place}.bias").flatten()
            x = F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), bias, groups=size)
            x = self._dropout(x, place, batch, "before")
            if place in self.config.batch_norm:
                weight, bias, mean, var = self._statistics(place)
                x = norm_pool_relu(x, weight, bias, mean, var, MOMENTUM, EPS)
            else:
                x = F.max_pool2d(x, 2).relu_()  # the two commute, and a quarter of the values is less to rectify
            x = self._dropout(x, place, batch, "after")
        x = x.reshape(batch, size, -1).transpose(0, 1)  # [K, B, 400]
        for place in ("fc1", "fc2"):
            x = self._dropout(self._linear(x, place), place, batch, "before")
            if place in self.config.batch_norm:
                flat = x.transpose(0, 1).reshape(batch, -1)  # [B, K * units]
                x = self._batch_norm(flat, place).view(batch, size, -1).transpose(0, 1)
            x = self._dropout(x.relu(), place, batch, "after")
        return self._linear(x, "fc3")

    def _linear(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        return torch.baddbmm(self.tensor(f"{layer}.bias")[:, None], x, self.tensor(f"{layer}.weight").transpose(1, 2))

    def _batch_norm(self, x: torch.Tensor, place: str, affine: bool = True) -> torch.Tensor:
        if place not in self.config.normalized_places:
            return x
        weight, bias, mean, var = self._statistics(place)
        return F.batch_norm(x, mean, var, weight if affine else None, bias if affine else None, True, MOMENTUM, EPS)

    def _statistics(self, place: str) -> list[torch.Tensor]:
        """Weight, bias, running mean and variance of all replicates, each [K * C], for one more training batch."""
        self.tensor(f"{place}_bn.num_batches_tracked").add_(1)
        return [self.tensor(f"{place}_bn.{array}").view(-1) for array in BN_ARRAYS]

    def _dropout(self, x: torch.Tensor, place: str, batch: int, order: str) -> torch.Tensor:
        rate = getattr(self.config.dropout, place)
        if not rate or order != self.config.dropout_order:
            return x
        width = {"input": x.shape[2] * x.shape[3] if x.dim() == 4 else 0}.get(place, WIDTHS[place])
        keep = torch.empty(self.size, batch, width, device=x.device, dtype=x.dtype)
        for mask, source in zip(keep, self.masks, strict=True):
            mask.bernoulli_(1 - rate, generator=source)
        keep /= 1 - rate
        if place == "input":
            return x * keep.view(self.size, batch, *x.shape[2:]).transpose(0, 1)
        if place in CONVS:
            return x * keep.transpose(0, 1).reshape(batch, -1, 1, 1)
        return x * keep

    def folded(self) -> "Folded":
        """The net in eval mode, with every normalization folded into the linear map beside it."""
        return Folded(self)


class Folded:
    """A stack frozen for evaluation: running statistics and input normalization folded into weights, dropout off.

    All replicates see the same images, so the first convolution is one ordinary convolution of K * 6 channels.
    """

    @torch.no_grad()
    def __init__(self, net: Stack) -> None:
        self.size = net.size
        self.weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in FAN_INS:
            weight, bias = net.tensor(f"{layer}.weight"), net.tensor(f"{layer}.bias")
            if layer in net.config.batch_norm:
                scale, shift = self._affine(net, layer)  # [K, C]
                weight = weight * scale.view(*scale.shape, *[1] * (weight.dim() - 2))
                bias = bias * scale + shift
            self.weights[layer] = weight, bias
        self.input_scale, self.input_shift = self._input_affine(net)  # [K]
        weight, bias = self.weights["conv1"]
        self.weights["conv1"] = (
            weight * self.input_scale.view(-1, 1, 1, 1, 1),
            bias + self.input_shift[:, None] * weight.sum((2, 3, 4)),
        )

    @staticmethod
    def _affine(net: Stack, place: str) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias, mean, var = (net.tensor(f"{place}_bn.{array}") for array in BN_ARRAYS)
        scale = weight * torch.rsqrt(var + EPS)
        return scale, bias - mean * scale

    def _input_affine(self, net: Stack) -> tuple[torch.Tensor, torch.Tensor]:
        if net.config.input_norm == "batch":
            scale, shift = self._affine(net, "input")
            return scale[:, 0], shift[:, 0]
        if net.config.input_norm == "standard":
            mean, std = net.tensor("input_standard.mean"), net.tensor("input_standard.std")
            return 1 / std, -mean / std
        one = torch.ones_like(net.tensor("conv1.bias")[:, 0])
        return one, torch.zeros_like(one)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, keep: State | None = None) -> torch.Tensor:
        """Logits [K, B, 10] for 8-bit images [B, 32, 32]; `keep` receives each place's activations, [K, B, values]."""
        batch, size = len(images), self.size
        x = (images.to(self.input_scale.dtype) / 255)[..., None].permute(0, 3, 1, 2)  # strides that oneDNN takes for channels last
        if keep is not None:
            pixels = x.reshape(1, batch, -1)
            keep["input"] = pixels * self.input_scale.view(-1, 1, 1) + self.input_shift.view(-1, 1, 1)
        for place, groups in zip(CONVS, (1, size), strict=True):
            weight, bias = self.weights[place]
            x = F.max_pool2d(F.conv2d(x, weight.flatten(0, 1), bias.flatten(), groups=groups), 2).relu_()
            if keep is not None:
                keep[place] = x.reshape(batch, size, -1).transpose(0, 1)
        x = x.reshape(batch, size, -1).transpose(0, 1)
        for layer in ("fc1", "fc2", "fc3"):
            weight, bias = self.weights[layer]
            x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
            if layer != "fc3":
                x = x.relu_()
                if keep is not None:
                    keep[layer] = x
        return x


def _attribute(name: str) -> str:
    return name.replace(".", "|")
