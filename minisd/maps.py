"""Chapter 11: semantic maps as more input channels, and the pipeline that draws what a map says.

A map reaches the U-Net in input channels of its own, beside the noisy latents. Some maps are
dropped in training, so that the network learns to draw with and without them.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minisd.clip import CLIPTextModel
from minisd.conditioning import cond_drop_mask
from minisd.data.images import flatten
from minisd.data.postcards import LAYERS
from minisd.files import read_json
from minisd.losses import LossFunction
from minisd.pretrained import locate, locate_companion
from minisd.request import Request
from minisd.schedulers import Scheduler, load_scheduler
from minisd.stable_diffusion import INDEX, StableDiffusionPipeline
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet, UNetConfig
from minisd.vae import AutoencoderKL

COLOURS = dict(zip(LAYERS, ("#cfe3f5", "#a58f62", "#c8384a", "#6f4e9b"), strict=True))
TABLE = torch.tensor([list(bytes.fromhex(colour[1:])) for colour in COLOURS.values()])  # (4,3)
WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Concatenation(nn.Module):
    """A U-Net with more input channels than x has: `c_concat` is concatenated at every step.

    It is called like a U-Net without these channels. `c_concat` is (b,c,h,w), one for each picture
    or one for all, or (1,c,1,1), the same at every place. Rombach et al. 2022, section 3.3. Raises
    ValueError for another size or number.
    """

    def __init__(self, unet: UNet, c_concat: Tensor):
        super().__init__()
        self.unet = unet
        self.c_concat = c_concat

    @property
    def config(self) -> UNetConfig:
        """The config of a U-Net without the channels for `c_concat`."""
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

    There is a channel for each label and each pixel of a cell, 1 where the pixel has the label:
    nothing is lost. Raises ValueError for another type, shape or label.
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
    """Return the same loss for a U-Net that also sees maps (b,h,w), the last entry of a batch.

    A share `drop` of the maps is replaced by zeros, which stand for no map.
    """

    def loss(model: UNet, batch: list[Any], generator: torch.Generator) -> Tensor:
        *rest, maps = batch
        c_concat = map_channels(maps, num_labels, factor)
        dropped = cond_drop_mask(len(maps), drop, generator)[:, :, None, None]
        with_map = Concatenation(model, c_concat.masked_fill(dropped, 0.0))
        return loss_function(with_map, rest, generator)

    return loss


def widened(unet: UNet, channels: int) -> UNet:
    """Return a copy of a U-Net with so many more input channels.

    Their weights are zeros: before training, the copy predicts what the U-Net predicts.
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

    Raises ValueError that names the first colour which is none of them.
    """
    pixels = torch.from_numpy(np.array(flatten(picture)))[:, :, None]  # (h,w,1,3)
    matches = (pixels == TABLE).all(dim=-1)  # (h,w,4)
    unknown = (~matches.any(dim=-1)).nonzero().tolist()
    if unknown:
        y, x = unknown[0]
        known = ", ".join(f"{name} {colour}" for name, colour in COLOURS.items())
        found = bytes(pixels[y, x, 0].tolist()).hex()
        raise ValueError(f"the map is #{found} at row {y}, column {x}; its colours are {known}")
    return matches.int().argmax(dim=-1)


@dataclass(frozen=True, eq=False)
class MapRequest(Request):
    """A request with a semantic map of labels, as large as the pictures.

    The map is (h,w) for all pictures, or (b,h,w), one for each; None is no map. Raises ValueError
    for any other shape.
    """

    semantic_map: Tensor | None = None

    def __post_init__(self):
        super().__post_init__()
        maps = self.semantic_map
        if maps is None:
            return
        if not isinstance(maps, Tensor) or maps.ndim not in (2, 3):
            shape = getattr(maps, "shape", None)
            got = type(maps).__name__ if shape is None else tuple(shape)
            raise ValueError(
                f"a semantic map must be a tensor (h, w) or (b, h, w) of labels, got {got}"
            )
        if maps.ndim == 3 and len(maps) not in (1, self.num_images):
            raise ValueError(f"{self.num_images} pictures cannot share {len(maps)} maps")


class MapPipeline(StableDiffusionPipeline):
    """Stable Diffusion whose U-Net also sees a semantic map, in more input channels.

    It is called as its parent is, and takes a `semantic_map` as well; see `MapRequest`. Rombach et
    al. 2022, section 4.3.2. Raises ValueError for a U-Net that has no channels for a map.
    """

    request_class = MapRequest

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet,
        vae: AutoencoderKL,
        scheduler: Scheduler,
    ):
        cell, own = vae.config.downscale**2, vae.config.latent_channels
        self.num_labels = (unet.config.in_channels - own) // cell
        self.extra_channels = self.num_labels * cell
        if self.num_labels < 2:
            raise ValueError(
                f"a map of k labels needs {own} + k x {cell} input channels, with k at least 2: "
                f"the U-Net has {unet.config.in_channels}"
            )
        super().__init__(tokenizer, text_encoder, unet, vae, scheduler)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        torch_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
    ) -> Self:
        """Load a folder; see StableDiffusionPipeline.

        If it holds only a U-Net and a scheduler, the other parts are those of the `base_model` that
        its index names: a bundled model, or one that lies beside it.
        """
        folder = locate(name, "", (INDEX,))
        base = read_json(folder / INDEX).get("base_model")
        if base is None:
            return super().from_pretrained(name, torch_dtype, variant)
        base = locate_companion(base, folder)
        own = StableDiffusionPipeline.from_pretrained(base, torch_dtype, variant)
        unet = UNet.from_pretrained(name, "unet", torch_dtype, variant)
        scheduler = load_scheduler(name, "scheduler")
        return cls(own.tokenizer, own.text_encoder, unet, own.vae, scheduler)

    def denoiser(self, request: Request) -> nn.Module:
        """Return the U-Net together with the map; without one, its channels are zeros."""
        maps = request.semantic_map if isinstance(request, MapRequest) else None
        if maps is None:
            c_concat = torch.zeros(1, self.extra_channels, 1, 1)
        else:
            maps = maps if maps.ndim == 3 else maps[None]
            c_concat = map_channels(maps, self.num_labels, self.vae.config.downscale)
        return Concatenation(self.unet, c_concat.to(self.device, self.dtype))
