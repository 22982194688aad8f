"""Chapter 4: which precision trains a network fastest here, and which order of its weights.

What is fast on one processor, or for one network, is slow on another: so it is timed.
"""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import Dataset

from minisd.checkpoints import read_checkpoint
from minisd.device import has_bfloat16
from minisd.losses import LossFunction
from minisd.training import TrainingSettings, new_accelerator, train

AUTO = "auto"
STEPS = 4  # of every way: the first warms up, the median of the others counts
WORTH_IT = 100  # steps of a run, below which the timing costs more than it saves


@dataclass(frozen=True)
class Way:
    """In what a network is trained: accelerate's name of a precision, and the order in memory."""

    precision: str = "no"
    channels_last: bool = False

    def __str__(self) -> str:
        """Name it as the cards do."""
        name = "float32" if self.precision == "no" else self.precision
        return f"{name}, channels last" if self.channels_last else name

    def order(self, model: nn.Module) -> nn.Module:
        """Bring the weights of a model into this order, in place, and return it."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return model.to(memory_format=order)  # pyright: ignore[reportCallIssue]  torch's own types


def wished(precision: str, channels_last: bool) -> Way | None:
    """Return the way that is asked for, or None for "auto", which must leave the order open."""
    if precision != AUTO:
        return Way(precision, channels_last)
    if channels_last:
        raise ValueError(
            "auto chooses the order in memory as well: for channels last name a precision, too"
        )
    return None


def ways(model: nn.Module, device: torch.device) -> list[Way]:
    """Return those that may be the fastest: none that the device emulates, or that MPS lacks."""
    if device.type == "mps":
        return [Way()]
    half = has_bfloat16(device)
    if device.type == "cpu":
        half = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    pictures = any(p.ndim == 4 for p in model.parameters())  # else there is but one order
    precisions, orders = ["no", "bf16"] if half else ["no"], [False, True] if pictures else [False]
    return [Way(precision, last) for precision in precisions for last in orders]


def milliseconds(
    way: Way, model: nn.Module, loss: LossFunction, dataset: Dataset, settings: TrainingSettings
) -> float:
    """Train a copy of the model on the first batches and return the median time of a step."""
    model, ends = way.order(copy.deepcopy(model)), []
    accelerator = new_accelerator(way.precision)
    for step in train(model, loss, dataset, replace(settings, steps=STEPS), None, accelerator):
        step.loss.item()  # waits until a GPU is done
        ends.append(perf_counter())
    return round(1000 * median(b - a for a, b in pairwise(ends)), 1)


def choose(
    wish: Way | None,
    checkpoint: Path,
    model: nn.Module,
    loss: LossFunction,
    dataset: Dataset,
    settings: TrainingSettings,
    accelerator: Accelerator,
) -> tuple[Way, dict[str, float]]:
    """Return how to train, and the milliseconds of a step in every way that was timed for that.

    A wish is granted, a checkpoint goes on as it began, a short run is not worth the timing. Else
    the fastest way is taken, and a warning says so; of several processes the first decides. Neither
    the model nor torch's generators change. Raises ValueError for a damaged checkpoint.
    """
    if checkpoint.exists():
        _, facts = read_checkpoint(checkpoint)
        begun = Way(facts["run"]["precision"], facts["run"]["channels_last"])
        return wish or begun, facts["timings"]  # `train` refuses a wish for another way
    candidates = ways(model, accelerator.device)
    if wish or settings.steps < WORTH_IT or len(candidates) == 1:
        return wish or Way(), {}
    with torch.random.fork_rng():  # a DataLoader draws from torch's global generator
        times = {str(w): milliseconds(w, model, loss, dataset, settings) for w in candidates}
    (times,) = broadcast_object_list([times])
    fastest = min(candidates, key=lambda way: times[str(way)])
    if accelerator.is_main_process:
        warnings.warn(compared(fastest, times), stacklevel=2)
    return fastest, times


def compared(way: Way, times: Mapping[str, float]) -> str:
    """Say how long a step took in this way, and in the others."""
    others = "; ".join(f"{name} {ms:g}" for name, ms in times.items() if name != str(way))
    return f"{way}: {times[str(way)]:g} ms a step; {others}"
