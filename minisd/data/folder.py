"""Chapter 10: your own pictures with captions, in the image-folder convention of Hugging Face.

A folder holds pictures and one list of them: `metadata.jsonl`, a line `{"file_name": "cat.png",
"text": "a cat"}` for each, or `metadata.csv` with these two columns.
"""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from minisd.data.images import open_picture

COLUMNS = ("file_name", "text")


class ImageFolder(Dataset):
    """Pictures of a folder: items are 1-tuples (image (3,size,size) in [-1,1],); see `captions`.

    Pictures are turned as their camera says, laid on white where they are transparent, cut to the
    square in their middle, and resized. Raises ValueError if the folder, its list, a column or any
    picture is missing or broken, and says which; a picture that cannot be decoded raises it when
    it is asked for.
    """

    def __init__(self, folder: str | Path, size: int = 64):
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        folder = Path(folder)
        rows = read_metadata(folder)
        self.size, self.source = size, folder.name
        self.paths = [folder / name for name, _ in rows]
        self.captions = [text for _, text in rows]
        missing = [name for name, _ in rows if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder} lacks {len(missing)} listed files: {', '.join(missing)}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (read_image(self.paths[index], self.size),)


def read_metadata(folder: Path) -> list[tuple[str, str]]:
    """Return (file name, caption) for each row of a folder's list; raises ValueError."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    lists = [p for p in (folder / "metadata.jsonl", folder / "metadata.csv") if p.is_file()]
    if len(lists) != 1:
        found = "both" if lists else "neither"
        raise ValueError(f"{folder} must hold metadata.jsonl or metadata.csv, and holds {found}")
    (path,) = lists
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
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


def parse_jsonl(path: Path, text: str) -> list[tuple[int, dict]]:
    """Return (line number, row) for each line that is not blank."""
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object, but {line.strip()[:40]}")
        rows.append((number, row))
    return rows


def parse_csv(path: Path, text: str) -> list[tuple[int, dict]]:
    """Return (line number, row) for each row below the header."""
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} lacks the columns {' and '.join(missing)}")
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: {error}") from None


def read_image(path: Path, size: int) -> Tensor:
    """Return the middle of a picture file, (3,size,size) in [-1,1]; raises ValueError."""
    image = ImageOps.fit(open_picture(path), (size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
