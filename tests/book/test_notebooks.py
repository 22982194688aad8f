"""The stored outputs of a chapter are those of its code, and it is known when they are not."""

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book"))

import notebooks  # noqa: E402

CHAPTERS = sorted(notebooks.CHAPTERS.glob("*.ipynb"))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_stored_outputs_are_those_of_the_code(path):
    notebook = nbformat.read(path, as_version=4)
    code = notebooks.made_from(notebook)["code"]
    assert notebook.metadata["minisd"]["code"] == code, "run `make notebooks` for this chapter"


@pytest.fixture
def small(tmp_path):
    """A repository with a package of three modules, of which the chapter imports two."""
    package = tmp_path / "minisd"
    (package / "lab").mkdir(parents=True)
    (package / "__init__.py").write_text('"""Words."""\n')
    (package / "lab" / "__init__.py").write_text("")
    (package / "layers.py").write_text("WIDTH = 8  # a comment\n")
    (package / "unet.py").write_text("def f():\n    from minisd.layers import WIDTH\n")
    (package / "lab" / "recipes.py").write_text("STEPS = 1\n")
    (tmp_path / "requirements.txt").write_text("torch==1\n")
    weights = tmp_path / "data" / "checkpoints" / "one"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(b"weights")
    (weights / "card.md").write_text("a card")
    return tmp_path


def made_from(root, source="import minisd.unet\n", words="Text."):
    notebooks.checkpoints.cache_clear()
    notebooks.without_words.cache_clear()
    cells = [nbformat.v4.new_markdown_cell(words), nbformat.v4.new_code_cell(source)]
    return notebooks.made_from(nbformat.v4.new_notebook(cells=cells), root)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("minisd/layers.py", "WIDTH = 16\n"),
        ("minisd/unet.py", "def f():\n    from minisd.layers import WIDTH as W\n"),
        ("minisd/__init__.py", "NEW = 1\n"),
        ("requirements.txt", "torch==2\n"),
        ("data/checkpoints/one/model.safetensors", "other"),
    ],
)
def test_what_an_output_depends_on_makes_it_out_of_date(small, file, content):
    before = made_from(small)
    (small / file).write_text(content)
    after = made_from(small)
    assert after["inputs"] != before["inputs"] and after["code"] == before["code"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("minisd/layers.py", "WIDTH = 8\n"),  # its comment is gone
        ("minisd/__init__.py", '"""Other words."""\n'),
        ("minisd/lab/recipes.py", "STEPS = 2\n"),  # the chapter does not import it
        ("data/checkpoints/one/card.md", "another card"),
    ],
)
def test_words_and_what_is_not_imported_do_not(small, file, content):
    before = made_from(small)
    (small / file).write_text(content)
    assert made_from(small) == before


def test_its_own_code_does_and_its_text_does_not(small):
    before = made_from(small)
    assert made_from(small, words="Other text.") == before
    assert made_from(small, "import minisd.unet\nprint(1)\n")["code"] != before["code"]
    assert made_from(small, "%pip install x\nimport minisd.lab.recipes\n")["inputs"]
