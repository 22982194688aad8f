"""What the last chapter runs on: Stable Diffusion v1.5 where that is possible, else postcards."""

from dataclasses import dataclass
from pathlib import Path

import torch

from minisd.device import best_device
from minisd.full_size import find_weights
from minisd.pretrained import SD15, TERMS
from minisd.stable_diffusion import StableDiffusionPipeline

SMALL = "postcards"  # the same system, small enough for every computer


@dataclass(frozen=True)
class Stage:
    """What the last chapter runs on: a pipeline, where its files are, a device and a precision."""

    name: str
    source: str | Path  # what is loaded; a folder or a bundled name is never downloaded
    device: torch.device
    dtype: torch.dtype
    variant: str | None
    why: str

    @property
    def full_size(self) -> bool:
        """Whether this is Stable Diffusion v1.5 itself, with its trained weights."""
        return self.name == SD15

    def __str__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        return f"{self.name} on {self.device}, in {precision}: {self.why}"

    def load(self) -> StableDiffusionPipeline:
        """Return the pipeline, where it is to run."""
        pipe = StableDiffusionPipeline.from_pretrained(self.source, self.dtype, self.variant)
        return pipe.to(self.device)


def set_stage(download: bool = False) -> Stage:
    """Choose v1.5 where there are a GPU and its weights, else the book's postcards.

    Nothing is downloaded unless `download` says that it may be; see `minisd.pretrained.TERMS`.
    """
    device = best_device()
    if device.type == "cpu":
        why = "without a GPU v1.5 would take many minutes for a picture"
        return Stage(SMALL, SMALL, device, torch.float32, None, why)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    for variant in ("fp16", None):  # the smaller files first
        if folder := find_weights(variant):
            return Stage(SD15, folder, device, dtype, variant, f"its weights are in {folder}")
    if download:
        why = f"its weights will be downloaded. {TERMS[SD15]}"
        return Stage(SD15, SD15, device, dtype, "fp16", why)
    why = f"there is a GPU, but the weights of v1.5 are not here. {TERMS[SD15]}"
    return Stage(SMALL, SMALL, device, torch.float32, None, why)
