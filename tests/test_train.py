"""Training as events: their order, their numbers, and that resuming changes none of them. Run: pytest tests/test_train.py"""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from test_model import SEEDS, apart, pixels, plain_training, stack_training
from torch.nn import functional as F

from regcompare.config import PRESETS, preset
from regcompare.data import Data, generator, load
from regcompare.model import BN_ARRAYS, LeNet5, Stack, unstack
from regcompare.train import EpochEnded, Finished, Point, Started, TrainingFailed, make_optimizer, train, train_step

SMALL = {"train_size": 200, "epochs": 3, "seeds": (0, 1)}  # 4 steps an epoch, the last one of 8 images


def events_of(config, resume=None):
    return list(train(config, load(config), resume=resume))


def of_type(events, kind):
    return [event for event in events if isinstance(event, kind)]


def numbers(events):
    """Every number of the events by name, but for the seconds."""
    found = {}
    for event in events:
        match event:
            case Point():
                found |= {f"point {event.step} {name}": np.array(value) for name, value in event.__dict__.items() if value is not None}
            case EpochEnded():
                for part in (event.batch_norm, event.checkpoint):
                    found |= {f"epoch {event.epoch} {name}": value for name, value in part.items()}
            case Finished():
                found |= event.arrays
    return found


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert (value.dtype, value.shape, value.tobytes()) == (b[name].dtype, b[name].shape, b[name].tobytes()), name


@dataclasses.dataclass(frozen=True)
class Recorded(Data):
    """Data that notes which training images are asked for."""

    asked: list = dataclasses.field(default_factory=list)

    def batch(self, chosen):
        self.asked.append(chosen.clone())
        return super().batch(chosen)


def batches_of(config):
    """The image numbers of each step, [K, B]."""
    data = Recorded(**load(config).__dict__)
    list(train(config, data))
    return data.asked


def test_events_come_in_order():
    events = events_of(preset("standard-bn", **SMALL))
    kinds = [(type(event), getattr(event, "epoch", None)) for event in events if not isinstance(event, Point)]
    assert kinds == [(Started, None), (EpochEnded, 0), (EpochEnded, 1), (EpochEnded, 2), (EpochEnded, 3), (Finished, None)]
    assert events[0] == Started(0)
    done = 0
    for event in events[2:-1]:
        if isinstance(event, Point):
            assert done < event.epoch <= done + 1
            assert event.epoch == event.step / 4
        else:
            done = event.epoch
    steps = [point.step for point in of_type(events, Point)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 12


def test_the_test_split_is_scored_often_at_first_then_once_an_epoch():
    config = preset("baseline", train_size=1000, epochs=3, seeds=(0, 1))  # 16 steps an epoch
    points = of_type(events_of(config), Point)
    assert [point.step for point in points if point.test_loss] == [3, 6, 10, 13, 16, 32, 48]
    assert [point.step for point in points] == [1, 2, 3, 5, 6, 10, 13, 16, 20, 30, 32, 40, 48]
    for point in points:
        assert (point.test_loss is None) == (point.test_accuracy is None)
        assert len(point.train_loss) == len(point.train_accuracy) == 2


def test_live_points_are_means_since_the_point_before():
    """Against a loop of single steps, with the data order drawn here."""
    config = preset("bn-dropout", train_size=1000, epochs=2, seeds=(4, 9))
    data = load(config)
    net = Stack(config, config.seeds, data)
    optimizer = make_optimizer(config, net)
    sources = [generator(seed, 1) for seed in config.seeds]
    steps = []
    for _ in range(config.epochs):
        for batch in torch.stack([torch.randperm(1000, generator=source) for source in sources]).split(64, 1):
            steps.append(torch.stack(train_step(net, optimizer, *data.batch(batch))))
    before = 0
    for point in of_type(events_of(config), Point):
        loss, accuracy = torch.stack(steps[before : point.step]).double().mean(0)
        assert point.train_loss == pytest.approx(loss.tolist(), rel=1e-6)
        assert point.train_accuracy == pytest.approx(accuracy.tolist(), rel=1e-6)
        before = point.step
    assert before == len(steps) == config.steps


def test_the_same_seed_gives_the_same_bits():
    """Whatever the global generator holds; another seed gives other numbers, its neighbour in the stack the same to rounding."""
    config = preset("bn-dropout", **SMALL)
    first = numbers(events_of(config))
    torch.manual_seed(99)
    assert_same_bits(first, numbers(events_of(config)))
    other = numbers(events_of(preset("bn-dropout", **SMALL | {"seeds": (0, 5)})))
    assert first.keys() == other.keys()
    for name in ("point 12 train_loss", "final/test_loss", "epoch 3 conv1/weight", "weights/body.conv1.weight"):
        assert first[name][0] == pytest.approx(other[name][0], rel=1e-3), name
        assert not np.allclose(first[name][1], other[name][1], rtol=1e-3), name


@pytest.mark.parametrize("name", PRESETS)
def test_final_values_are_the_plain_net_in_eval_mode(name):
    """On the whole of both splits, with the weights that are left behind."""
    config = preset(name, **SMALL | {"train_size": 1000})
    data = load(config)
    events = events_of(config)
    arrays = events[-1].arrays
    weights = {key.removeprefix("weights/"): torch.from_numpy(value) for key, value in arrays.items() if key.startswith("weights/")}
    assert arrays["test/label"].tolist() == data.test_labels.tolist()
    for index in range(2):
        plain = LeNet5(config)
        plain.load_state_dict(unstack(weights, index))
        plain = plain.double().eval()
        for split, images, labels in (("train", data.train_images, data.train_labels), ("test", data.test_images, data.test_labels)):
            with torch.no_grad():
                logits = plain(pixels(images, torch.float64))
            right = (logits.argmax(1) == labels).double().mean().item()
            assert arrays[f"final/{split}_loss"][index] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4), split
            assert abs(arrays[f"final/{split}_accuracy"][index] - right) <= 1.01 / len(labels), split  # a tie may fall either way
            if split == "test":
                assert (torch.from_numpy(arrays["test/prediction"][index]) != logits.argmax(1)).sum() <= 1
    last = of_type(events, Point)[-1]
    assert last.test_loss == arrays["final/test_loss"].tolist()
    assert last.test_accuracy == arrays["final/test_accuracy"].tolist()


def test_batch_norm_is_shown_from_the_initial_state_on():
    config = preset("input-bn", **SMALL)
    ended = of_type(events := events_of(config), EpochEnded)
    for place, channels in {"input": 1, "conv1": 6, "conv2": 16, "fc1": 120, "fc2": 84}.items():
        for array, initial in zip(BN_ARRAYS, (1, 0, 0, 1), strict=True):
            values = [event.batch_norm[f"{place}/{array}"] for event in ended]
            assert [value.shape for value in values] == [(2, channels)] * 4
            assert (values[0] == initial).all()
            assert all((before != after).any() for before, after in itertools.pairwise(values))
            assert np.array_equal(values[-1], events[-1].arrays[f"weights/body.{place}_bn.{array}"])
    assert all(not event.batch_norm for event in of_type(events_of(preset("dropout", **SMALL)), EpochEnded))


@pytest.mark.parametrize("name", [*PRESETS, "sgd"])
def test_resuming_changes_no_bit(name):
    """From every epoch's checkpoint, after it went through the bytes that the store keeps."""
    config = preset("bn-dropout", optimizer="sgd", lr=0.05, **SMALL) if name == "sgd" else preset(name, **SMALL)
    whole = events_of(config)
    expected = numbers(whole)
    for ended in of_type(whole, EpochEnded)[1:]:
        rest = events_of(config, load_arrays(save_arrays(ended.checkpoint)))
        assert rest[0] == Started(4 * ended.epoch)
        later = [event for event in whole if getattr(event, "epoch", config.epochs + 1) > ended.epoch and not isinstance(event, Started)]
        assert [type(event) for event in rest[1:]] == [type(event) for event in later]
        assert_same_bits(numbers(rest), {name: expected[name] for name in numbers(later)})


def test_a_loss_that_is_not_finite_ends_the_training():
    config = preset("baseline", optimizer="sgd", lr=10, batch_size=2, **SMALL)
    with pytest.raises(TrainingFailed) as caught:
        events_of(config)
    text = str(caught.value)
    assert text.startswith("Training stopped at step ")
    assert "the loss of seed " in text
    assert "sgd at learning rate 10 " in text
    assert text.endswith("Lower --lr to 1 or less, or turn batch norm on.")
    assert "\n" not in text


@pytest.mark.parametrize(("train_size", "sizes"), [(192, [64] * 3), (193, [64] * 3), (194, [64, 64, 64, 2]), (40, [40])])
def test_only_a_last_batch_of_one_image_is_left_out(train_size, sizes):
    config = preset("standard-bn", **SMALL | {"train_size": train_size, "epochs": 1})
    assert [batch.shape for batch in batches_of(config)] == [(2, size) for size in sizes]


def test_every_image_is_seen_once_an_epoch():
    """In an order of its own each epoch and each seed."""
    steps = batches_of(preset("baseline", **SMALL))
    orders = [torch.cat(steps[epoch * 4 : epoch * 4 + 4], 1)[replicate].tolist() for epoch in range(3) for replicate in range(2)]
    assert all(sorted(order) == list(range(200)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6


def test_arms_see_the_images_in_the_same_order():
    """Paired by seed, whatever the arm draws for dropout and whoever shares the stack."""
    plain = batches_of(preset("baseline", **SMALL | {"seeds": (3, 7)}))
    other = batches_of(preset("bn-dropout", input_norm="batch", **SMALL | {"seeds": (1, 2, 7)}))
    assert len(plain) == len(other) == 12
    assert all(torch.equal(a[1], b[2]) for a, b in zip(plain, other, strict=True))
    assert not torch.equal(plain[0][0], other[0][0])


def test_dropout_after_a_batch_norm_of_the_input_is_the_plain_net(mnist_5k):
    """No preset joins the two; as for the presets in test_model, in float64."""
    config = preset("bn-dropout", input_norm="batch")
    together = stack_training(config, mnist_5k, torch.float64)
    for index, seed in enumerate(SEEDS):
        losses, gradients, logits = plain_training(config, mnist_5k, seed, torch.float64)
        for name, gradient in gradients.items():
            assert apart(together[1][name][index], gradient) <= 1e-9 * gradient.abs().max().item() + 1e-12, name
        assert apart(together[0][index], losses) <= 1e-6
        assert apart(together[2][index], logits) <= 1e-5
