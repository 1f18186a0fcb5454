"""The stack against the plain net, the plain net against the assignment's table. Run: pytest tests/test_model.py"""

import pytest
import torch
from torch.nn import functional as F

from regcompare.config import PRESETS, RunConfig, preset
from regcompare.data import Data, generator
from regcompare.layers import layer_table, parameter_count
from regcompare.model import LeNet5, Stack, stack, unstack
from regcompare.train import make_optimizer, train_step

SEEDS = (0, 1, 2, 7)
STEPS = 50


def batches(data, seed, steps, size=64):
    source = generator(seed, 1)
    for _ in range(steps):
        yield torch.randperm(len(data.train_images), generator=source)[:size]


def pixels(images, dtype=torch.float32):
    return images[:, None].to(dtype) / 255


def test_the_table_of_the_assignment():
    """Layer by layer the parameter counts that seed/assignment.txt prints, 61,752 in all."""
    config = RunConfig(input_norm="batch", batch_norm=("conv1", "conv2"))
    assert parameter_count(config) == 61_752
    rows = [(row.name, row.shape, row.parameters) for row in layer_table(config)]
    assert rows == [
        ("input_bn", (1, 32, 32), 2),
        ("conv1", (6, 28, 28), 156),
        ("conv1_bn", (6, 28, 28), 12),
        ("conv1_relu", (6, 28, 28), 0),
        ("conv1_pool", (6, 14, 14), 0),
        ("conv2", (16, 10, 10), 2_416),
        ("conv2_bn", (16, 10, 10), 32),
        ("conv2_relu", (16, 10, 10), 0),
        ("conv2_pool", (16, 5, 5), 0),
        ("fc1", (120,), 48_120),
        ("fc1_relu", (120,), 0),
        ("fc2", (84,), 10_164),
        ("fc2_relu", (84,), 0),
        ("fc3", (10,), 850),
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_the_layer_table_is_the_net(name):
    """Names, kinds, shapes and counts of the torch-free table are those of the net that torch builds."""
    config = preset(name)
    net = LeNet5(config).eval()
    seen = []
    for child, module in net.body.named_children():
        module.register_forward_hook(
            lambda m, _, out, child=child: seen.append((child, tuple(out.shape[1:]), sum(p.numel() for p in m.parameters())))
        )
    net(torch.zeros(2, 1, 32, 32))
    assert [row for row in seen if row[0] != "flatten"] == [(r.name, r.shape, r.parameters) for r in layer_table(config)]
    for row in layer_table(config):
        kind = row.kind.partition("(")[0]
        if not kind.startswith("Dropout") and kind != "Normalize":
            assert type(getattr(net.body, row.name)).__name__ == kind


def plain_training(config, data, seed, dtype, steps=STEPS):
    """The oracle: one ordinary net, an ordinary loop. Losses [steps], first gradients by name, logits of 200 test images."""
    net = LeNet5(config, seed, data.mean, data.std).to(dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
    losses, first = [], {}
    for chosen in batches(data, seed, steps):
        loss = F.cross_entropy(net(pixels(data.train_images[chosen], dtype)), data.train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        first = first or {name: p.grad.clone() for name, p in net.named_parameters()}
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=dtype), first, net.eval()(pixels(data.test_images[:200], dtype)).detach()


def stack_training(config, data, dtype):
    """The same for the stack, the replicate as the first axis."""
    net = Stack(config, SEEDS, data).to(dtype)
    optimizer = make_optimizer(config, net)
    orders = [list(batches(data, seed, STEPS)) for seed in SEEDS]
    losses, first = [], {}
    for step in range(STEPS):
        chosen = torch.stack([order[step] for order in orders])
        losses.append(train_step(net, optimizer, data.train_images[chosen], data.train_labels[chosen])[0])
        first = first or {n.replace("|", "."): p.grad.clone() for n, p in net.named_parameters()}
    return torch.stack(losses, 1), first, net.folded()(data.test_images[:200])


def apart(a, b):
    return (a.double() - b.double()).abs().max().item()


@pytest.mark.parametrize("name", [*PRESETS, "dropout first"])
def test_each_replicate_is_the_plain_net(name, mnist_5k):
    """First-step gradients parameter by parameter; after 50 Adam steps the same losses and logits, dropout included.

    In float64 they agree to 1e-6: the mathematics is the same. In float32 PyTorch's channels-last batch norm adds its 50,000
    values one after the other and is off by 3e-4 (docs/architecture.md); single ReLUs and poolings then fall the other way.
    """
    torch.set_num_threads(1)  # as training does; the number of threads decides how sums are rounded
    config = preset("bn-dropout", dropout_order="before") if name == "dropout first" else preset(name)
    exact, rounded = (stack_training(config, mnist_5k, dtype) for dtype in (torch.float64, torch.float32))
    for index, seed in enumerate(SEEDS):
        losses, gradients, logits = plain_training(config, mnist_5k, seed, torch.float64)
        losses32, gradients32, logits32 = plain_training(config, mnist_5k, seed, torch.float32)
        largest = max(gradient.abs().max().item() for gradient in gradients.values())
        for parameter, gradient in gradients.items():
            size = gradient.abs().max().item()
            assert apart(exact[1][parameter][index], gradient) <= 1e-9 * size + 1e-12, parameter
            difference = (rounded[1][parameter][index] - gradients32[parameter]).norm().item()
            assert difference <= 5e-2 * gradients32[parameter].norm().item() + 5e-4 * largest, parameter
        assert apart(exact[0][index], losses) <= 1e-6
        assert apart(exact[2][index], logits) <= 1e-5
        assert apart(rounded[0][index, 0], losses32[0]) <= 1e-4  # before any step: Adam makes full steps of rounding noise
        assert apart(rounded[0][index, :3], losses32[:3]) <= 1e-3
        if name in PRESETS:  # dropout first hardly learns in 50 steps: logits near 0 have no scale to measure rounding by
            assert apart(rounded[0][index], losses32) <= 2e-2
            assert (rounded[2][index] - logits32).norm() <= 5e-2 * logits32.norm()


def test_an_exported_replicate_is_a_plain_net(mnist_5k):
    """`unstack` gives a state dict that LeNet5 loads, running statistics included, and scores alike."""
    config = preset("bn-dropout", input_norm="batch")
    net = Stack(config, SEEDS, mnist_5k)
    optimizer = make_optimizer(config, net)
    for chosen in batches(mnist_5k, 0, 5):
        train_step(
            net, optimizer, *(values[chosen].expand(4, *values[chosen].shape) for values in (mnist_5k.train_images, mnist_5k.train_labels))
        )
    logits = net.folded()(mnist_5k.test_images[:200])
    for index in range(len(SEEDS)):
        plain = LeNet5(config)
        plain.load_state_dict(unstack(net.replicates(), index))
        torch.testing.assert_close(plain.eval()(pixels(mnist_5k.test_images[:200])), logits[index], rtol=1e-4, atol=1e-4)


def test_stack_and_unstack_are_inverse():
    states = [LeNet5(preset("bn-dropout"), seed).state_dict() for seed in SEEDS]
    together = stack(states)
    for index, state in enumerate(states):
        back = unstack(together, index)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], state[name]) for name in state)


def test_arms_start_from_the_same_weights():
    """The same seed gives the same linear maps in every arm, another seed others, and the global generator is not touched."""
    before = torch.random.get_rng_state()
    nets = [LeNet5(preset(name), 3).state_dict() for name in PRESETS]
    for name in ("body.conv1.weight", "body.fc3.bias"):
        assert all(torch.equal(net[name], nets[0][name]) for net in nets)
        assert not torch.equal(nets[0][name], LeNet5(preset("baseline"), 4).state_dict()[name])
    assert torch.equal(before, torch.random.get_rng_state())


def test_initial_weights_are_pytorch_defaults():
    """`torch.manual_seed(seed)` and the ordinary constructors give the same weights."""
    torch.manual_seed(5)
    layers = [torch.nn.Conv2d(1, 6, 5), torch.nn.Conv2d(6, 16, 5), torch.nn.Linear(400, 120)]
    mine = LeNet5(preset("standard-bn"), 5).body
    for name, layer in zip(("conv1", "conv2", "fc1"), layers, strict=True):
        assert torch.equal(getattr(mine, name).weight, layer.weight)
        assert torch.equal(getattr(mine, name).bias, layer.bias)


def test_evaluation_does_not_depend_on_the_batch():
    """Eval mode uses the training split's statistics: an image's logits are the same in any company."""
    images = torch.randint(0, 256, (64, 32, 32), dtype=torch.uint8, generator=generator(0, 0))
    labels = torch.zeros(64, dtype=torch.long)
    data = Data(images, labels, images, labels, 0.3, 0.2)
    for name in PRESETS:
        folded = Stack(preset(name), (0, 1), data).folded()
        torch.testing.assert_close(folded(images)[:, :5], folded(images[:5]), rtol=1e-4, atol=1e-5)


def test_nothing_is_bound_to_the_cpu():
    """A stack on torch's `meta` device runs a training step: no tensor is made on a fixed device."""
    images = torch.zeros(3, 8, 32, 32, dtype=torch.uint8, device="meta")
    labels = torch.zeros(3, 8, dtype=torch.long, device="meta")
    data = Data(images[0], labels[0], images[0], labels[0], 0.3, 0.2)
    for name in ("standard-bn", "input-bn"):
        net = Stack(preset(name), (0, 1, 2), data, "cpu").to("meta")
        assert net(images).device.type == "meta"
