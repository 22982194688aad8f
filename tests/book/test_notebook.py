"""What the chapters measure about themselves."""

import subprocess
import sys

import pytest

from minisd.book.notebook import glue, glue_cost

PEAKS = """
import subprocess, sys
import torch
from minisd.book.notebook import peak_memory
before = peak_memory()
large = torch.ones(400_000_000, dtype=torch.uint8)
after = peak_memory()
del large
code = "from minisd.book.notebook import peak_memory; print(peak_memory())"
child = subprocess.check_output([sys.executable, "-c", code], text=True)
print(before, after, peak_memory(), child)
"""


@pytest.mark.slow
def test_the_peak_of_a_process_is_its_own():
    """Not that of the process that started it, as Linux says when it is asked the usual way."""
    printed = subprocess.check_output([sys.executable, "-c", PEAKS], text=True)
    before, after, later, child = map(float, printed.split())
    assert 50e6 < before
    assert after - before == pytest.approx(400e6, rel=0.1)
    assert later > after - 10e6  # a peak stays; the kernel counts it to a few pages
    assert 50e6 < child < before + 100e6


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: (bundle, name) of each value that is glued."""
    found = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda bundle, metadata, raw: found.append((bundle, metadata["scrapbook"]["name"])),
    )
    return found


def test_a_glued_text_is_the_same_in_html(shown):
    glue("sign", 'a < b & "c"')
    ((bundle, name),) = shown
    prefix = "application/papermill.record/"
    assert name == "sign"
    assert bundle[prefix + "text/plain"] == repr('a < b & "c"')
    assert bundle[prefix + "text/html"] == "a &lt; b &amp; &quot;c&quot;"


def test_a_chapter_tells_its_time_and_memory(shown):
    glue_cost("ch99")
    (minutes, first), (memory, second) = ((next(iter(b.values())), name) for b, name in shown)
    assert (first, second) == ("ch99-minutes", "ch99-memory")
    assert minutes.strip("'").split()[1] in ("seconds", "minutes") and memory.endswith("GB'")
