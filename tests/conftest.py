import json
import os
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from minisd.book.compat import declare_torchvision_operators

declare_torchvision_operators()  # before a test imports diffusers or transformers

settings.register_profile("book", max_examples=20, deadline=None, derandomize=True)
settings.load_profile("book")
os.environ["ACCELERATE_USE_CPU"] = "true"  # bit for bit the same is a promise about CPUs
torch.set_num_threads(1)  # the tensors here are tiny: threads only get in each other's way


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker ends long after the others.

    Chapters come first, then the files with tests that are marked slow.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def turn(item: pytest.Item) -> tuple[int, float]:
        if item.path.suffix == ".ipynb":
            return 0, -minutes(item.path)
        return (1 if item.path in slow else 2), 0

    items.sort(key=turn)  # the order within a file stays


@cache
def minutes(chapter: Path) -> float:
    """Read how long a chapter took when it was stored: the number that it shows its reader."""
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        name = output.get("metadata", {}).get("scrapbook", {}).get("name", "")
        if re.fullmatch(r"ch\d+-minutes", name):
            (value,) = (v for k, v in output["data"].items() if k.endswith("text/html"))
            number, unit = value.split()
            return float(number) / (60 if unit == "seconds" else 1)
    return 0.0
