"""Chapters 10 and 11: pictures as files, as PIL images, as arrays and as tensors."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Picture = Image.Image | Tensor
OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES = get_args(OutputType)


def open_picture(path: str | Path, ground: str = "white") -> Image.Image:
    """Read a picture file as `flatten` returns it; raises ValueError that names the file."""
    try:
        with Image.open(path) as picture:
            return flatten(picture, ground)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except Exception as error:  # PIL raises some dozen unrelated types for broken files
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None


def flatten(picture: Image.Image, ground: str = "white") -> Image.Image:
    """Return a picture in RGB, upright as its EXIF data say, transparent parts laid on `ground`.

    Raises ValueError for more than 16 bits a channel.
    """
    if picture.mode.startswith("I;16"):  # PIL would cut off what is above 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype("uint8"))
    if picture.mode in ("I", "F"):
        raise ValueError(f"a picture must have 8 or 16 bits a channel, this one is {picture.mode}")
    picture = ImageOps.exif_transpose(picture).convert("RGBA")
    behind = Image.new("RGBA", picture.size, ground)
    return Image.alpha_composite(behind, picture).convert("RGB")


def as_tensor(picture: Picture, mode: str) -> Tensor:
    """Return a picture as (1,c,h,w) in [0,1]; PIL images are converted to `mode`, "RGB" or "L".

    A transparent part counts as white in "RGB", and as black in "L", which is for masks. A tensor
    may be (c,h,w), (1,c,h,w), or (h,w) if there is one channel. Raises ValueError for any other
    shape, and for numbers outside [0,1].
    """
    channels = len(mode)
    if isinstance(picture, Image.Image):
        flat = flatten(picture, "white" if mode == "RGB" else "black").convert(mode)
        array = np.asarray(flat, dtype="float32") / 255
        return torch.from_numpy(array).view(1, *flat.size[::-1], channels).permute(0, 3, 1, 2)
    if not isinstance(picture, Tensor):
        raise ValueError(f"a picture must be a PIL image or a tensor, got {type(picture).__name__}")
    single = picture[None] if picture.ndim == 2 else picture
    single = single[None] if single.ndim == 3 else single
    if single.ndim != 4 or single.shape[:2] != (1, channels) or not single.numel():
        raise ValueError(
            f"a picture must have {channels} channels, ({channels}, h, w): "
            f"got {tuple(picture.shape)}"
        )
    if not (0 <= single.min() and single.max() <= 1):
        raise ValueError(
            f"the numbers of a picture must be in [0,1], got {single.min():.2g} to "
            f"{single.max():.2g}"
        )
    return single.float()


def as_type(images: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    """Return images (b,c,h,w) in [0,1] as PIL images, as an array (b,h,w,c), or as they are."""
    if output_type == "pt":
        return images
    array = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return array
    return [Image.fromarray(picture) for picture in (array * 255).round().astype("uint8")]
