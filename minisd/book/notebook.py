"""What the chapters need to show computed numbers in their prose."""

import re
import sys
import time
from pathlib import Path
from typing import Any

import psutil


def glue(name: str, text: Any) -> None:
    """Keep `text` under a name, for {glue:text}`name` in the prose of the built book."""
    from IPython.display import display

    prefix = "application/papermill.record/"
    bundle = {prefix + "text/plain": repr(str(text)), prefix + "text/html": str(text)}
    metadata = {"scrapbook": {"name": name, "mime_prefix": prefix}}
    display(bundle, metadata=metadata, raw=True)


def glue_cost(chapter: str) -> None:
    """Keep this chapter's minutes and peak memory so far, as `CHAPTER-minutes`, `-memory`."""
    seconds = time.time() - psutil.Process().create_time()  # since the kernel started
    short = f"{seconds:.0f} seconds" if seconds < 60 else f"{seconds / 60:.1f} minutes"
    glue(f"{chapter}-minutes", short)
    glue(f"{chapter}-memory", f"{peak_memory() / 2**30:.1f} GB")


def peak_memory() -> float:
    """Return the most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage would count the process that started this one
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    import resource  # not on Windows, where the book is read but not built

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
