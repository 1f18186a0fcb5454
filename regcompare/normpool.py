"""Batch norm, 2 x 2 max pooling and ReLU as one operation: the same function, about half the passes over memory.

Batch norm is affine a channel, so it commutes with the maximum (where its scale is negative, with the minimum). Pooling
first leaves a quarter of the values to scale, shift and rectify. Its gradient (Ioffe & Szegedy 2015, section 3) needs two
sums a channel, and both are sums over the pooled values only: elsewhere the gradient behind it is zero.
"""

from typing import Any

import torch
from torch.nn import functional as F

CHUNK = 8  # images whose gradient is made at a time: few enough that it stays in a core's cache


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
    if x.device.type != "cpu":  # elsewhere the library's kernels are fast, and looking at a sign would make the host wait
        return F.max_pool2d(F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps), 2).relu_()
    mean, var = torch.batch_norm_update_stats(x.detach(), running_mean, running_var, momentum)
    return _NormPoolReLU.apply(x, weight, bias, mean, torch.rsqrt(var + eps))


def _channels(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1)


class _NormPoolReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor):
        x = x.contiguous(memory_format=torch.channels_last)
        if bool((weight < 0).any()):
            signs = _channels(torch.where(weight < 0, -1.0, 1.0).to(x.dtype))
            largest, places = F.max_pool2d(x * signs, 2, return_indices=True)
            largest = largest * signs
        else:
            largest, places = F.max_pool2d(x, 2, return_indices=True)
        normalized = largest.sub_(_channels(mean)).mul_(_channels(scale))
        out = torch.addcmul(_channels(bias), normalized, _channels(weight)).relu_()
        ctx.save_for_backward(x, normalized, places, out, weight, mean, scale)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor):  # type: ignore[override]
        x, normalized, places, out, weight, mean, scale = ctx.saved_tensors
        batch, _, height, width = x.shape
        grad = torch.ops.aten.threshold_backward(grad, out, 0)
        bias_grad, weight_grad = grad.sum((0, 2, 3)), (grad * normalized).sum((0, 2, 3))
        # Of y = weight * (x - mean) * scale + bias, with N values a channel and g the gradient spread over the places of the
        # maxima: weight * scale * (g - sum(g) / N - (x - mean) * scale * sum(g * normalized) / N).
        count = batch * height * width
        step = weight * scale
        slope = -step * scale * weight_grad / count
        shift = -step * bias_grad / count - slope * mean
        grad.mul_(_channels(step))
        rows = x.permute(0, 2, 3, 1).view(batch, -1)  # in the order of memory
        slopes, shifts = slope.repeat(height * width), shift.repeat(height * width)
        for part in (slice(start, start + CHUNK) for start in range(0, batch, CHUNK)):
            torch.addcmul(shifts, rows[part], slopes, out=rows[part])
            spread = torch.ops.aten.max_pool2d_with_indices_backward(
                grad[part], x[part], [2, 2], [2, 2], [0, 0], [1, 1], False, places[part]
            )
            x[part].add_(spread)
        return x, weight_grad, bias_grad, None, None
