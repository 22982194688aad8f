"""Chapters 5, 10 and 12: the rows that a benchmark measures, kept in a file, shown as a table."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minisd.files import read_json, write_json


class Results:
    """The rows of a benchmark, kept in a file so that an interrupted run can go on.

    `head` says what the rows are about: if that in the file differs, its rows are ignored, and
    overwritten by the first new one. `facts` are kept beside the rows. Without a path, nothing is
    written.
    """

    def __init__(self, head: dict[str, Any], path: Path | None = None, **facts: Any):
        self.head, self.path = head, path
        self.kept = head | facts | {"rows": []}
        self._read()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows so far."""
        return self.kept["rows"]

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, beside those that other runs have written meanwhile."""
        self._read()
        self.rows.append(json.loads(json.dumps(row)))  # as it will be read: a tuple is a list
        if self.path is not None:
            write_json(self.path, self.kept)

    def _read(self) -> None:
        if self.path is not None and self.path.exists():
            stored = read_json(self.path)
            if stored.items() >= self.head.items():
                self.kept = stored


def table(head: Sequence[str], align: str, rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table in Markdown; `align` has a letter for each column, l or r."""
    ruler = ["---:" if letter == "r" else "---" for letter in align]
    lines = ([str(cell).replace("|", r"\|") for cell in row] for row in (head, ruler, *rows))
    return [f"| {' | '.join(line)} |" for line in lines]
