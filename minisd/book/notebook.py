"""Numbers that a chapter computes, for its prose: any of them, its own time, its own memory."""

import re
import sys
import time
from html import escape
from pathlib import Path
from typing import Any

import psutil


def glue(name: str, text: Any) -> None:
    """Keep `text` under a name, for {glue:text}`name` in the prose of the built book.

    `myst_nb.glue` does the same, but only readers who build the book have myst_nb.
    """
    from IPython.display import display

    prefix = "application/papermill.record/"
    bundle = {prefix + "text/plain": repr(str(text)), prefix + "text/html": escape(str(text))}
    metadata = {"scrapbook": {"name": name, "mime_prefix": prefix}}
    display(bundle, metadata=metadata, raw=True)


def glue_cost(chapter: str) -> None:
    """Glue the time and the peak memory of this chapter so far: `CHAPTER-minutes`, `-memory`."""
    seconds = time.time() - psutil.Process().create_time()  # since the kernel started
    short = f"{seconds:.0f} seconds" if seconds < 60 else f"{seconds / 60:.1f} minutes"
    glue(f"{chapter}-minutes", short)
    glue(f"{chapter}-memory", f"{peak_memory() / 2**30:.1f} GB")


def peak_memory() -> float:
    """Return the largest memory (resident set) that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage would count the process that started this one
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
    import resource  # not on Windows, where the book is read but not built

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
