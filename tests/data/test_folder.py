import csv
import json
import unicodedata

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
        ("[" * 10**5, ("line 1", "not valid JSON")),
        ('{"file_name": "a.png", "text": NaN}', ("line 1", "not valid JSON")),
        ('{"file_name": 1' + "0" * 5000 + "}", ("line 1", "not valid JSON")),
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
        ("file_name,text\na.png,a cat, on a mat\n", ("line 2", "in quotes")),
        ('file_name,text\na.png,"one\ntwo"\na.png,x, y\n', ("line 4", "in quotes")),
        ("text,file_name\na cat, on a mat,a.png\n", ("line 2", "in quotes")),
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


def test_a_caption_in_csv_may_hold_every_kind_of_line_end(folder):
    captions = ["a cat, on a mat", "one\ntwo", "one\u2028two\x0bthree\x85four", '"quoted", twice']
    write(folder, [("a.png", text) for text in captions], "csv")
    assert ImageFolder(folder).captions == captions


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize(("on_disk", "listed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_may_be_written_in_two_ways(folder, kind, on_disk, listed):
    """macOS takes é apart; the list may have been written elsewhere."""
    (folder / unicodedata.normalize("NFC", "été")).mkdir()
    halves().save(
        folder / unicodedata.normalize("NFC", "été") / unicodedata.normalize(on_disk, "é.png")
    )
    write(folder, [("a.png", ""), (unicodedata.normalize(listed, "été/é.png"), "é")], kind)
    assert ImageFolder(folder, 8)[1][0].shape == (3, 8, 8)


def test_no_picture_outside_the_folder_is_read(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    halves().save(outside / "secret.png")
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "link").symlink_to(outside)
    beside = f"../{outside.name}/secret.png"
    assert (folder / beside).is_file() or folder.parent != outside.parent
    for name in (beside, str(outside / "secret.png"), "link.png", "link/secret.png", "a\0.png"):
        write(folder, [("a.png", ""), (name, "")])
        raises(folder, "leads out of")


def test_a_name_that_is_too_long_is_missing(folder):
    write(folder, [("x" * 5000, "")])
    raises(folder, "lacks 1 listed files")


def test_the_home_folder_is_expanded(folder, monkeypatch):
    write(folder, ROWS)
    monkeypatch.setenv("HOME", str(folder))
    assert len(ImageFolder("~")) == 2
