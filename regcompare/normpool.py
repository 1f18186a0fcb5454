"""Batch norm, 2x2 max pooling and ReLU as one operation: the same function in a third of the passes over memory.

Batch norm is affine a channel, so it commutes with the maximum (where its scale is negative, with the minimum). Pooling
first leaves a quarter of the values to scale, shift and rectify. Its gradient (Ioffe & Szegedy 2015, section 3) needs two
sums a channel, and both are sums over the pooled values only: elsewhere the gradient behind it is zero.

The loops over the large maps are compiled by Numba; one image of a stack's maps stays in a core's cache between its two visits.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch.nn import functional as F


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Machine code, made at the first call and kept on disk for the next process, where a folder for it can be written."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}  # a product and a sum may be rounded once, not twice
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder: Numba says so as it decorates
        return numba.njit(**options)(function)


def norm_pool_relu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float,
    eps: float,
) -> torch.Tensor:
    """relu(max_pool2d(batch_norm(x), 2)) in training mode; x [B, C, H, W], H and W even, the rest [C]. Moves the running statistics.

    On the CPU the backward pass writes the gradient into x's own memory: nothing else may need x then.
    """
    if x.device.type != "cpu":  # elsewhere the library's kernels are fast
        return F.max_pool2d(F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps), 2).relu_()
    return _NormPoolReLU.apply(x, weight, bias, running_mean, running_var, momentum, eps)


def _rows(x: torch.Tensor) -> np.ndarray:
    """The same memory as an array [B, H, W, C]; x is channels last."""
    return x.detach().permute(0, 2, 3, 1).numpy()


class _NormPoolReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *rest: Any) -> torch.Tensor:
        running_mean, running_var, momentum, eps = rest
        x = x.contiguous(memory_format=torch.channels_last)
        pooled = *x.shape[:2], x.shape[2] // 2, x.shape[3] // 2
        largest, out = (torch.empty(pooled, dtype=x.dtype, memory_format=torch.channels_last) for _ in range(2))
        vectors = [value.detach().numpy() for value in (weight, bias, running_mean, running_var)]
        mean, scale = _forward(_rows(x), *vectors, momentum, eps, _rows(largest), _rows(out))
        ctx.save_for_backward(x, largest, out, weight)
        ctx.statistics = mean, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, largest, out, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        torch.autograd.graph.increment_version(x)  # a second backward pass is refused, not wrong
        gradients = _backward(_rows(x), _rows(grad), _rows(out), _rows(largest), weight.detach().numpy(), *ctx.statistics)
        return x, *(torch.from_numpy(value) for value in gradients), None, None, None, None


@compiled
def _forward(x, weight, bias, running_mean, running_var, momentum, eps, largest, out):  # type: ignore[no-untyped-def]
    """Fill `out` and, before the normalization, `largest` (where weight is negative, smallest), both [B, H/2, W/2, C].

    Moves the running statistics. Returns the batch's mean and 1 / standard deviation, [C].
    """
    batch, height, width, channels = x.shape
    sign = np.where(weight < 0, -1, 1).astype(x.dtype)
    means, squares = np.empty((batch, channels)), np.empty((batch, channels))
    total = np.empty(channels, x.dtype)
    for image in range(batch):
        total[:] = 0
        for i in range(0, height, 2):
            for j in range(0, width, 2):
                a, b, c, d = x[image, i, j], x[image, i, j + 1], x[image, i + 1, j], x[image, i + 1, j + 1]
                top = largest[image, i // 2, j // 2]
                for n in range(channels):
                    s = sign[n]
                    total[n] += (a[n] + b[n]) + (c[n] + d[n])
                    top[n] = s * max(max(s * a[n], s * b[n]), max(s * c[n], s * d[n]))
        center = total / x.dtype.type(height * width)
        means[image] = center
        total[:] = 0
        for i in range(height):
            for j in range(width):
                row = x[image, i, j]
                for n in range(channels):
                    off = row[n] - center[n]
                    total[n] += off * off
        squares[image] = total
    # Equal groups' means and squared deviations make those of all (Chan, Golub & LeVeque 1983).
    count, mean = batch * height * width, means.sum(0) / batch
    var = (squares.sum(0) + height * width * ((means - mean) ** 2).sum(0)) / count
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var * count / (count - 1) - running_var)
    scale = 1 / np.sqrt(var + eps)
    slope = (weight * scale).astype(x.dtype)
    shift = (bias - weight * scale * mean).astype(x.dtype)
    zero = x.dtype.type(0)
    for image in range(batch):
        for i in range(height // 2):
            for j in range(width // 2):
                top, to = largest[image, i, j], out[image, i, j]
                for n in range(channels):
                    to[n] = max(slope[n] * top[n] + shift[n], zero)
    return mean.astype(x.dtype), scale.astype(x.dtype)


@compiled
def _backward(x, grad, out, largest, weight, mean, scale):  # type: ignore[no-untyped-def]
    """Write the gradient of x into x. Returns those of weight and bias, [C]; `grad` is that of `out`.

    Of y = weight * (x - mean) * scale + bias, with N values a channel and g the gradient spread over the places of the maxima:
    weight * scale * (g - sum(g) / N - (x - mean) * scale * sum(g * normalized) / N).
    """
    batch, height, width, channels = x.shape
    zero = x.dtype.type(0)
    weight_grad, bias_grad = np.zeros(channels), np.zeros(channels)
    of_weight, of_bias = np.empty(channels, x.dtype), np.empty(channels, x.dtype)
    for image in range(batch):
        of_weight[:] = 0
        of_bias[:] = 0
        for i in range(height // 2):
            for j in range(width // 2):
                g, y, top = grad[image, i, j], out[image, i, j], largest[image, i, j]
                for n in range(channels):
                    passed = g[n] if y[n] > zero else zero
                    of_bias[n] += passed
                    of_weight[n] += passed * ((top[n] - mean[n]) * scale[n])
        weight_grad += of_weight
        bias_grad += of_bias
    count, step = batch * height * width, weight * scale
    slope = (-step * scale * weight_grad / count).astype(x.dtype)
    shift = (-step * bias_grad / count - slope * mean).astype(x.dtype)
    for image in range(batch):
        for i in range(0, height, 2):
            for j in range(0, width, 2):
                a, b, c, d = x[image, i, j], x[image, i, j + 1], x[image, i + 1, j], x[image, i + 1, j + 1]
                g, y, top = grad[image, i // 2, j // 2], out[image, i // 2, j // 2], largest[image, i // 2, j // 2]
                for n in range(channels):
                    passed = step[n] * g[n] if y[n] > zero else zero
                    # The first of equal values takes all, as in PyTorch.
                    at_a, at_b, at_c, at_d = a[n] == top[n], b[n] == top[n], c[n] == top[n], d[n] == top[n]
                    a[n] = shift[n] + slope[n] * a[n] + (passed if at_a else zero)
                    b[n] = shift[n] + slope[n] * b[n] + (passed if at_b and not at_a else zero)
                    c[n] = shift[n] + slope[n] * c[n] + (passed if at_c and not (at_a or at_b) else zero)
                    d[n] = shift[n] + slope[n] * d[n] + (passed if at_d and not (at_a or at_b or at_c) else zero)
    return weight_grad.astype(x.dtype), bias_grad.astype(x.dtype)
