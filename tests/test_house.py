"""The rules of the house: which module may import which, and what each must say of itself.

A rule is a function of the package's folder and returns what is wrong there. It is tested twice:
here, where nothing may be wrong, and on a small made-up package into which each fault is planted.
`python tests/test_house.py` prints the measurements.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1] / "minisd"

FOLDERS = {"lab", "book", "data", "exercises"}  # beside the taught modules
DOORS = {"__init__", "cli"}  # where one enters: they may import everything
NETWORKS = {"layers", "unet", "vae", "clip"}
PLUMBING = {  # modules of which no chapter tells, and why
    "moved": "old names of modules",
    "files": "writes a file in full or not at all",
    "progress": "shows a bar where somebody looks",
}
LONG = {  # taught modules with more than 300 lines, and why; a module that became short must go
    "stable_diffusion": "the system, and the pictures that it takes and gives",
    "tokenizer": "the settings and the files, beside the algorithm",
    "weights": "the key maps of four models",
}
MAX_LINES = 300
MAX_LEVELS = 10  # of imports, between the files and folders of the package

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Return {dotted name: file} of all modules below the package's folder."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(path: Path, name: str) -> Iterator[str]:
    """Yield the dotted names that a module imports anywhere: in functions, for type checking."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package.split(".")[: package.count(".") + 2 - level] if level else []
                base = ".".join([*above, *([module] if module else [])])
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(value)), *_]):
                if ast.unparse(function).endswith(("import_module", "__import__")):
                    yield value


def import_graph(root: Path) -> Graph:
    """Return, for every module, the modules of the package that it imports."""
    known = modules(root)

    def module_of(name: str) -> str:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name

    return {
        name: {module_of(each) for each in imported_names(path, name)} - {name, ""}
        for name, path in known.items()
    }


def room(module: str) -> str:
    """Return the file or folder of the package in which a module lives."""
    return module.split(".")[1] if "." in module else "__init__"


def room_graph(root: Path) -> Graph:
    """Return, for every file or folder of the package, those that it imports."""
    graph: Graph = {}
    for module, imports in import_graph(root).items():
        own = room(module)
        graph.setdefault(own, set()).update({room(each) for each in imports} - {own})
    return graph


def taught(root: Path) -> list[str]:
    """Return the modules that the book teaches: those of no other folder than `schedulers`."""
    return [name for name in modules(root) if room(name) not in FOLDERS | DOORS]


def chain(graph: Graph, start: str, wanted: Callable[[str], bool]) -> list[str]:
    """Return the shortest chain of imports from a module to a wanted one; [] if there is none."""
    chains, seen = [[start]], {start}
    for links in chains:  # grows while we walk through it
        if len(links) > 1 and wanted(links[-1]):
            return links
        new = graph[links[-1]] - seen
        seen |= new
        chains += [[*links, each] for each in sorted(new)]
    return []


def chains(root: Path, starts: list[str], forbidden: set[str]) -> list[str]:
    """Return one chain of imports for every start from which a forbidden room is reached."""
    graph = import_graph(root)
    found = (chain(graph, start, lambda name: room(name) in forbidden) for start in starts)
    return [" -> ".join(links) for links in found if links]


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


class Measurements(NamedTuple):
    """The size of the house: files and folders of the package, and imports between them."""

    rooms: int
    imports: int
    levels: int  # the longest chain of imports


def measure(root: Path) -> Measurements:
    """Count; raises graphlib.CycleError if the imports run in a circle."""
    graph, level = room_graph(root), {}
    for name in TopologicalSorter(graph).static_order():
        level[name] = 1 + max((level[each] for each in graph[name]), default=0)
    return Measurements(len(graph), sum(map(len, graph.values())), max(level.values()))


# The rules: each returns what is wrong.


def taught_modules_import_no_other_part(root: Path) -> list[str]:
    """What the book teaches needs neither its laboratory, nor its figures, nor its exercises."""
    return chains(root, taught(root), {"lab", "book", "exercises", *DOORS})


def imports_run_in_no_circle(root: Path) -> list[str]:
    """Neither between modules nor between folders, not even for type checking."""
    problems = []
    for graph in (import_graph(root), room_graph(root)):
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            problems.append(" <- ".join(error.args[1]))
    return problems


def imports_have_few_levels(root: Path) -> list[str]:
    """A chain of imports is at most MAX_LEVELS long."""
    if imports_run_in_no_circle(root):
        return []  # said there
    levels = measure(root).levels
    return [f"{levels} levels of imports"] if levels > MAX_LEVELS else []


def schedulers_import_no_networks(root: Path) -> list[str]:
    """A scheduler does not know what predicts."""
    return chains(root, [m for m in taught(root) if room(m) == "schedulers"], NETWORKS)


def networks_import_no_schedulers(root: Path) -> list[str]:
    """A network does not know how it is sampled."""
    return chains(root, [m for m in taught(root) if room(m) in NETWORKS], {"schedulers"})


def layers_stand_alone(root: Path) -> list[str]:
    """Layers import torch, einops and the standard library."""
    name = f"{root.name}.layers"
    allowed = sys.stdlib_module_names | {"torch", "einops"}
    names = imported_names(modules(root)[name], name)
    return [f"{name} imports {each}" for each in names if each.split(".")[0] not in allowed]


def docstrings_name_the_chapter(root: Path) -> list[str]:
    """Every module has a docstring; those of the book and of its laboratory name their chapter."""
    chapters = {int(p.name[:2]) for p in (root.parent / "chapters").glob("[0-9][0-9]_*.ipynb")}
    problems = []
    for name, path in modules(root).items():
        line = first_line(path)
        named = re.match(r"Chapters? \d+((, | and | to )\d+)*: \S", line)
        numbers = {int(n) for n in re.findall(r"\d+", line.partition(":")[0])} if named else set()
        if not line and path.read_text(encoding="utf-8").strip():
            problems.append(f"{name} has no docstring")
        elif numbers - chapters:
            problems.append(f"{name}: there is no chapter {min(numbers - chapters)}")
        elif room(name) in PLUMBING:
            if named:
                problems.append(f"{name} names a chapter: take it off PLUMBING")
        elif not named and (name in taught(root) or name.startswith(f"{root.name}.lab.")):
            problems.append(f"{name} names no chapter: {line!r}")
    return problems


def the_table_names_every_taught_module(root: Path) -> list[str]:
    """The package's docstring is the table of chapters and modules."""
    table = ast.get_docstring(ast.parse((root / "__init__.py").read_text(encoding="utf-8"))) or ""
    rooms = sorted({room(name) for name in taught(root)} - PLUMBING.keys())
    return [f"{each} is not in the table" for each in rooms if not re.search(rf"\b{each}\b", table)]


def taught_modules_are_short(root: Path) -> list[str]:
    """A taught module with more than MAX_LINES lines has two subjects."""
    problems = []
    for name in taught(root):
        lines = len(modules(root)[name].read_text(encoding="utf-8").splitlines())
        listed = name.partition(".")[2] in LONG
        if lines > MAX_LINES and not listed:
            problems.append(f"{name} has {lines} lines")
        if lines <= MAX_LINES and listed:
            problems.append(f"{name} has only {lines} lines: take it off LONG")
    return problems


RULES = (
    taught_modules_import_no_other_part,
    imports_run_in_no_circle,
    imports_have_few_levels,
    schedulers_import_no_networks,
    networks_import_no_schedulers,
    layers_stand_alone,
    docstrings_name_the_chapter,
    the_table_names_every_taught_module,
    taught_modules_are_short,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule(rule):
    assert not (problems := rule(ROOT)), "\n".join(problems)


def test_lists_of_exceptions_name_modules_that_exist():
    assert (PLUMBING.keys() | LONG.keys() | NETWORKS) <= {room(name) for name in taught(ROOT)}


# Each rule is seen to fail, on a made-up package.

HOUSE = {
    "__init__.py": '"""Chapter 1: layers and unet; chapter 2: schedulers, vae, clip."""\n'
    "from minisd.unet import UNet",
    "layers.py": '"""Chapter 1: layers."""\nimport math, torch.nn\nfrom einops import rearrange',
    "unet.py": '"""Chapter 1: the U-Net."""\nfrom minisd.layers import Block\nimport numpy',
    "vae.py": '"""Chapter 1: the autoencoder."""',
    "clip.py": '"""Chapters 1 and 2: words."""',
    "files.py": '"""Files."""',
    "schedulers/__init__.py": '"""Chapter 2: all."""\nfrom minisd.schedulers.base import Scheduler',
    "schedulers/base.py": '"""Chapter 2: what they share."""\nfrom minisd.files import read',
    "lab/__init__.py": "",
    "lab/recipes.py": '"""Chapter 2: recipes."""\nfrom minisd import unet, schedulers',
    "book/plots.py": '"""Colours."""',
    "exercises/__init__.py": '"""Checkers."""',
    "cli.py": '"""The command."""\ndef main():\n    from minisd.lab import recipes',
}


@pytest.fixture
def house(tmp_path):
    (tmp_path / "chapters").mkdir()
    for name in ("01_one.ipynb", "02_two.ipynb"):
        (tmp_path / "chapters" / name).touch()
    for name, source in HOUSE.items():
        path = tmp_path / "minisd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return tmp_path / "minisd"


def add(source: str) -> Callable[[str], str]:
    return lambda before: f"{before}\n{source}\n"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_nothing_is_wrong_with_a_house_in_order(house, rule):
    assert rule(house) == []


def test_rooms_imports_and_levels_are_counted(house):
    # __init__ -> unet -> layers, lab -> unet, lab -> schedulers -> files, cli -> lab
    assert measure(house) == (11, 6, 4)
    (house / "vae.py").write_text("import minisd.cli, minisd.lab.recipes")
    assert measure(house) == (11, 8, 5)


FAULTS = [
    (taught_modules_import_no_other_part, "unet.py", add("from minisd.lab import recipes")),
    (taught_modules_import_no_other_part, "unet.py", add("import minisd.book.plots as p")),
    (taught_modules_import_no_other_part, "vae.py", add("from minisd import UNet")),
    (
        taught_modules_import_no_other_part,
        "vae.py",
        add("def f():\n from minisd.exercises import x"),
    ),
    (taught_modules_import_no_other_part, "schedulers/base.py", add("from ..book import plots")),
    (taught_modules_import_no_other_part, "schedulers/base.py", add("from .. import lab")),
    (taught_modules_import_no_other_part, "vae.py", add("importlib.import_module('minisd.cli')")),
    (
        imports_run_in_no_circle,
        "layers.py",
        add("if TYPE_CHECKING:\n from minisd.unet import UNet"),
    ),
    (imports_run_in_no_circle, "layers.py", add("def f():\n import minisd.unet")),
    (imports_run_in_no_circle, "schedulers/base.py", add("from . import Scheduler")),
    (imports_run_in_no_circle, "files.py", add("from minisd.lab.recipes import run")),
    (schedulers_import_no_networks, "schedulers/base.py", add("from minisd.vae import VAE")),
    (schedulers_import_no_networks, "files.py", add("from minisd.unet import UNet")),
    (networks_import_no_schedulers, "clip.py", add("from minisd.schedulers.base import Scheduler")),
    (networks_import_no_schedulers, "layers.py", add("from minisd import schedulers")),
    (layers_stand_alone, "layers.py", add("import numpy as np")),
    (layers_stand_alone, "layers.py", add("def f():\n from minisd.files import read")),
    (docstrings_name_the_chapter, "unet.py", lambda _: '"""The U-Net."""'),
    (docstrings_name_the_chapter, "unet.py", lambda _: '"""Chapter 7: the U-Net."""'),
    (docstrings_name_the_chapter, "unet.py", lambda _: '"""Chapters 1 to 3: the U-Net."""'),
    (docstrings_name_the_chapter, "unet.py", lambda _: "import torch"),
    (docstrings_name_the_chapter, "lab/recipes.py", lambda _: '"""Recipes."""'),
    (docstrings_name_the_chapter, "book/plots.py", lambda _: "import torch"),
    (docstrings_name_the_chapter, "files.py", lambda _: '"""Chapter 1: files."""'),
    (the_table_names_every_taught_module, "__init__.py", lambda _: '"""Chapter 1: unet."""'),
    (taught_modules_are_short, "unet.py", add("\n" * MAX_LINES)),
]


@pytest.mark.parametrize(("rule", "name", "change"), FAULTS)
def test_a_planted_fault_is_found(house, rule, name, change):
    path = house / name
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    assert rule(house)


def test_a_long_chain_of_imports_is_found(house):
    (house / "part_1.py").touch()
    for i in range(2, MAX_LEVELS + 1):
        (house / f"part_{i}.py").write_text(f"import minisd.part_{i - 1}")
    assert imports_have_few_levels(house) == []
    (house / "last.py").write_text(f"import minisd.part_{MAX_LEVELS}")
    assert imports_have_few_levels(house)


def test_a_long_module_may_be_excused_only_as_long_as_it_is_long(house):
    name = next(iter(LONG))
    path = house / f"{name}.py"
    path.write_text("\n" * (MAX_LINES + 1))
    assert taught_modules_are_short(house) == []
    path.write_text("\n" * MAX_LINES)
    assert taught_modules_are_short(house)


def test_a_problem_is_told_as_the_chain_of_imports(house):
    (house / "files.py").write_text("from minisd.unet import UNet")
    assert "minisd.schedulers.base -> minisd.files -> minisd.unet" in (
        schedulers_import_no_networks(house)
    )


if __name__ == "__main__":
    print(*(f"{name}: {value}" for name, value in measure(ROOT)._asdict().items()), sep="\n")
