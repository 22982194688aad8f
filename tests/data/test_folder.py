import csv
import json

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from minisd.data.folder import ImageFolder


def write(folder, rows, kind="jsonl"):
    """Write a list of (file name, text)."""
    with open(folder / f"metadata.{kind}", "w", newline="", encoding="utf-8") as file:
        if kind == "csv":
            csv.writer(file).writerows([("file_name", "text"), *rows])
        else:
            file.writelines(json.dumps(dict(file_name=f, text=t)) + "\n" for f, t in rows)


def halves(mode="RGB", size=(40, 20), left=(255, 0, 0), right=(0, 0, 255)):
    """Return a picture whose left half is red and whose right half is blue."""
    image = Image.new("RGB", size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image.convert(mode)


@pytest.fixture
def folder(tmp_path):
    halves().save(tmp_path / "a.png")
    (tmp_path / "more").mkdir()
    halves(size=(20, 40)).save(tmp_path / "more" / "b.jpg", quality=95)
    return tmp_path


ROWS = [("a.png", "red, and blue"), ("more/b.jpg", 'a "tall" picture\nin två lines')]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_pictures_and_captions(folder, kind):
    write(folder, ROWS, kind)
    data = ImageFolder(folder, size=16)
    assert len(data) == 2 and data.captions == [text for _, text in ROWS]
    (image,) = data[0]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32
    assert torch.allclose(image[:, :, :6].mean((1, 2)), torch.tensor([1.0, -1, -1]), atol=0.02)
    assert torch.allclose(image[:, :, -6:].mean((1, 2)), torch.tensor([-1.0, -1, 1]), atol=0.02)
    (batch,) = next(iter(DataLoader(data, batch_size=2)))
    assert batch.shape == (2, 3, 16, 16)


def test_a_list_from_windows_or_with_blank_lines(folder):
    line = json.dumps(dict(file_name="a.png", text="one\u2028line"), ensure_ascii=False)
    (folder / "metadata.jsonl").write_bytes(f"\ufeff{line}\r\n\r\n".encode())
    assert ImageFolder(folder).captions == ["one\u2028line"]


def test_the_camera_decides_what_is_up(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: left becomes top
    halves(size=(40, 40)).save(folder / "turned.jpg", exif=exif, quality=95)
    write(folder, [("turned.jpg", "red above blue")])
    image = ImageFolder(folder, 16)[0][0]
    assert image[0, :6].mean() > 0.9 and image[0, -6:].mean() < -0.9


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(folder, mode):
    image = Image.new("I;16", (20, 20), 65535) if mode == "I;16" else halves(mode)
    name = "x.tif" if mode in ("CMYK", "I;16") else "x.png"
    image.save(folder / name)
    write(folder, [(name, "")])
    image = ImageFolder(folder, 16)[0][0]
    assert image.shape == (3, 16, 16) and image.abs().max() <= 1
    if mode in ("P", "CMYK", "RGBA"):
        assert image[0, :, :6].mean() > 0.8 and image[2, :, :6].mean() < -0.8
    if mode == "I;16":
        assert (image == 1).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(folder, mode):
    if mode == "P":
        image = Image.new("P", (20, 20), 0)
        image.putpalette([10, 20, 30])
        image.save(folder / "t.png", transparency=0)
    else:
        Image.new(mode, (20, 20), 0).save(folder / "t.png")
    write(folder, [("t.png", "nothing")])
    assert (ImageFolder(folder, 8)[0][0] == 1).all()


def raises(folder, *words):
    with pytest.raises(ValueError) as caught:
        ImageFolder(folder)
    for word in words:
        assert word in str(caught.value)


def test_missing_folders_and_lists(folder):
    raises(folder / "nowhere", "nowhere", "not a folder")
    raises(folder, "metadata.jsonl or metadata.csv", "neither")
    write(folder, ROWS, "csv")
    write(folder, ROWS, "jsonl")
    raises(folder, "both")
    with pytest.raises(ValueError, match="at least 1"):
        ImageFolder(folder, size=0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"file_name": "a.png", "text": "x"}\n{"file_name": ', ("line 2", "not valid JSON")),
        ('{"file_name": "a.png", "text": "x"}\n\n["a.png"]', ("line 3", "one JSON object")),
        ('{"file_name": "a.png"}', ("line 1", "text")),
        ('{"text": "x"}', ("line 1", "file_name")),
        ('{"file_name": "a.png", "text": null}', ("line 1", "text")),
        ('{"file_name": "", "text": "x"}', ("line 1", "file_name")),
        ("", ("no pictures",)),
        ("\n \n", ("no pictures",)),
    ],
)
def test_broken_jsonl(folder, content, words):
    (folder / "metadata.jsonl").write_text(content)
    raises(folder, "metadata.jsonl", *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("lacks the columns file_name and text",)),
        ("file_name,caption\na.png,x\n", ("lacks the columns text",)),
        ("file_name,text\n", ("no pictures",)),
        ("file_name,text\na.png\n", ("line 2", "text")),
        ('file_name,text\na.png,"x" y\n', ("line 2",)),
    ],
)
def test_broken_csv(folder, content, words):
    (folder / "metadata.csv").write_text(content)
    raises(folder, "metadata.csv", *words)


def test_a_list_that_is_not_text(folder):
    (folder / "metadata.csv").write_bytes(b"\xff\xfe\x00")
    raises(folder, "metadata.csv is not valid UTF-8")


def test_all_missing_pictures_are_named(folder):
    write(folder, [*ROWS, ("c.png", ""), ("d.png", ""), ("more", "a folder")])
    raises(folder, "3", "c.png", "d.png", "more")


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_unreadable_pictures(folder, damage):
    content = (folder / "a.png").read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "text": b"hello", "empty": b""}[damage]
    (folder / "a.png").write_bytes(damaged)
    write(folder, ROWS)
    data = ImageFolder(folder, 8)
    assert data[1][0].shape == (3, 8, 8)
    with pytest.raises(ValueError, match="a.png cannot be read as a picture"):
        data[0]
