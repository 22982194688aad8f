"""Progress bars, shown only where somebody looks."""

import os
import sys
from typing import Any

from tqdm import tqdm


def progress(iterable: Any = None, **settings: Any) -> tqdm:
    """Return tqdm's bar; where nobody looks it writes nothing, and does not count either.

    `MINISD_PROGRESS=1` always shows it, `MINISD_PROGRESS=0` never. Otherwise it is shown on a
    terminal and in a notebook.
    """
    if not watched():
        settings["disable"] = True  # else tqdm decides: TQDM_DISABLE is obeyed
    return tqdm(iterable, **settings)


def watched() -> bool:
    """Whether somebody reads standard error while the program runs."""
    wish = os.environ.get("MINISD_PROGRESS")
    if wish:
        return wish != "0"
    if sys.stderr is None:  # a program without a console on Windows
        return False
    notebook = type(sys.stderr).__module__.startswith("ipykernel")
    return notebook or sys.stderr.isatty()
