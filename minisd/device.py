"""Chapter 4: the device that computes: the best one here, its name, and noise for it."""

import os
import platform
from collections.abc import Sequence

import torch
from torch import Tensor


def best_device() -> torch.device:
    """Return cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def draw_noise(
    shape: Sequence[int],
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw normal noise where the generator is, and bring it to the device: one seed, one noise."""
    where = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=where, dtype=dtype).to(device)


def device_name(device: torch.device) -> str:
    """Name the device that computes: a GPU, or the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """Name the processor that this process runs on."""
    return f"{os.cpu_count()}-core {platform.machine()} CPU"
