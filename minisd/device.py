"""Chapter 4: the device that computes: the best one here, and what it is called."""

import os
import platform

import torch


def best_device() -> torch.device:
    """Return cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Name the device that computes: a GPU, or the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """Name the processor that this process runs on."""
    return f"{os.cpu_count()}-core {platform.machine()} CPU"
