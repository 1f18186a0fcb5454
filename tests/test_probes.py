"""Probes and pitfalls against plain PyTorch, arrays solved by hand, and laws. Run: pytest tests/test_probes.py"""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from test_model import pixels
from torch import nn
from torch.nn import functional as F

from regcompare import pitfalls, probes
from regcompare.config import HIDDEN_PLACES, PRESETS, RegcompareError, preset
from regcompare.data import generator, load, pixel_statistics
from regcompare.layers import WIDTHS
from regcompare.model import LeNet5, Stack
from regcompare.train import train

SEEDS = (0, 3)
SMALL = {"train_size": 300, "epochs": 2, "seeds": SEEDS}
LONGER = {"train_size": 1000, "epochs": 3, "seeds": SEEDS}  # 48 steps: the running statistics have left their initial values


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As in training; two threads on busy cores wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def trained(name, longer=False):
    """A small run of a preset: recipe, data, the arrays that it leaves, its weights."""
    config = preset(name, **(LONGER if longer else SMALL))
    data = load(config)
    arrays = list(train(config, data))[-1].arrays
    return config, data, arrays, probes.weights_of(arrays)


def plain_net(config, weights, index):
    """The oracle's own way from the arrays to a net."""
    net = LeNet5(config)
    net.load_state_dict({name: torch.from_numpy(np.array(values[index])) for name, values in weights.items()})
    return net.eval()


def seen(net, x, layers, incoming=False):
    """What goes into, or comes out of, named layers, caught by hooks; also the logits."""
    found, hooks = {}, []
    for layer in layers:
        hooks.append(
            getattr(net.body, layer).register_forward_hook(
                lambda _, before, after, layer=layer: found.update({layer: (before[0] if incoming else after).detach()})
            )
        )
    with torch.no_grad():
        found["logits"] = net(x)
    for hook in hooks:
        hook.remove()
    return found


def result(logits, labels):
    return (logits.argmax(1) == labels).double().mean().item(), F.cross_entropy(logits, labels).item()


def few(data, n):
    return dataclasses.replace(data, test_images=data.test_images[-n:], test_labels=data.test_labels[-n:])


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_weights_come_under_the_names_of_the_plain_net():
    arrays = trained("bn-dropout")[2]
    assert probes.weights_of(arrays).keys() == LeNet5(preset("bn-dropout")).state_dict().keys()
    with pytest.raises(RegcompareError, match="must come with weights"):
        probes.weights_of({"final/test_loss": np.zeros(2)})


@pytest.mark.parametrize("name", PRESETS)
def test_a_net_without_a_mistake_scores_as_the_run_did(name):
    config, data, arrays, weights = trained(name)
    found = pitfalls.other_normalization(config, data, weights)
    np.testing.assert_allclose(found["right"], arrays["final/test_accuracy"], atol=1.01e-3)  # a tie may fall either way
    np.testing.assert_allclose(found["right_loss"], arrays["final/test_loss"], rtol=1e-4)
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(("right", "right_loss", "wrong", "wrong_loss"), (2,))


# Internal covariate shift


def test_looks_are_spread_evenly_in_the_logarithm():
    for epochs in (1, 2, 30):
        config = preset("baseline", train_size=300, epochs=epochs)
        steps = probes.drift_steps(config)
        assert steps[[0, 1, -1]].tolist() == [0, 1, config.steps]
        assert len(steps) <= 40
        assert (np.diff(steps) > 0).all()
    steps = probes.drift_steps(preset("baseline", epochs=30)).astype(float)
    ratios = steps[20:][1:] / steps[20:][:-1]
    assert ratios.max() / ratios.min() < 1.05


def percentiles(values):
    return torch.quantile(values.flatten().double(), torch.tensor([0.15, 0.5, 0.85], dtype=torch.float64)).numpy()


@pytest.mark.parametrize("name", ["standard-bn", "bn-dropout", "dropout"])
def test_drift_is_what_goes_into_the_relus_in_train_mode(name):
    """At the first step the initial net's, at the last the finished run's, which no look has disturbed."""
    config = preset(name, train_size=200, epochs=1, seeds=SEEDS)
    data = load(config)
    weights = probes.weights_of(list(train(config, data))[-1].arrays)
    found = probes.activation_drift(config, data)
    assert found["steps"].tolist() == [0, 1, 2, 3, 4]
    assert found.keys() == {"steps"} | {f"{place}{part}" for place in HIDDEN_PLACES for part in ("", "/unit", "/linear")}
    assert all(values.shape == (5, 2, 3) for key, values in found.items() if key != "steps")
    batch = pixels(data.test_images[:256])
    for index, seed in enumerate(SEEDS):
        for step in (0, -1):
            net = LeNet5(config, seed, data.mean, data.std)
            if step:
                net.load_state_dict(plain_net(config, weights, index).state_dict())
            into = seen(net.train(), batch, [f"{place}_relu" for place in HIDDEN_PLACES], incoming=True)
            for place in HIDDEN_PLACES:
                np.testing.assert_allclose(found[place][step, index], percentiles(into[f"{place}_relu"]), rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(
                    found[f"{place}/unit"][step, index], percentiles(into[f"{place}_relu"][:, 0]), rtol=1e-5, atol=1e-6
                )
    if config.batch_norm:
        assert (np.abs(found["fc2"][0, :, 1]) < 0.3).all()  # weight 1 and bias 0: each unit has mean 0 and deviation 1
        assert (found["fc2"][0, :, 2] - found["fc2"][0, :, 0] > 1.5).all()
        assert (found["fc2/linear"][0, :, 2] - found["fc2/linear"][0, :, 0] < 1.5).all()
    else:
        for place in HIDDEN_PLACES:
            np.testing.assert_array_equal(found[place], found[f"{place}/linear"])


def test_drift_covers_every_stack_and_repeats_itself():
    config = preset("bn-dropout", train_size=66, epochs=1, seeds=(0, 1, 2, 3, 8))
    data = load(config)
    found = probes.activation_drift(config, data)
    assert found["fc1"].shape == (3, 5, 3)
    torch.manual_seed(99)
    assert_same(found, probes.activation_drift(config, data))
    alone = probes.activation_drift(config.model_copy(update={"seeds": (8,)}), data)
    np.testing.assert_allclose(found["fc2"][:, 4:], alone["fc2"], rtol=1e-2, atol=1e-2)


# Co-adaptation


@pytest.mark.parametrize("name", ["baseline", "bn-dropout"])
def test_silencing_nothing_costs_nothing_and_silencing_all_leaves_the_bias(name):
    config, data, arrays, weights = trained(name)
    found = probes.silencing(config, data, weights, [0, 0.3, 1], masks=2)
    assert found["accuracy"].shape == (3, 2, 2)
    np.testing.assert_allclose(found["accuracy"][0], np.tile(arrays["final/test_accuracy"], (2, 1)), atol=1.01e-3)
    constant = [(data.test_labels == int(bias.argmax())).double().mean().item() for bias in weights["body.fc3.bias"]]
    np.testing.assert_allclose(found["accuracy"][2], [constant, constant])
    torch.manual_seed(99)
    assert_same(found, probes.silencing(config, data, weights, [0, 0.3, 1], masks=2))


@pytest.mark.parametrize("places", [("fc1", "fc2"), ("conv1", "conv2"), ("conv2", "fc2")])
def test_a_silenced_unit_is_one_that_the_next_layer_does_not_read(places):
    """The oracle takes the weights of the next layer away; nothing else is scaled. A larger share silences the same units and more."""
    config, data, _, weights = trained("bn-dropout")
    following = {"conv1": "conv2", "conv2": "fc1", "fc1": "fc2", "fc2": "fc3"}
    shares = [0.2, 0.55]
    found = probes.silencing(config, data, weights, shares, 2, places)["accuracy"]
    for index, seed in enumerate(SEEDS):
        source = generator(seed, probes.PROBE_STREAM)
        for mask in range(2):
            order = {place: torch.randperm(WIDTHS[place], generator=source) for place in HIDDEN_PLACES}
            for row, share in enumerate(shares):
                net = plain_net(config, weights, index)
                for place in places:
                    weight = getattr(net.body, following[place]).weight.data
                    by_input = weight.view(weight.shape[0], WIDTHS[place], -1)  # fc1 reads 25 values of each channel of conv2
                    by_input[:, order[place][: round(share * WIDTHS[place])]] = 0
                expected = result(seen(net, pixels(data.test_images), [])["logits"], data.test_labels)[0]
                assert abs(found[row, mask, index] - expected) <= 1.01e-3


def handed_on(config, weights, index, data):
    """Outputs of each hidden place by unit, [units, values], by hooks."""
    layers = {"conv1": "conv1_pool", "conv2": "conv2_pool", "fc1": "fc1_relu", "fc2": "fc2_relu"}
    found = seen(plain_net(config, weights, index), pixels(data.test_images), layers.values())
    return {place: found[layer].movedim(1, 0).reshape(WIDTHS[place], -1).double().numpy() for place, layer in layers.items()}


def test_correlation_and_sparsity_are_those_of_the_outputs():
    config, data, _, weights = trained("dropout")
    data = few(data, 300)
    correlation, histograms = probes.unit_correlation(config, data, weights), probes.sparsity(config, data, weights)
    for index in range(2):
        for place, values in handed_on(config, weights, index, data).items():
            alive = values[values.std(1) > 0]
            assert correlation[f"{place}/dead"][index] == len(values) - len(alive)
            table = np.abs(np.corrcoef(alive))
            expected = (table.sum() - len(alive)) / (len(alive) * (len(alive) - 1))
            assert correlation[place][index] == pytest.approx(expected, rel=1e-4)
            assert histograms[f"{place}/mean"][index] == pytest.approx(values.mean(), rel=1e-5)
            assert histograms[f"{place}/zero"][index] == pytest.approx((values == 0).mean(), abs=1e-4)
            bins = np.minimum(values // 0.25, 39).astype(int)
            np.testing.assert_allclose(
                histograms[f"{place}/activations"][index], np.bincount(bins.ravel(), minlength=40) / bins.size, atol=1e-3
            )
            assert histograms[f"{place}/units"][index].sum() == pytest.approx(1)
    assert histograms["edges"].tolist() == np.linspace(0, 10, 41).tolist()


def test_copies_are_perfectly_correlated_and_dead_units_left_out():
    """fc2 made by hand: 40 copies of one unit, three units that never fire, the rest the copy's mirror image."""
    config, data, _, weights = trained("baseline")
    weights = {name: values.copy() for name, values in weights.items()}
    row = weights["body.fc2.weight"][:, :1] * 1e-3
    weights["body.fc2.weight"][:] = row
    weights["body.fc2.weight"][:, 43:] = -row
    weights["body.fc2.bias"][:] = 20
    weights["body.fc2.bias"][:, 40:43] = -20
    found = probes.unit_correlation(config, few(data, 100), weights)
    assert found["fc2/dead"].tolist() == [3, 3]
    np.testing.assert_allclose(found["fc2"], 1, atol=1e-3)
    histograms = probes.sparsity(config, few(data, 100), weights)
    np.testing.assert_allclose(histograms["fc2/units"][:, [0, -1]], [[3 / 84, 81 / 84]] * 2)
    np.testing.assert_allclose(histograms["fc2/activations"][:, [0, -1]], [[3 / 84, 81 / 84]] * 2)
    weights["body.fc2.bias"][:] = -20
    silent = probes.unit_correlation(config, few(data, 100), weights)
    assert silent["fc2/dead"].tolist() == [84, 84]
    assert np.isnan(silent["fc2"]).all()


def test_first_filters_are_the_kernels_of_conv1():
    weights = trained("baseline")[3]
    filters = probes.first_filters(weights)
    assert filters.shape == (2, 6, 5, 5)
    assert filters[1, 4, 2, 3] == weights["body.conv1.weight"][1, 4, 0, 2, 3]


# Variance shift


def test_variance_shift_is_about_one_without_dropout_and_more_behind_it():
    without = trained("input-bn", longer=True)
    behind = trained("bn-dropout", longer=True)
    even = probes.variance_shift(without[0], without[1], without[3], batches=5)
    shifted = probes.variance_shift(behind[0], behind[1], behind[3], batches=5)
    np.testing.assert_array_equal(even["input"], 1)
    for place in HIDDEN_PLACES:
        assert even[place].shape == (2,)
        assert (even[place] >= 1).all()
        assert (even[place] < 1.15).all()
        assert even[f"{place}/train"].shape == even[f"{place}/test"].shape == (2, WIDTHS[place])
    for place in HIDDEN_PLACES[1:]:
        assert (shifted[place] > 1.15).all(), place
        assert (shifted[f"{place}/train"].mean(1) > shifted[f"{place}/test"].mean(1)).all()  # masks add variance
    assert_same(shifted, probes.variance_shift(behind[0], behind[1], behind[3], batches=5))


def test_variances_are_those_of_the_batches():
    config, data, _, weights = trained("bn-dropout")
    found = probes.variance_shift(config, data, weights)
    order = torch.randperm(300, generator=generator(0, probes.PROBE_STREAM))
    layers = [f"{place}_bn" for place in HIDDEN_PLACES]
    for index, seed in enumerate(SEEDS):
        source = LeNet5(config, seed)  # for its dropout masks
        source.load_state_dict(plain_net(config, weights, index).state_dict())
        for mode, net in (("test", plain_net(config, weights, index)), ("train", source.train())):
            batches = [seen(net, pixels(data.train_images[batch]), layers, incoming=True) for batch in order[:256].split(64)]
            for place in HIDDEN_PLACES:
                values = [batch[f"{place}_bn"].movedim(1, 0).reshape(WIDTHS[place], -1).var(1) for batch in batches]
                np.testing.assert_allclose(found[f"{place}/{mode}"][index], torch.stack(values).mean(0), rtol=1e-4)
        ratio = (found["fc1/test"][index] + 1e-5) / (found["fc1/train"][index] + 1e-5)
        assert found["fc1"][index] == pytest.approx(np.where(ratio > 1, ratio, 1 / ratio).mean())


@pytest.mark.parametrize("name", ["bn-dropout", "input-bn"])
def test_reestimated_statistics_are_those_of_all_training_images(name):
    """The oracle: all of them as one batch in train mode without dropout, at momentum 1."""
    config, data, arrays, weights = trained(name)
    found = probes.reestimate(config, data, weights)
    np.testing.assert_allclose(found["before"], arrays["final/test_accuracy"], atol=1.01e-3)
    for index in range(2):
        net = plain_net(config, weights, index).double()
        norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
        for layer in norms:
            layer.train()
            layer.momentum = 1.0
        into = seen(net, pixels(data.train_images, torch.float64), [f"{place}_bn" for place in config.normalized_places], incoming=True)
        for place in config.normalized_places:
            values = into[f"{place}_bn"]
            getattr(net.body, f"{place}_bn").running_var.mul_(1 - values.shape[1] / values.numel())  # PyTorch's is n / (n - 1) times
        accuracy, loss = result(seen(net.eval(), pixels(data.test_images, torch.float64), [])["logits"], data.test_labels)
        assert abs(found["after"][index] - accuracy) <= 1.01e-3
        assert found["after_loss"][index] == pytest.approx(loss, rel=1e-4)


def test_reestimating_changes_little_without_dropout():
    config, data, _, weights = trained("input-bn", longer=True)
    found = probes.reestimate(config, data, weights)
    np.testing.assert_allclose(found["after"], found["before"], atol=0.02)
    np.testing.assert_allclose(found["after_loss"], found["before_loss"], rtol=0.1)


# Pitfalls


@pytest.mark.parametrize("name", ["input-bn", "standard-bn", "none"])
def test_other_normalization_shows_the_net_other_pixels(name):
    config, data, _, weights = trained("input-bn" if name == "none" else name)
    if name == "none":  # the input's batch norm taken out: a net on pixels as they are
        config = config.model_copy(update={"input_norm": "none"})
        weights = {key: values for key, values in weights.items() if "input_bn" not in key}
    found = pitfalls.other_normalization(config, data, weights, (0.2, 0.4) if name == "none" else None)
    mean, std = (0.2, 0.4) if name == "none" else (data.mean, data.std)
    x = pixels(data.test_images)
    for index in range(2):
        net = plain_net(config, weights, index)
        wrong = net.body[1:](x) if name == "standard-bn" else net((x - mean) / std)
        accuracy, loss = result(wrong.detach(), data.test_labels)
        assert abs(found["wrong"][index] - accuracy) <= 1.01e-3
        assert found["wrong_loss"][index] == pytest.approx(loss, rel=1e-4)


def test_own_statistics_replace_those_of_training():
    config, data, _, weights = trained("standard-bn")
    data = few(data, 130)
    found = pitfalls.own_statistics(config, data, weights)
    x = pixels(data.test_images)
    order = torch.randperm(130, generator=generator(0, probes.PROBE_STREAM))
    for index in range(2):
        body = plain_net(config, weights, index).body[1:]
        assert found["wrong_loss"][index] == pytest.approx(
            result(body((x - x.mean()) / x.std(correction=0)), data.test_labels)[1], rel=1e-4
        )
        parts = [body((x[batch] - x[batch].mean()) / x[batch].std(correction=0)) for batch in order.split(64)]
        accuracy, loss = result(torch.cat(parts), data.test_labels[order])
        assert found["batchwise"][index] == pytest.approx(accuracy, abs=1.01 / 130)
        assert found["batchwise_loss"][index] == pytest.approx(loss, rel=1e-4)
    whole = pitfalls.own_statistics(config, data, weights, batch_size=130)
    np.testing.assert_allclose(whole["batchwise_loss"], whole["wrong_loss"], rtol=1e-5)
    same = dataclasses.replace(data, test_images=data.train_images, test_labels=data.train_labels)
    np.testing.assert_allclose(*(pitfalls.own_statistics(config, same, weights)[key] for key in ("right_loss", "wrong_loss")), rtol=1e-4)
    assert pixel_statistics(data.train_images) == (data.mean, data.std)
    with pytest.raises(RegcompareError, match="input_norm must be standard to replace its statistics, got 'batch'"):
        pitfalls.own_statistics(trained("input-bn")[0], data, weights)


def test_train_mode_uses_the_test_batch():
    config, data, _, weights = trained("standard-bn")
    data = few(data, 129)  # two batches: the image left over joins the second
    found = pitfalls.train_mode(config, data, weights)
    order = torch.randperm(129, generator=generator(0, probes.PROBE_STREAM))
    x, labels = pixels(data.test_images)[order], data.test_labels[order]
    for index in range(2):
        net = plain_net(config, weights, index).train()
        accuracy, loss = result(torch.cat([net(x[:64]), net(x[64:])]).detach(), labels)
        assert found["wrong"][index] == pytest.approx(accuracy, abs=1.01 / 129)
        assert found["wrong_loss"][index] == pytest.approx(loss, rel=1e-4)
    assert (pitfalls.train_mode(config, data, weights, batch_size=2)["wrong"] < found["wrong"]).all()
    with pytest.raises(RegcompareError, match="batch_size must be at least 2 where a dense layer has batch norm, got 1"):
        pitfalls.train_mode(config, data, weights, batch_size=1)


def test_train_mode_leaves_dropout_on_and_a_net_with_neither_alone():
    config, data, _, weights = trained("dropout", longer=True)
    found = pitfalls.train_mode(config, few(data, 300), weights, batch_size=1)
    assert (found["wrong_loss"] > found["right_loss"]).all()
    assert_same(found, pitfalls.train_mode(config, few(data, 300), weights, batch_size=1))
    config, data, _, weights = trained("baseline")
    found = pitfalls.train_mode(config, data, weights)
    np.testing.assert_array_equal(found["wrong"], found["right"])


def test_dropout_on_the_logits_is_trained_with_and_tested_without():
    config, data, arrays, _ = trained("bn-dropout")
    found = pitfalls.logits_dropout(config, data, 0.5)
    np.testing.assert_array_equal(found["right"], arrays["final/test_accuracy"])
    np.testing.assert_array_equal(found["right_loss"], arrays["final/test_loss"])
    assert (found["wrong_loss"] != found["right_loss"]).all()
    none = pitfalls.logits_dropout(config, data, 0.0)
    np.testing.assert_array_equal(none["wrong_loss"], found["right_loss"])
    assert_same(found, pitfalls.logits_dropout(config, data, 0.5))


def test_masks_on_the_logits_keep_their_mean():
    config = preset("baseline", seeds=SEEDS)
    data = load(config)
    images = data.train_images[:1].expand(2, 2000, 32, 32)
    with torch.no_grad():
        dropped = pitfalls.LogitsDropout(config, SEEDS, data, 0.75)(images)
        whole = Stack(config, SEEDS, data)(images[:, :1])
    ratios = dropped / whole
    assert torch.isclose(ratios, torch.zeros(()), atol=1e-4).logical_or(torch.isclose(ratios, torch.tensor(4.0), atol=1e-3)).all()
    assert ratios.mean().item() == pytest.approx(1, abs=0.06)
    assert not torch.equal(dropped[0] == 0, dropped[1] == 0)
