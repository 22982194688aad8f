"""Chapter 10: your own pictures with captions, in the image-folder convention of Hugging Face.

A folder holds pictures and one list of them: `metadata.jsonl`, a line `{"file_name": "cat.png",
"text": "a cat"}` for each, or `metadata.csv` with these two columns.
"""

import csv
import io
from os.path import isfile
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from minisd.data.images import open_picture
from minisd.files import expand, inside, parse_json, read_text

COLUMNS = ("file_name", "text")
MAX_LIST_BYTES = 2**30  # millions of captions


class ImageFolder(Dataset):
    """Pictures of a folder: items are 1-tuples (image (3,size,size) in [-1,1],); see `captions`.

    Pictures are turned as their camera says, laid on white where they are transparent, cut to the
    square in their middle, and resized. Raises ValueError that names the folder, list, column or
    picture that is missing or broken, and for a picture outside the folder; one that cannot be
    decoded raises it when it is asked for.
    """

    def __init__(self, folder: str | Path, size: int = 64):
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        folder = expand(folder)
        rows = read_metadata(folder)
        self.size, self.source = size, folder.name
        self.paths = find_files(folder, [name for name, _ in rows])
        self.captions = [text for _, text in rows]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (read_image(self.paths[index], self.size),)


def find_files(folder: Path, names: list[str]) -> list[Path]:
    """Return the paths of files by their names in `folder`; raises ValueError for those not there.

    An é may be one character or, as macOS writes it, an e and an accent: both are the same name.
    """
    paths = [inside(folder, name) for name in names]
    if not all(isfile(path) for path in paths):
        there = {normalize("NFC", str(p.relative_to(folder))): p for p in folder.rglob("*")}
        for i, path in enumerate(paths):
            if not isfile(path):
                name = normalize("NFC", str(path.relative_to(folder)))
                paths[i] = inside(folder, str(there.get(name, path).relative_to(folder)))
    missing = [name for name, path in zip(names, paths, strict=True) if not isfile(path)]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise ValueError(
            f"{folder} lacks {len(missing)} listed files: {', '.join(missing[:10])}{more}"
        )
    return paths


def read_metadata(folder: Path) -> list[tuple[str, str]]:
    """Return (file name, caption) for each row of a folder's list; raises ValueError."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    lists = [p for p in (folder / "metadata.jsonl", folder / "metadata.csv") if p.is_file()]
    if len(lists) != 1:
        found = "both" if lists else "neither"
        raise ValueError(f"{folder} must hold metadata.jsonl or metadata.csv, and holds {found}")
    (path,) = lists
    text = read_text(path, "utf-8-sig", MAX_LIST_BYTES)
    rows = parse_jsonl(path, text) if path.suffix == ".jsonl" else parse_csv(path, text)
    if not rows:
        raise ValueError(f"{path} lists no pictures")
    for line, row in rows:
        wrong = [name for name in COLUMNS if not isinstance(row.get(name), str)]
        if wrong or not row["file_name"]:
            raise ValueError(
                f"{path}, line {line}: needs text in {' and '.join(wrong or ['file_name'])}"
            )
    return [(row["file_name"], row["text"]) for _, row in rows]


def parse_jsonl(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, row) for each line that is not blank."""
    lines = enumerate(text.split("\n"), start=1)
    return [(i, parse_json(line, f"{path}, line {i}")) for i, line in lines if line.strip()]


def parse_csv(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    """Return (line number, row) for each row below the header."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} lacks the columns {' and '.join(missing)}")
        for row in reader:
            if None in row:  # the values beyond the last column
                raise ValueError(
                    f"{path}, line {reader.line_num}: more values than columns; "
                    'put a caption with commas in quotes: a.png,"a cat, on a mat"'
                )
            rows.append((reader.line_num, row))
        return rows
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: {error}") from None


def read_image(path: Path, size: int) -> Tensor:
    """Return the middle of a picture file, (3,size,size) in [-1,1]; raises ValueError."""
    image = ImageOps.fit(open_picture(path), (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
