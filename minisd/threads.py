"""Chapters 4 and 10: how many threads compute, and how they wait for each other.

On a CPU the threads of a network meet after every layer. Where a layer takes less than a
millisecond, a second thread gains nothing; and as soon as another program needs the core, the
first one waits for it at every layer, spinning, which costs many times the work itself. Two rules,
kept here and nowhere else: small work runs on one thread, and a thread that waits spins briefly and
then sleeps.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Read by GNU's OpenMP when torch is first imported; by default it spins for milliseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

SMALL = 1e9  # multiplications, roughly: below it one thread is as fast as two


@contextmanager
def threads_for(network: nn.Module | Callable, x: Tensor) -> Iterator[None]:
    """Within this block, run `network` on x (b,c,...) with as many threads as pay.

    One thread on a CPU if the work is SMALL, else as many as before, which are restored at the end.
    The work is taken to be every weight once for each place of each image: an upper bound.
    """
    weights = sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else 0
    small = x.device.type == "cpu" and weights * x.numel() / x.shape[1] < SMALL
    before = torch.get_num_threads()
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
