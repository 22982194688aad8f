"""Chapter 2: handwritten digits, 28x28, in grey.

MNIST (LeCun et al. 1998; CC BY-SA 3.0) is looked for in `$MINISD_DATA`, then in `data/downloads`,
then downloaded. Where that fails, the 1,797 digits that come with scikit-learn stand in.
"""

import hashlib
import os
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from minisd.compat import declare_torchvision_operators
from minisd.pretrained import download_folder

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class Digits(Dataset):
    """Digits as tensors: `images` (n,1,28,28) in [-1,1] and `labels` (n,); items are pairs."""

    def __init__(self, images: Tensor, labels: Tensor, source: str):
        self.images = images
        self.labels = labels
        self.source = source  # "MNIST" or "UCI digits"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def digits(split: Literal["train", "test"] = "train") -> Digits:
    """Return the training digits (60,000 of MNIST) or the unseen test digits (10,000).

    Raises ValueError for an unknown split. Without MNIST and without a network, warns and returns
    the UCI digits, 8x8 enlarged to 28x28: 1,437 for training, 360 for testing.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    root = mnist_root()
    return uci_digits(split) if root is None else read_mnist(root, split)


@cache
def mnist_root() -> Path | None:
    """Return a folder with a complete and correct MNIST, downloading it if need be, or None."""
    problems = []
    for root in filter(None, (os.environ.get("MINISD_DATA"), download_folder())):
        problem = what_is_wrong(Path(root))
        if problem is None:
            return Path(root)
        problems.append(problem)
    try:
        return download_mnist(download_folder())
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision raises the other
        problems.append(f"download: {error}")
    warnings.warn(
        "MNIST cannot be reached, so these are the 1,797 UCI digits of scikit-learn, enlarged from "
        f"8x8: expect coarser samples. ({'; '.join(problems)})",
        stacklevel=3,
    )
    return None


def what_is_wrong(root: Path) -> str | None:
    """Say which of MNIST's four files is missing or damaged under `root`; None if all are right."""
    for name, sha256 in MNIST_SHA256.items():
        path = root / "MNIST" / "raw" / name
        if not path.is_file():
            return f"{path} is missing"
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return f"{path} is damaged"
    return None


def download_mnist(root: Path) -> Path:
    """Download MNIST through torchvision into `root`; it appears there complete or not at all."""
    declare_torchvision_operators()
    from torchvision.datasets import MNIST

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        MNIST(temporary, download=True)
        problem = what_is_wrong(Path(temporary))
        if problem:
            raise OSError(problem)
        raw = root / "MNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for name in MNIST_SHA256:
            os.replace(Path(temporary) / "MNIST" / "raw" / name, raw / name)
    return root


def read_mnist(root: Path, split: str) -> Digits:
    """Read one split of a complete MNIST: the files that were verified, and no others."""
    declare_torchvision_operators()
    from torchvision.datasets.mnist import read_image_file, read_label_file

    start = str(root / "MNIST" / "raw" / ("train" if split == "train" else "t10k"))
    images = read_image_file(f"{start}-images-idx3-ubyte")[:, None].float() / 127.5 - 1
    return Digits(images, read_label_file(f"{start}-labels-idx1-ubyte"), "MNIST")


def uci_digits(split: str) -> Digits:
    """Return the digits that come with scikit-learn, every fifth of them for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1  # 0..16 -> [-1,1]
    images = F.interpolate(images, size=(28, 28), mode="bicubic").clamp(-1, 1)
    chosen = (torch.arange(len(images)) % 5 == 0) == (split == "test")
    return Digits(images[chosen], torch.tensor(data.target)[chosen], "UCI digits")
