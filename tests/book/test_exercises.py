"""Every solution passes its checker, every stub fails it, and every checker has an exercise."""

import ast
import json
import re
from pathlib import Path

import pytest

import minisd
from minisd.exercises.checking import CHECKERS

CHAPTERS = Path(__file__).parents[2] / "chapters"
PRELUDE = "import math\nimport torch\nimport torch.nn.functional as F\nimport minisd\n"


def cells(tag: str) -> list[tuple[str, str]]:
    """Return (exercise number, source) of every cell with this tag."""
    found = []
    for path in sorted(CHAPTERS.glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if tag in cell["metadata"].get("tags", []):
                (number,) = re.findall(r'minisd\.check\("([\d.]+)"', source)
                found.append((number, source))
    return found


def verdict(source: str):
    """Run a cell on its own and return the value of its last line, the check."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value)
    names: dict = {}
    exec(PRELUDE, names)
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(last, "cell", "eval"), names)


@pytest.mark.parametrize(("number", "source"), cells("solution"))
def test_solution_passes(number, source):
    assert verdict(source).passed, verdict(source)


@pytest.mark.parametrize(("number", "source"), cells("exercise"))
def test_stub_fails_with_a_message(number, source):
    outcome = verdict(source)
    assert not outcome.passed and outcome.message


def test_every_checker_has_an_exercise_and_a_solution():
    assert CHECKERS
    assert [n for n, _ in cells("exercise")] == [n for n, _ in cells("solution")]
    assert {n for n, _ in cells("exercise")} == set(CHECKERS)


def test_unknown_number_is_refused():
    with pytest.raises(ValueError, match="no exercise"):
        minisd.check("99.9", print)


def test_an_exception_is_told_not_thrown():
    outcome = minisd.check(next(iter(CHECKERS)), lambda *_: 1 / 0)
    assert not outcome and "ZeroDivisionError" in outcome.message
