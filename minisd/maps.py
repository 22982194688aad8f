"""Chapter 11: semantic maps, put beside the latents, and the pipeline that draws what a map says.

A map reaches the U-Net in input channels of its own, beside the noisy latents. Some maps are taken
away in training, so that the network learns to draw with and without them.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minisd.clip import CLIPTextModel
from minisd.conditioning import cond_drop_mask
from minisd.data.postcards import LAYERS
from minisd.files import read_json
from minisd.losses import LossFunction
from minisd.pipeline import DenoisingState
from minisd.pretrained import locate, locate_companion
from minisd.schedulers import Scheduler, load_scheduler
from minisd.stable_diffusion import INDEX, PipelineOutput, StableDiffusionPipeline
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet, UNetConfig
from minisd.vae import AutoencoderKL

COLOURS = dict(zip(LAYERS, ("#cfe3f5", "#a58f62", "#c8384a", "#6f4e9b"), strict=True))
TABLE = torch.tensor([list(bytes.fromhex(colour[1:])) for colour in COLOURS.values()])  # (4,3)
WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Concatenation(nn.Module):
    """A U-Net with more input channels than x has: it also sees `c_concat`, at every step.

    It is called as a U-Net without them. `c_concat` is (b,c,h,w), one for each picture, or one for
    all; or (1,c,1,1), the same at every place. Rombach et al. 2022, section 3.3. Raises ValueError
    for another size or number.
    """

    def __init__(self, unet: nn.Module, c_concat: Tensor):
        super().__init__()
        self.unet = unet
        self.c_concat = c_concat

    @property
    def config(self) -> UNetConfig:
        """The sizes of the U-Net that this one is like from outside."""
        config = self.unet.config
        return replace(config, in_channels=config.in_channels - self.c_concat.shape[1])

    def forward(self, x: Tensor, t: Tensor | int, context: Tensor | None = None) -> Tensor:
        size, grid = tuple(x.shape[2:]), tuple(self.c_concat.shape[2:])
        if grid not in (size, (1, 1)):
            raise ValueError(
                f"the picture has {size} places and its c_concat {grid}: "
                "a map must be as large as its picture"
            )
        copies, rest = divmod(len(x), len(self.c_concat))  # guidance asks for each picture twice
        if rest or copies > 2 and len(self.c_concat) > 1:
            raise ValueError(f"{len(x)} pictures cannot share {len(self.c_concat)} maps")
        c_concat = self.c_concat.repeat(copies, 1, 1, 1).expand(-1, -1, *size)
        return self.unet(torch.cat([x, c_concat], dim=1), t, context)


def map_channels(maps: Tensor, num_labels: int, factor: int) -> Tensor:
    """Bring maps (b,h,w) of labels to the latents' grid: (b, k factor^2, h/factor, w/factor).

    One channel for each label and each pixel of a cell, 1 where that label is: nothing is lost.
    Raises ValueError for what is no such map.
    """
    if maps.dtype not in WHOLE_NUMBERS or maps.ndim != 3 or not maps.numel():
        raise ValueError(
            f"a map must be (h, w) whole numbers, got {maps.dtype} {tuple(maps.shape[1:])}"
        )
    if maps.min() < 0 or maps.max() >= num_labels:
        low, high = int(maps.min()), int(maps.max())
        raise ValueError(f"a map holds the labels 0 to {num_labels - 1}, got {low} to {high}")
    if maps.shape[1] % factor or maps.shape[2] % factor:
        h, w = maps.shape[1:]
        raise ValueError(f"height and width must be multiples of {factor}, got a map of {h} x {w}")
    one_hot = F.one_hot(maps.long(), num_labels).movedim(-1, 1).float()  # (b,k,h,w)
    return F.pixel_unshuffle(one_hot, factor)  # b k (h p) (w q) -> b (k p q) h w


def with_maps(
    loss_function: LossFunction, num_labels: int, factor: int, drop: float = 0.1
) -> LossFunction:
    """Return the same loss for a U-Net that sees maps as well, the last entry (b,h,w) of a batch.

    A share `drop` of the maps is taken away: zeros say nothing.
    """

    def loss(model: nn.Module, batch: list[Any], generator: torch.Generator) -> Tensor:
        *rest, maps = batch
        c_concat = map_channels(maps, num_labels, factor)
        forgotten = cond_drop_mask(len(maps), drop, generator)[:, :, None, None]
        seeing = Concatenation(model, c_concat.masked_fill(forgotten, 0.0))
        return loss_function(seeing, rest, generator)

    return loss


def widened(unet: UNet, channels: int) -> UNet:
    """Return a copy of a U-Net that has so many more input channels, and does not mind them yet.

    Their weights are zeros: it begins as the network that it was.
    """
    config = replace(unet.config, in_channels=unet.config.in_channels + channels)
    wider, weights = UNet(config), unet.state_dict()
    weights["conv_in.weight"] = F.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, channels))
    wider.load_state_dict(weights)
    return wider


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
        c_concat = self.nothing
        if maps is not None:
            c_concat = map_channels(maps, self.num_labels, self.vae.config.downscale)
        seeing = Concatenation(self.unet, c_concat.to(self.device, self.dtype))
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
