"""The fused operation against the library's three. Run: pytest tests/test_normpool.py"""

import pytest
import torch
from torch.nn import functional as F

from regcompare.normpool import compiled, norm_pool_relu


def arguments(channels=6, batch=11, signs=(1.0,)):
    source = torch.Generator().manual_seed(3)
    x = torch.randn(batch, channels, 8, 6, dtype=torch.float64, generator=source)
    weight = torch.rand(channels, dtype=torch.float64, generator=source) + 0.5
    weight *= torch.tensor(signs, dtype=torch.float64).repeat(channels)[:channels]
    bias = torch.randn(channels, dtype=torch.float64, generator=source)
    return x, weight, bias


@pytest.mark.parametrize("signs", [(1.0,), (1.0, -1.0), (-1.0,)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_gradients_and_statistics_are_the_librarys(signs, layout):
    found = []
    for fused in (False, True):
        x, weight, bias = (value.requires_grad_() for value in arguments(signs=signs))
        mean, var = torch.full((6,), 0.3, dtype=torch.float64), torch.full((6,), 2.0, dtype=torch.float64)
        own = (x * 1).contiguous(memory_format=layout)  # its memory may be written to
        if fused:
            out = norm_pool_relu(own, weight, bias, mean, var, 0.1, 1e-5)
        else:
            out = F.max_pool2d(F.batch_norm(own, mean, var, weight, bias, True, 0.1, 1e-5), 2).relu()
        upstream = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape)
        found.append([out.detach(), mean, var, *torch.autograd.grad((out * upstream).sum(), [x, weight, bias])])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


def test_a_second_backward_pass_is_refused():
    """The first one used up x; a wrong gradient must not come out."""
    x, weight, bias = (value.requires_grad_() for value in arguments())
    out = norm_pool_relu(
        (x * 1).contiguous(memory_format=torch.channels_last), weight, bias, bias.detach() * 0, bias.detach() * 0, 0.1, 1e-5
    )
    out.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_statistics_keep_their_digits_in_float32():
    """PyTorch's own, channels last on the CPU, adds 50,000 values one after the other and loses four digits."""
    x = torch.randn(64, 24, 28, 28, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last) + 3
    mean, var = torch.zeros(24), torch.zeros(24)
    norm_pool_relu(x, torch.ones(24), torch.zeros(24), mean, var, 1.0, 1e-5)
    torch.testing.assert_close(mean, x.double().mean((0, 2, 3)).float(), rtol=3e-7, atol=0)
    torch.testing.assert_close(var, x.double().var((0, 2, 3)).float(), rtol=3e-6, atol=0)


def test_equal_values_pass_the_gradient_to_the_first():
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    x.data[..., ::2] = 1.0
    found = []
    for call in (norm_pool_relu, lambda x, w, b, m, v, p, e: F.max_pool2d(F.batch_norm(x, m, v, w, b, True, p, e), 2).relu()):
        own = (x * 1).contiguous(memory_format=torch.channels_last)
        out = call(own, torch.tensor([1.0, -1.0, 2.0]), torch.ones(3), torch.zeros(3), torch.ones(3), 0.1, 1e-5)
        found.append(torch.autograd.grad((out * torch.arange(24.0).view(out.shape)).sum(), x)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("channels", [3, 40])  # fewer and more than a vector register holds
def test_a_number_that_is_none_reaches_the_loss(bad, channels):
    """`checked` can stop a training only if ReLU does not turn it into zero."""
    x = torch.randn(4, channels, 4, 4).contiguous(memory_format=torch.channels_last)
    x[1, 1, 0, 0] = bad
    one, zero = torch.ones(channels), torch.zeros(channels)
    out = norm_pool_relu(x, one, zero, zero.clone(), one.clone(), 0.1, 1e-5)
    assert out[:, 1].isnan().all()
    assert out[:, 2].isfinite().all()


def test_without_a_folder_for_machine_code_it_is_compiled_all_the_same():
    names = {}
    exec("def twice(x): return 2 * x", names)  # in no file: Numba finds no folder for it, as on a read-only disk
    assert compiled(names["twice"])(21) == 42
