"""Each claim of a chapter stands in its text, and can fail."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import torch

from minisd.book.claims import ClaimFailed, claim

CHAPTERS = sorted((Path(__file__).parents[2] / "chapters").glob("*.ipynb"))


def claims(notebook):
    """Return [(sentence, condition as code)] of all calls of `claim`, in order."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and "claim(" in cell.source:
            code = "\n".join("" if line[:1] in "%!" else line for line in cell.source.split("\n"))
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "claim":
                    sentence, holds = node.args
                    found.append((ast.literal_eval(sentence), ast.unparse(holds)))
    return found


def words(text):
    return " ".join(text.split())


def missing(notebook):
    """Return the claims whose sentence no paragraph of the text contains, in order."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    paragraphs = [words(paragraph) for paragraph in re.split(r"\n\s*\n", text)]
    found = []
    for sentence, _ in claims(notebook):
        parts = (re.escape(words(part)) for part in sentence.split("..."))
        pattern = re.compile(".{0,120}?".join(parts))
        if not any(pattern.search(paragraph) for paragraph in paragraphs):
            found.append(sentence)
    return found


def vacuous(notebook):
    """Return the claims that no run can break: their condition names nothing that was computed."""
    return [
        sentence
        for sentence, holds in claims(notebook)
        if not any(isinstance(node, ast.Name) for node in ast.walk(ast.parse(holds)))
    ]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_claims_stand_in_the_text_and_depend_on_the_run(path):
    notebook = nbformat.read(path, as_version=4)
    assert missing(notebook) == []
    assert vacuous(notebook) == []


def chapter(text, code):
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(code)]
    return nbformat.v4.new_notebook(cells=cells)


TEXT = "Heun is\nbetter, by {glue:text}`x` points, than Euler.\n\nEuler is cheap."


def test_what_the_text_does_not_say_is_found():
    for sentence in ("Heun is better", "Heun is better, by ... points, than Euler", "is cheap"):
        assert missing(chapter(TEXT, f"claim({sentence!r}, a < b)")) == []
    for sentence in ("Heun is worse", "than Euler. ... cheap", "Heun is better, by points"):
        assert missing(chapter(TEXT, f"%matplotlib inline\nclaim({sentence!r}, a < b)")) == [
            sentence
        ]


def test_a_claim_that_cannot_fail_is_found():
    assert vacuous(chapter(TEXT, "claim('Euler is cheap', True)")) == ["Euler is cheap"]
    assert vacuous(chapter(TEXT, "claim('Euler is cheap', calls[1] < 2)")) == []


def test_a_claim_raises_where_it_does_not_hold():
    claim("one is less than two", torch.tensor(1) < 2)
    with pytest.raises(ClaimFailed, match="the text says 'two is less'"):
        claim("two is less", torch.tensor(2) < 1)
    with pytest.raises((ValueError, RuntimeError)):  # of which element, it does not say
        claim("they are less", torch.arange(3) < 2)
