"""The code in the chapters and the code in the package are the same code."""

import ast
import difflib
import importlib
import inspect
import json
from pathlib import Path

import pytest

CHAPTERS = Path(__file__).parents[2] / "chapters"
CORE = [
    "schedules",
    "layers",
    "unet",
    "schedulers",
    "tokenizer",
    "clip",
    "vae",
    "pipeline",
    "editing",
    "classifier",
    "intervals",
    "maps",
    "metrics",
    "stable_diffusion",
]
PLUMBING = {  # public names that no chapter shows in full, and why
    "minisd.clip.check_sizes": "refuses sizes that do not fit",
    "minisd.maps.paint_maps": "shows maps in colours",
    "minisd.maps.read_map": "reads a map from a picture in these colours",
    "minisd.metrics.check_pairs": "refuses what is no pair of images",
    "minisd.classifier.classification_accuracies": "counts the right answers of `classify`",
    "minisd.classifier.classification_accuracy": "counts the right answers of `classify`",
    "minisd.classifier.random_warp": "turns and shifts the pictures that a judge learns from",
    "minisd.stable_diffusion.PipelineOutput": "one field, as in diffusers",
    "minisd.schedulers.base.Scheduler": "settings; its formulas are minisd.schedules",
    "minisd.schedulers.settings.SavedSettings": "reads and writes files",
    "minisd.tokenizer.as_list": "makes one text a list of one",
    "minisd.tokenizer.check_text": "refuses what is not text",
    "minisd.tokenizer.clip_settings": "reads a file of transformers",
    "minisd.tokenizer.read_files": "reads three files",
    "minisd.tokenizer.settings_for_clip": "writes a file of transformers",
}


def saved_cells(notebook: dict) -> list[tuple[str, str]]:
    """Return (module, source) of every code cell that begins with `#@save module`."""
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.startswith("#@save "):
            marker, _, code = source.partition("\n")
            cells.append((marker.removeprefix("#@save ").strip(), code))
    return cells


def definitions(source: str) -> dict[str, str]:
    """Return {name: code} of the top-level definitions, without docstrings and comments."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [ast.unparse(target) for target in targets]
        else:
            continue
        for inner in ast.walk(node):
            body = getattr(inner, "body", None)
            if not isinstance(inner, ast.ClassDef | ast.FunctionDef) or not body:
                continue
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                inner.body = body[1:] or [ast.Pass()]
        found |= dict.fromkeys(names, ast.unparse(node))
    return found


def differences(module: str, code: str, packaged: dict[str, str]) -> list[str]:
    """Return a readable diff for every definition of `code` that is not the packaged one."""
    problems = []
    for name, shown in definitions(code).items():
        if name not in packaged:
            problems.append(f"{module} has no {name}")
        elif shown != packaged[name]:
            lines = difflib.unified_diff(
                packaged[name].splitlines(), shown.splitlines(), f"{module}.{name}", "chapter"
            )
            problems.append("\n".join(lines))
    return problems


def all_saved() -> list[tuple[str, str, str]]:
    return [
        (path.name, module, code)
        for path in sorted(CHAPTERS.glob("*.ipynb"))
        for module, code in saved_cells(json.loads(path.read_text(encoding="utf-8")))
    ]


def packaged(module: str) -> dict[str, str]:
    return definitions(inspect.getsource(importlib.import_module(module)))


@pytest.mark.parametrize(("chapter", "module", "code"), all_saved())
def test_saved_cell_is_the_packaged_code(chapter, module, code):
    assert definitions(code), f"{chapter}: a #@save cell without a definition"
    problems = differences(module, code, packaged(module))
    assert not problems, f"{chapter}\n" + "\n".join(problems)


def test_every_public_name_is_taught():
    taught = {f"{module}.{name}" for _, module, code in all_saved() for name in definitions(code)}
    public = set()
    for package in CORE:
        root = importlib.import_module(f"minisd.{package}")
        files = [Path(root.__file__)]
        if files[0].name == "__init__.py":
            files = [file for file in files[0].parent.glob("*.py") if file.name != "__init__.py"]
        for file in files:
            prefix = f"minisd.{package}" + (f".{file.stem}" if file.stem != package else "")
            tree = ast.parse(file.read_text(encoding="utf-8"))
            public |= {
                f"{prefix}.{node.name}"
                for node in tree.body
                if isinstance(node, ast.ClassDef | ast.FunctionDef)
                and not node.name.startswith("_")
            }
    assert len(public) > 20
    assert public - taught == set(PLUMBING), "teach or list as plumbing"


def test_a_changed_line_is_found():
    source = packaged("minisd.schedules")["add_noise"]
    changed = source.replace("(1 - alpha_bar).sqrt()", "(1 + alpha_bar).sqrt()")
    assert changed != source
    assert not differences("minisd.schedules", source, packaged("minisd.schedules"))
    (diff,) = differences("minisd.schedules", changed, packaged("minisd.schedules"))
    assert "+    return" in diff and "1 + alpha_bar" in diff
