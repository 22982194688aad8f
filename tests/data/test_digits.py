import gzip
import hashlib
import os
import struct
import warnings

import pytest
import torch
import torchvision.datasets

from minisd.data import digits as module
from minisd.data.digits import (
    MNIST_SHA256,
    digits,
    download_mnist,
    mnist_root,
    uci_digits,
    what_is_wrong,
)


def idx_bytes(array):
    """Return unsigned bytes in the format of MNIST's files (http://yann.lecun.com's own)."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.numpy().tobytes()


@pytest.fixture
def tiny_mnist(monkeypatch):
    """Four small files in MNIST's format, whose checksums count as the right ones for a test."""
    generator = torch.Generator().manual_seed(0)
    files = {}
    for split, n in (("train", 7), ("t10k", 3)):
        images = torch.randint(256, (n, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (n,), dtype=torch.uint8, generator=generator)
        files[f"{split}-images-idx3-ubyte"] = idx_bytes(images)
        files[f"{split}-labels-idx1-ubyte"] = idx_bytes(labels)
    assert files.keys() == MNIST_SHA256.keys()
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(module, "MNIST_SHA256", checksums)
    return files


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No MNIST on this machine, and a network that fails; returns the folder for downloads."""
    folder = tmp_path / "downloads"
    monkeypatch.delenv("MINISD_DATA", raising=False)
    monkeypatch.setattr(module, "download_folder", lambda: folder)

    def no_network(*arguments, **others):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried a mirror")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", no_network)
    mnist_root.cache_clear()
    yield folder
    mnist_root.cache_clear()


def put(root, files):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return root


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# The stand-in


@pytest.mark.parametrize(("split", "n"), [("train", 1437), ("test", 360)])
def test_uci_digits(split, n):
    data = uci_digits(split)
    assert len(data) == n and data.source == "UCI digits"
    assert data.images.shape == (n, 1, 28, 28) and data.images.dtype == torch.float32
    assert data.images.min() == -1 and data.images.max() == 1
    assert data.labels.shape == (n,) and data.labels.dtype == torch.int64
    assert data.labels.bincount(minlength=10).min() > n / 15
    image, label = data[5]
    assert torch.equal(image, data.images[5]) and label == data.labels[5]


def test_train_and_test_digits_are_different_digits():
    train, test = (uci_digits(split).images.flatten(1) for split in ("train", "test"))
    assert torch.cdist(test, train).min() > 0.1


def test_without_mnist_and_network_one_notice_and_the_uci_digits(nowhere):
    with pytest.warns(UserWarning, match="MNIST cannot be reached.*1,797 UCI digits") as caught:
        data = digits("train"), digits("test"), digits("train")
    assert len(caught) == 1
    assert [d.source for d in data] == ["UCI digits"] * 3
    assert not nowhere.exists() or files_below(nowhere) == []


def test_unknown_splits_raise():
    with pytest.raises(ValueError, match="'valid'"):
        digits("valid")


# MNIST on disk


def test_mnist_is_read_from_minisd_data(tiny_mnist, nowhere, tmp_path, monkeypatch):
    monkeypatch.setenv("MINISD_DATA", str(put(tmp_path / "mine", tiny_mnist)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (7, 3) and train.source == "MNIST"
    raw = torch.frombuffer(bytearray(tiny_mnist["train-images-idx3-ubyte"][16:]), dtype=torch.uint8)
    assert torch.allclose(train.images.flatten(), raw.float() / 255 * 2 - 1, atol=1e-6)
    assert train.images.shape == (7, 1, 28, 28) and train.labels.dtype == torch.int64
    assert train.labels.tolist() == list(tiny_mnist["train-labels-idx1-ubyte"][8:])


def test_mnist_is_read_from_the_download_folder(tiny_mnist, nowhere, monkeypatch):
    put(nowhere, tiny_mnist)
    monkeypatch.setenv("MINISD_DATA", str(nowhere / "missing"))
    assert digits("test").source == "MNIST"


@pytest.mark.parametrize("name", MNIST_SHA256)
@pytest.mark.parametrize("damage", ["missing", "truncated", "one bit", "empty", "a folder"])
def test_a_partial_or_corrupt_mnist_never_counts(tiny_mnist, nowhere, name, damage):
    put(nowhere, tiny_mnist)
    assert what_is_wrong(nowhere) is None
    path = nowhere / "MNIST" / "raw" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes({"truncated": content[:-5], "one bit": flipped, "empty": b""}[damage])
    problem = what_is_wrong(nowhere)
    assert name in problem and ("missing" in problem or "damaged" in problem)
    with pytest.warns(UserWarning, match=f"{name} is (missing|damaged)"):
        assert digits("train").source == "UCI digits"


def test_only_the_verified_files_are_read(tiny_mnist, nowhere):
    """torchvision would rather read what its old versions left in `processed`, unverified."""
    put(nowhere, tiny_mnist)
    processed = nowhere / "MNIST" / "processed"
    processed.mkdir()
    for file in ("training.pt", "test.pt"):
        foreign = torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
        torch.save(foreign, processed / file)
    assert (len(digits("train")), len(digits("test"))) == (7, 3)


def test_the_real_mnist_where_it_is():
    if not os.environ.get("MINISD_DATA"):
        pytest.skip("MINISD_DATA is not set")
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (60_000, 10_000) and train.source == "MNIST"
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert train.images.mean().item() == pytest.approx(2 * 0.1307 - 1, abs=1e-3)


# Downloading


class Mirror:
    """torchvision's MNIST, but for the network: writes the files it is given, and may fail."""

    def __init__(self, files, error=None):
        self.files, self.error = files, error

    def __call__(self, root, download):
        assert download
        raw = os.path.join(root, "MNIST", "raw")
        os.makedirs(raw)
        for name, content in self.files.items():
            for path, data in ((name, content), (name + ".gz", gzip.compress(content))):
                with open(os.path.join(raw, path), "wb") as file:
                    file.write(data)
        if self.error:
            raise self.error


def test_a_download_arrives_whole(tiny_mnist, nowhere, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", Mirror(tiny_mnist))
    assert download_mnist(nowhere) == nowhere
    assert what_is_wrong(nowhere) is None
    assert files_below(nowhere) == sorted(f"MNIST/raw/{name}" for name in tiny_mnist)


@pytest.mark.parametrize("error", [RuntimeError("mirrors gone"), OSError("disk full")])
def test_a_download_that_breaks_off_leaves_nothing(tiny_mnist, nowhere, monkeypatch, error):
    half = dict(list(tiny_mnist.items())[:2])
    monkeypatch.setattr(torchvision.datasets, "MNIST", Mirror(half, error))
    with pytest.raises(type(error), match=str(error)):
        download_mnist(nowhere)
    assert files_below(nowhere) == [] and os.listdir(nowhere) == []


def test_a_corrupt_download_leaves_nothing(tiny_mnist, nowhere, monkeypatch):
    damaged = tiny_mnist | {"t10k-labels-idx1-ubyte": b"<html>captive portal</html>"}
    monkeypatch.setattr(torchvision.datasets, "MNIST", Mirror(damaged))
    with pytest.raises(OSError, match="t10k-labels-idx1-ubyte is damaged"):
        download_mnist(nowhere)
    assert os.listdir(nowhere) == []
    with pytest.warns(UserWarning, match="download: .*t10k-labels-idx1-ubyte is damaged"):
        assert digits("test").source == "UCI digits"


def test_a_download_replaces_a_damaged_copy(tiny_mnist, nowhere, monkeypatch):
    put(nowhere, tiny_mnist | {"train-labels-idx1-ubyte": b"junk"})
    monkeypatch.setattr(torchvision.datasets, "MNIST", Mirror(tiny_mnist))
    download_mnist(nowhere)
    assert what_is_wrong(nowhere) is None
