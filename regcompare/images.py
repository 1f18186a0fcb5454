"""The resized test images as they lie beside the store, for pages: NumPy only. `data` makes them and trains on them."""

from pathlib import Path

import numpy as np

SIDE = 32


def default_tensor_dir() -> Path:
    """Where the resized images are kept."""
    return Path(__file__).parent.parent / "cache" / "tensors"


def for_labels(dataset: str, labels: np.ndarray, folder: Path | None = None) -> np.ndarray | None:
    """The test images uint8 [n, 32, 32] that have these labels [n]; None if they are not on this machine (nothing trained on them)."""
    for found in sorted((folder or default_tensor_dir()).glob(f"{dataset}.*")):
        try:
            images, known = (np.load(found / f"test_{part}.npy", mmap_mode="r", allow_pickle=False) for part in ("images", "labels"))
        except (OSError, ValueError, EOFError):
            continue
        if images.shape == (labels.size, SIDE, SIDE) and np.array_equal(known, labels):
            return images
    return None
