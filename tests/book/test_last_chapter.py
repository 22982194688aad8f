"""The last chapter runs as it stands on both stages: with postcards, and with v1.5.

No machine that tests this book has v1.5, so a tiny one stands in for it: the same layers, a few
channels wide, random weights, in a folder as the hub has it. Warnings are errors, and the hub is
never asked.
"""

import json
import os
import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from helpers import TINY_SD15

from minisd.book import stage as stage_module
from minisd.book.stage import SMALL, Stage
from minisd.full_size import CONFIGS, find_weights, random_sd15
from minisd.pretrained import SD15

CHAPTER = Path(__file__).parents[2] / "chapters" / "14_stable_diffusion.ipynb"


def cells() -> list[str]:
    """Return the code of the chapter, but for what installs packages and what readers write."""
    notebook = json.loads(CHAPTER.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = [cell for cell in code if "exercise" not in cell["metadata"].get("tags", [])]
    sources = ["".join(cell["source"]) for cell in code]
    return [source for source in sources if "%pip" not in source]


def run_chapter() -> dict:
    """Run all cells, and return what they have defined."""
    names: dict = {"__name__": "chapter"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of other libraries
        for source in cells():
            exec(compile(source, "cell", "exec"), names)
            plt.close("all")
    return names


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: None)
    style = matplotlib.rcParams.copy()
    matplotlib.use("agg")

    def asked(*arguments, **settings):
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    yield
    dict.update(matplotlib.rcParams, style)


@pytest.mark.slow
def test_with_postcards(monkeypatch):
    monkeypatch.setattr(stage_module, "best_device", lambda: torch.device("cpu"))
    names = run_chapter()
    assert names["stage"].name == SMALL and "without a GPU" in str(names["stage"])
    assert max(names["apart"]) < 1e-3  # minisd and diffusers, in float32
    assert names["draw"](height=64, width=96).shape == (1, 3, 64, 96)


@pytest.mark.slow
def test_with_v1_5(monkeypatch, tmp_path):
    for part, config in TINY_SD15.items():
        monkeypatch.setitem(CONFIGS, part, config)
    monkeypatch.setenv("MINISD_DATA", str(tmp_path))
    random_sd15().save_pretrained(tmp_path / SD15, format="diffusers")
    here = find_weights()
    assert here == tmp_path / SD15
    stage = Stage(SD15, here, torch.device("cpu"), torch.float32, None, "a rehearsal")
    monkeypatch.setattr(stage_module, "set_stage", lambda download: stage)
    names = run_chapter()
    assert names["show"].prompt == "An image of Angkor with a sunset sky."
    assert len(names["apart"]) == 51 and max(names["apart"]) < 1e-3
    assert os.environ["MINISD_DATA"] == str(tmp_path)
