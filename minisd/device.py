"""Chapter 4: the device that computes: the best one here, its name, noise and batches for it."""

import os
import platform
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None  # one for all pictures, or one each
MAX_SEED = 2**64 - 1


def best_device() -> torch.device:
    """Return cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def check_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError for float16 on a CPU, where it is slow and inexact."""
    if device.type == "cpu" and dtype == torch.float16:
        raise ValueError("float16 needs a GPU: on a CPU use float32 or bfloat16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16; CUDA cards do from compute capability 8.0 on.

    Older ones emulate it, slowly; `torch.cuda.is_bf16_supported` counts them, too.
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def seeded(seed: int) -> torch.Generator:
    """Return a generator on the CPU: its seed gives the same noise for every device.

    Raises ValueError for a seed that is not between 0 and 2^64 - 1.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"the seed must be between 0 and {MAX_SEED}, got {seed}")
    return torch.Generator().manual_seed(seed)


def draw_noise(
    shape: Sequence[int],
    generator: Generators,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw normal noise where the generator is, and bring it to the device: one seed, one noise.

    Of several generators each draws one row of `shape`, as it would alone. Raises ValueError if
    there are not as many as rows.
    """
    if isinstance(generator, Sequence):
        if len(generator) != shape[0]:
            raise ValueError(f"{shape[0]} pictures have {len(generator)} generators")
        rows = [draw_noise((1, *shape[1:]), each, device, dtype) for each in generator]
        return torch.cat(rows)
    where = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=where, dtype=dtype).to(device)


def device_name(device: torch.device) -> str:
    """Name the device that computes: a GPU, or the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """Name the processor that this process runs on."""
    return f"{os.cpu_count()}-core {platform.machine()} CPU"


@torch.no_grad()
def in_batches(
    function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 500
) -> Tensor:
    """Apply `function` to (n,...) batch by batch, without gradients, and join the results."""
    return torch.cat([function(batch) for batch in images.split(batch_size)])
