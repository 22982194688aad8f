import gzip
import hashlib
import http.client
import io
import os
import struct
import time
import urllib.error
import urllib.request
import warnings

import pytest
import torch

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
    """No MNIST on this machine, and no network; returns the folder for downloads."""
    folder = tmp_path / "downloads"
    monkeypatch.delenv("MINISD_DATA", raising=False)
    monkeypatch.setattr(module, "download_folder", lambda: folder)
    monkeypatch.setattr(module.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.setattr(urllib.request, "urlopen", Mirrors())
    mnist_root.cache_clear()
    yield folder
    mnist_root.cache_clear()


class Mirrors:
    """The network: what lies at each address, packed; by default nothing answers."""

    def __init__(self, files=(), error=None):
        self.files, self.asked = dict(files), []
        self.error = error or urllib.error.URLError("no route to host")

    def __call__(self, url, timeout):
        assert 0 < timeout <= 60
        self.asked.append(url)
        base, _, name = url.rpartition("/")
        assert f"{base}/" in module.MIRRORS and name.endswith(".gz")
        content = self.files.get(url, self.files.get(name.removesuffix(".gz")))
        if content is None:
            raise self.error
        return io.BytesIO(content if url in self.files else gzip.compress(content))


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
    assert files_below(nowhere) == [module.FAILED]


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


def test_a_download_arrives_whole(tiny_mnist, nowhere, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", Mirrors(tiny_mnist))
    assert download_mnist(nowhere) == nowhere
    assert what_is_wrong(nowhere) is None
    assert files_below(nowhere) == sorted(f"MNIST/raw/{name}" for name in tiny_mnist)
    assert (len(digits("train")), digits("test").source) == (7, "MNIST")


ERRORS = [
    urllib.error.URLError("mirrors gone"),
    urllib.error.HTTPError("http://x", 503, "mirrors gone", None, None),
    http.client.IncompleteRead(b"half", 5),
    TimeoutError("mirrors gone"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_download_that_breaks_off_leaves_nothing(tiny_mnist, nowhere, monkeypatch, error):
    half = dict(list(tiny_mnist.items())[:2])
    monkeypatch.setattr(urllib.request, "urlopen", Mirrors(half, error))
    with pytest.raises(OSError, match="t10k-images-idx3-ubyte.gz"):
        download_mnist(nowhere)
    assert not nowhere.exists()


PORTAL = b"<html>captive portal</html>"
DAMAGED = {
    "another content": gzip.compress(PORTAL),
    "no gzip": PORTAL,
    "cut short": gzip.compress(bytes(5000))[:-12],
    "nonsense inside": gzip.compress(bytes(5000))[:10] + b"nonsense" * 9,
    "empty": b"",
}


@pytest.mark.parametrize("packed", DAMAGED.values(), ids=DAMAGED)
def test_a_corrupt_download_leaves_nothing(tiny_mnist, nowhere, monkeypatch, packed):
    name = "t10k-labels-idx1-ubyte"
    damaged = {f"{mirror}{name}.gz": packed for mirror in module.MIRRORS}
    monkeypatch.setattr(urllib.request, "urlopen", Mirrors(tiny_mnist | damaged))
    with pytest.raises(OSError, match=f"{name}.gz: "):
        download_mnist(nowhere)
    assert not nowhere.exists()
    with pytest.warns(UserWarning, match=f"download: .*{name}.gz"):
        assert digits("test").source == "UCI digits"


def test_the_second_mirror_stands_in_for_the_first(tiny_mnist, nowhere, monkeypatch):
    first, second = module.MIRRORS
    packed = {f"{first}{name}.gz": PORTAL for name in tiny_mnist}
    mirrors = Mirrors(tiny_mnist | packed)
    monkeypatch.setattr(urllib.request, "urlopen", mirrors)
    download_mnist(nowhere)
    assert what_is_wrong(nowhere) is None
    assert mirrors.asked[:2] == [f"{m}train-images-idx3-ubyte.gz" for m in (first, second)]


def test_a_download_is_bounded(tiny_mnist, nowhere, monkeypatch):
    """Neither an endless answer nor a small file that unpacks to a huge one fills the memory."""
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    read = []

    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def read(self, n=-1):
            assert 0 < n <= 10_001, "unbounded"
            read.append(n)
            return bytes(n)

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Endless())
    with pytest.raises(OSError):
        download_mnist(nowhere)
    assert len(read) == len(module.MIRRORS)
    bomb = gzip.compress(bytes(10**7))
    assert len(bomb) < 10_000 + 1
    unpacked = []
    real = module.verified
    monkeypatch.setattr(
        module, "verified", lambda name, data: unpacked.append(len(data)) or real(name, data)
    )
    packed = {f"{m}{name}.gz": bomb for m in module.MIRRORS for name in tiny_mnist}
    monkeypatch.setattr(urllib.request, "urlopen", Mirrors(packed))
    with pytest.raises(OSError, match="damaged"):
        download_mnist(nowhere)
    assert unpacked and max(unpacked) <= 10_001


def test_a_download_replaces_a_damaged_copy(tiny_mnist, nowhere, monkeypatch):
    put(nowhere, tiny_mnist | {"train-labels-idx1-ubyte": b"junk"})
    monkeypatch.setattr(urllib.request, "urlopen", Mirrors(tiny_mnist))
    download_mnist(nowhere)
    assert what_is_wrong(nowhere) is None


@pytest.mark.parametrize("kept", ["", ".gz"])
def test_packed_files_are_read_where_they_lie(tiny_mnist, nowhere, tmp_path, monkeypatch, kept):
    """Fetched by hand from a mirror (pytorch/vision #1938); a damaged file is passed over."""
    root = put(tmp_path / "mine", {f"{n}.gz": gzip.compress(c) for n, c in tiny_mnist.items()})
    if not kept:
        for name in tiny_mnist:
            (root / "MNIST" / "raw" / name).write_bytes(b"unpacked half way")
    before = files_below(root)
    monkeypatch.setenv("MINISD_DATA", str(root))
    train, test = digits("train"), digits("test")
    assert (len(train), len(test), train.source) == (7, 3, "MNIST")
    assert train.labels.tolist() == list(tiny_mnist["train-labels-idx1-ubyte"][8:])
    assert files_below(root) == before
    file = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    assert "t10k-images-idx3-ubyte is damaged" in what_is_wrong(root)


def test_a_failed_download_is_not_tried_again_for_a_while(nowhere, monkeypatch):
    """Every kernel of the book, and every process, would wait for the network."""
    mirrors = Mirrors()
    monkeypatch.setattr(urllib.request, "urlopen", mirrors)
    for _ in range(3):
        mnist_root.cache_clear()  # as a new process
        with pytest.warns(UserWarning, match=f"no route to host.*{module.FAILED}"):
            assert mnist_root() is None
        assert len(mirrors.asked) == len(module.MIRRORS)
    marker = nowhere / module.FAILED
    old = time.time() - module.RETRY_SECONDS - 1
    for again in (lambda: os.utime(marker, (old, old)), marker.unlink):
        again()
        mirrors.asked.clear()
        mnist_root.cache_clear()
        with pytest.warns(UserWarning, match="MNIST cannot be reached"):
            mnist_root()
        assert mirrors.asked


def test_a_download_that_works_forgets_the_failed_one(tiny_mnist, nowhere, monkeypatch):
    with pytest.warns(UserWarning):
        mnist_root()
    monkeypatch.setattr(urllib.request, "urlopen", Mirrors(tiny_mnist))
    download_mnist(nowhere)
    assert not (nowhere / module.FAILED).exists()


@pytest.mark.parametrize("temporary", [True, False])
def test_a_failed_download_never_raises(nowhere, tmp_path, monkeypatch, temporary):
    """Where the downloads cannot be written, the marker is temporary; or there is none."""
    nowhere.touch()  # a file in the place of the folder
    if temporary:
        (tmp_path / "temporary").mkdir()
    else:
        (tmp_path / "temporary").touch()
    mirrors = Mirrors()
    monkeypatch.setattr(urllib.request, "urlopen", mirrors)
    for _ in range(2):
        mnist_root.cache_clear()
        with pytest.warns(UserWarning, match="no route to host"):
            assert mnist_root() is None
    assert len(mirrors.asked) == len(module.MIRRORS) * (1 if temporary else 2)


@pytest.mark.parametrize("content", [b"", b"\0\0\x0d\x01\0\0\0\1abcd", b"\1\0\x08\x01"])
def test_other_formats_than_mnists_are_refused(content):
    with pytest.raises((ValueError, struct.error)):
        module.parse_idx(content)
