"""Old names of modules, for one release: they still import, with a warning that names the new."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {  # in version 0.1 -> now
    "minisd.artist": "minisd.lab.artist",
    "minisd.attention": "minisd.attention_maps",
    "minisd.cards": "minisd.lab.cards",
    "minisd.diagrams": "minisd.book.diagrams",
    "minisd.evaluation": "minisd.lab.evaluation",
    "minisd.explorer": "minisd.book.explorer",
    "minisd.inpainting": "minisd.lab.evaluation.inpainting",
    "minisd.notebook": "minisd.book.notebook",
    "minisd.plots": "minisd.book.plots",
    "minisd.recipes": "minisd.lab.recipes",
    "minisd.scoreboard": "minisd.lab.scoreboard",
}


class OldNames(MetaPathFinder, Loader):
    """Find a module by its old name, and give the module of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Take on the names in MOVED, and no others."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of the new name in place of this empty one."""
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(new)


sys.meta_path.append(OldNames())
