"""Checkers for the exercises of the book: `minisd.check("2.1", my_function)`."""

from importlib import import_module
from pkgutil import iter_modules

from minisd.exercises.checking import Verdict, check

for module in iter_modules(__path__):  # each chapter's module registers its checkers
    import_module(f"{__name__}.{module.name}")

__all__ = ["Verdict", "check"]
