"""Chapter 2: handwritten digits, 28x28, in grey.

MNIST (LeCun et al. 1998; CC BY-SA 3.0) is looked for in `$MINISD_DATA`, then in `data/downloads`,
then downloaded. Where that fails, the 1,797 digits that come with scikit-learn stand in.
"""

import gzip
import io
import os
import struct
import tempfile
import time
import urllib.request
import warnings
import zlib
from contextlib import suppress
from functools import cache
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from minisd.files import expand, replacing
from minisd.pretrained import download_folder

MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MAX_BYTES = 50_000_000  # of a file, unpacked; the largest has 47,040,016
TIMEOUT = 10  # seconds without a byte
RETRY_SECONDS = 600  # after a failed download; every kernel of the book would try it again
FAILED = "mnist-download-failed.txt"


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
    """Return a folder with a complete and correct MNIST, downloading it if need be, or None.

    After a download that failed, no process tries again for RETRY_SECONDS.
    """
    problems = []
    own = os.environ.get("MINISD_DATA")
    for root in ([expand(own)] if own else []) + [download_folder()]:
        problem = what_is_wrong(root)
        if problem is None:
            return root
        problems.append(problem)
    problem = failed_download()
    if problem is None:
        try:
            return download_mnist(download_folder())
        except OSError as error:  # no network, or no room to write to
            problem = remember_failure(f"download: {error}")
    problems.append(problem)
    warnings.warn(
        "MNIST cannot be reached, so these are the 1,797 UCI digits of scikit-learn, enlarged from "
        f"8x8: expect coarser samples. ({'; '.join(problems)})",
        stacklevel=3,
    )
    return None


def failed_download() -> str | None:
    """Say which download failed less than RETRY_SECONDS ago, and how to try again at once."""
    for marker in markers():
        with suppress(OSError, UnicodeDecodeError):
            age = time.time() - marker.stat().st_mtime
            if 0 <= age < RETRY_SECONDS:
                reason = marker.read_text(encoding="utf-8")[:1000].strip()
                return f"{reason}, {age / 60:.0f} minutes ago; to try again now, delete {marker}"
    return None


def remember_failure(reason: str) -> str:
    """Leave a marker for `failed_download` where that is possible; return what there is to say."""
    for marker in markers():
        with suppress(OSError):
            marker.parent.mkdir(parents=True, exist_ok=True)
            with replacing(marker) as temporary:
                temporary.write_text(reason, encoding="utf-8")
            return (
                f"{reason}; it is tried again after {RETRY_SECONDS // 60} minutes, "
                f"or once {marker} is deleted"
            )
    return reason


def markers() -> list[Path]:
    """Return where the marker of a failed download may be: with the downloads, or in passing."""
    places = [download_folder() / FAILED]
    with suppress(OSError):  # not every machine has a folder for temporary files
        places.append(Path(tempfile.gettempdir()) / FAILED)
    return places


def what_is_wrong(root: Path) -> str | None:
    """Say which of MNIST's four files is missing or damaged under `root`; None if all are right."""
    try:
        for name in MNIST_SHA256:
            read_file(root, name)
    except ValueError as error:
        return str(error)
    return None


def read_file(root: Path, name: str) -> bytes:
    """Return one of MNIST's files, unpacked; as `name`.gz it will do too.

    Raises ValueError if it is missing, or not what its checksum says.
    """
    path, problem = root / "MNIST" / "raw" / name, "missing"
    for file, opener in ((path, open), (path.with_name(f"{name}.gz"), gzip.open)):
        if not os.path.isfile(file):
            continue
        try:
            with opener(file, "rb") as stream:
                return verified(name, stream.read(MAX_BYTES + 1))
        except (OSError, EOFError, ValueError, zlib.error):
            problem = "damaged"
    raise ValueError(f"{path} is {problem}")


def verified(name: str, content: bytes) -> bytes:
    """Return the content of one of MNIST's files; raises ValueError if the checksum differs."""
    if sha256(content).hexdigest() != MNIST_SHA256[name]:
        raise ValueError(f"{name} is damaged")
    return content


def download_mnist(root: Path) -> Path:
    """Download MNIST into `root`: nothing of it appears there before all of it has arrived.

    Raises OSError if it cannot be downloaded or written.
    """
    contents = {name: download_file(name) for name in MNIST_SHA256}
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with replacing(raw / name) as temporary:
            temporary.write_bytes(content)
    (root / FAILED).unlink(missing_ok=True)
    return root


def download_file(name: str) -> bytes:
    """Download one of MNIST's files from the first mirror that has it, and unpack it.

    Raises OSError that says why none of them would do.
    """
    problems = []
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=TIMEOUT) as answer:
                packed = io.BytesIO(answer.read(MAX_BYTES))
            with gzip.open(packed) as stream:
                return verified(name, stream.read(MAX_BYTES + 1))
        except (OSError, EOFError, ValueError, HTTPException, zlib.error) as error:
            problems.append(f"{mirror}{name}.gz: {error}")
    raise OSError("; ".join(problems))


def read_mnist(root: Path, split: str) -> Digits:
    """Read one split of a complete MNIST."""
    start = "train" if split == "train" else "t10k"
    images = torch.from_numpy(parse_idx(read_file(root, f"{start}-images-idx3-ubyte")))
    labels = torch.from_numpy(parse_idx(read_file(root, f"{start}-labels-idx1-ubyte")))
    return Digits(images[:, None].float() / 127.5 - 1, labels.long(), "MNIST")


def parse_idx(content: bytes) -> np.ndarray:
    """Return the array of unsigned bytes in MNIST's own format.

    Two zeros, 8 for unsigned bytes, the number of dimensions, each dimension in four bytes with the
    highest first, then the numbers.
    """
    zero, kind, ndim = struct.unpack_from(">HBB", content)
    if (zero, kind) != (0, 8):
        raise ValueError(f"not an IDX file of unsigned bytes: it begins with {content[:4]!r}")
    shape = struct.unpack_from(f">{ndim}I", content, offset=4)
    return np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * ndim).reshape(shape)


def uci_digits(split: str) -> Digits:
    """Return the digits that come with scikit-learn, every fifth of them for testing."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1  # 0..16 -> [-1,1]
    images = F.interpolate(images, size=(28, 28), mode="bicubic").clamp(-1, 1)
    chosen = (torch.arange(len(images)) % 5 == 0) == (split == "test")
    return Digits(images[chosen], torch.tensor(data.target)[chosen], "UCI digits")
