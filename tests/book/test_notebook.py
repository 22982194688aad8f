"""What the chapters measure about themselves."""

import subprocess
import sys

import pytest
import torch

from minisd.book.notebook import peak_memory


@pytest.mark.slow
def test_the_peak_of_a_process_is_its_own():
    """Not that of the process that started it, as Linux says when it is asked the usual way."""
    before = peak_memory()
    large = torch.ones(200_000_000, dtype=torch.uint8)
    assert peak_memory() - before > 150e6 or before > 1e9  # or it had been there already
    code = "from minisd.book.notebook import peak_memory; print(peak_memory())"
    child = float(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert 50e6 < child < peak_memory() and len(large)
