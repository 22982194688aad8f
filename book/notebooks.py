"""Execute chapters from top to bottom in a fresh kernel and store them with their outputs.

    python book/notebooks.py [chapters/02_adding_noise.ipynb ...]
    python book/notebooks.py --changed       # only name those whose stored run is out of date

What is stored is normalised so that differences between runs stay small: stable cell ids, no
timings, no messages on stderr, one kernel name. With it goes what the run was made from: a hash of
the chapter's code, and one of all else that decides its outputs.
"""

import ast
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
CHAPTERS = ROOT / "chapters"


def execute(path: Path) -> None:
    """Run one chapter and write it back; an error in a cell leaves the file as it was."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # a slow machine would cut one output into several
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    normalise(notebook)
    notebook.metadata.minisd = made_from(notebook)
    nbformat.write(notebook, path)


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Take out of a notebook what differs between runs but says nothing."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def made_from(notebook: nbformat.NotebookNode, root: Path = ROOT) -> dict[str, str]:
    """Hash what decides a chapter's outputs: `code`, its own, and `inputs`, all else.

    The inputs are the modules that it imports, directly or not, the checkpoints, and the versions
    of the libraries. A comment or a docstring more changes no output.
    """
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    python = re.sub(r"^( *)%.*", r"\1pass", "\n".join(code), flags=re.MULTILINE)  # no magics
    modules = [without_words(path) for path in sorted(imported(python, root))]
    versions = (root / "requirements.txt").read_text(encoding="utf-8")
    return {"code": digest(code), "inputs": digest([*modules, checkpoints(root), versions])}


@cache
def checkpoints(root: Path) -> str:
    """Hash all bundled checkpoints, but for their cards."""
    files = sorted(path for path in root.glob("data/checkpoints/**/*") if path.is_file())
    return digest([path.read_bytes() for path in files if path.name != "card.md"])


def digest(parts: Sequence[str | bytes]) -> str:
    """Return a short hash of several texts."""
    total = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:16]


def imported(code: str, root: Path) -> set[Path]:
    """Return the files of minisd that this code imports, and those that they import."""
    found: set[Path] = set()
    todo = set(names_imported(code))
    while todo:
        parts = todo.pop().split(".")
        for end in range(1, len(parts) + 1):  # a package's __init__ runs before its modules
            path = root.joinpath(*parts[:end])
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            if path.is_file() and path not in found:
                found.add(path)
                todo |= names_imported(path.read_text(encoding="utf-8"))
    return found


@cache
def names_imported(code: str) -> frozenset[str]:
    """Return the dotted names below minisd in all import statements of this code."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in names if name.split(".")[0] == "minisd")


@cache
def without_words(path: Path) -> str:
    """Return the code of a module without its comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def changed() -> list[Path]:
    """Return the chapters whose stored outputs another run might not give."""
    found = []
    for path in sorted(CHAPTERS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if notebook.metadata.get("minisd") != made_from(notebook):
            found.append(path)
    return found


if __name__ == "__main__":
    os.environ["MINISD_PROGRESS"] = "0"  # nobody looks at the bars
    if sys.argv[1:] == ["--changed"]:
        print(*(path.relative_to(ROOT).as_posix() for path in changed()))
        sys.exit()
    for chapter in [Path(name) for name in sys.argv[1:]] or sorted(CHAPTERS.glob("*.ipynb")):
        execute(chapter)
        print(f"{chapter}: executed", flush=True)
