"""Chapter 11: semantic maps of postcards, and the pipeline that draws what a map says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.clip import CLIPTextModel
from minisd.conditioning import map_channels
from minisd.data.postcards import LAYERS
from minisd.files import read_json
from minisd.pipeline import Concatenation, DenoisingState
from minisd.pretrained import locate, locate_companion
from minisd.schedulers import Scheduler, load_scheduler
from minisd.stable_diffusion import INDEX, PipelineOutput, StableDiffusionPipeline
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import AutoencoderKL

COLOURS = dict(zip(LAYERS, ("#cfe3f5", "#a58f62", "#c8384a", "#6f4e9b"), strict=True))
TABLE = torch.tensor([list(bytes.fromhex(colour[1:])) for colour in COLOURS.values()])  # (4,3)


def paint_maps(maps: Tensor) -> Tensor:
    """Show maps (b,h,w) as pictures (b,3,h,w) in [-1,1], in COLOURS."""
    return (TABLE[maps.long()] / 127.5 - 1).movedim(-1, 1)


def read_map(picture: Image.Image) -> Tensor:
    """Return the map (h,w) int64 that a picture in COLOURS shows.

    Raises ValueError that names a colour which is none of them.
    """
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))[:, :, None]  # (h,w,1,3)
    matches = (pixels == TABLE).all(dim=-1)  # (h,w,4)
    unknown = (~matches.any(dim=-1)).nonzero().tolist()
    if unknown:
        y, x = unknown[0]
        known = ", ".join(f"{name} {colour}" for name, colour in COLOURS.items())
        strange = bytes(pixels[y, x, 0].tolist()).hex()
        raise ValueError(f"the map is #{strange} at row {y}, column {x}; its colours are {known}")
    return matches.int().argmax(dim=-1)


class MapPipeline(StableDiffusionPipeline):
    """Stable Diffusion whose U-Net sees a semantic map beside the latents, in more channels.

    It is called as its parent is, and may be given a `semantic_map` (h,w) of labels, as large as
    the pictures. Rombach et al. 2022, section 4.3.2. Raises ValueError for a U-Net that has no
    channels for a map.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet,
        vae: AutoencoderKL,
        scheduler: Scheduler,
    ):
        cell, own = vae.config.downscale**2, vae.config.latent_channels
        self.num_labels, rest = divmod(unet.config.in_channels - own, cell)
        if rest or self.num_labels < 2:
            raise ValueError(
                f"a map of k labels needs {own} + k x {cell} input channels, with k at least 2: "
                f"the U-Net has {unet.config.in_channels}"
            )
        self.nothing = torch.zeros(1, self.num_labels * cell, 1, 1)
        super().__init__(tokenizer, text_encoder, Concatenation(unet, self.nothing), vae, scheduler)
        self.unet = unet

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        torch_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
    ) -> Self:
        """Load a folder; see StableDiffusionPipeline.

        If it holds only a U-Net and a scheduler, the other parts are those of the `system` that
        its index names: a bundled one, or one that lies beside it.
        """
        folder = locate(name, "", (INDEX,))
        system = read_json(folder / INDEX).get("system")
        if system is None:
            return super().from_pretrained(name, torch_dtype, variant)
        system = locate_companion(system, folder)
        own = StableDiffusionPipeline.from_pretrained(system, torch_dtype, variant)
        unet = UNet.from_pretrained(name, "unet", torch_dtype, variant)
        scheduler = load_scheduler(name, "scheduler")
        return cls(own.tokenizer, own.text_encoder, unet, own.vae, scheduler)

    def reading(self, maps: Tensor | None) -> StableDiffusionPipeline:
        """Return the pipeline of the same parts that has these maps before its eyes.

        Maps are (b,h,w), one for all pictures or one for each; None is no map, only words.
        """
        beside = self.nothing
        if maps is not None:
            beside = map_channels(maps, self.num_labels, self.vae.config.downscale)
        seeing = Concatenation(self.unet, beside.to(self.device, self.dtype))
        pipeline = StableDiffusionPipeline(
            self.tokenizer, self.text_encoder, seeing, self.vae, self.scheduler
        )
        pipeline.vae_slicing, pipeline.offload_device = self.vae_slicing, self.offload_device
        return pipeline

    def denoise(
        self, *arguments: Any, semantic_map: Tensor | None = None, **settings: Any
    ) -> Iterator[DenoisingState]:
        """Yield the state after every step; see StableDiffusionPipeline, and `semantic_map`."""
        return self.reading(only(semantic_map)).denoise(*arguments, **settings)

    def __call__(
        self, *arguments: Any, semantic_map: Tensor | None = None, **settings: Any
    ) -> PipelineOutput:
        """Draw; see StableDiffusionPipeline, and `semantic_map`."""
        return self.reading(only(semantic_map))(*arguments, **settings)


def only(semantic_map: Tensor | None) -> Tensor | None:
    """Return one map (h,w) as a batch (1,h,w); raises ValueError for anything else."""
    if semantic_map is None:
        return None
    if not isinstance(semantic_map, Tensor) or semantic_map.ndim != 2:
        shape = getattr(semantic_map, "shape", None)
        got = type(semantic_map).__name__ if shape is None else tuple(shape)
        raise ValueError(f"a semantic map must be a tensor (h, w) of labels, got {got}")
    return semantic_map[None]
