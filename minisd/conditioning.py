"""Chapters 8, 10 and 11: what a diffusion model is told while it learns.

A prompt reaches the U-Net as a context (b,n,d): one vector for a label, one per token for a text. A
semantic map stands beside the noisy latents, in channels of its own. Some prompts and some maps are
taken away in training, so that one network learns to draw with and without them, and the difference
can guide it (Ho and Salimans 2022).
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.clip import CLIPTextModel
from minisd.pipeline import Concatenation
from minisd.training import LossFunction, Prepare
from minisd.unet import UNet

WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def label_context(labels: Tensor, num_classes: int) -> Tensor:
    """Return a label as a prompt of one token: (b,) int64 -> (b,1,num_classes), 1 where it is.

    No prompt is a token of zeros. The attention's first layer is the table of embeddings.
    """
    return F.one_hot(labels, num_classes)[:, None].float()


def forget(batch_size: int, share: float, generator: torch.Generator) -> Tensor:
    """Draw which prompts of a batch are taken away: (b,1) bool, true with probability `share`."""
    return torch.rand(batch_size, 1, generator=generator, device=generator.device) < share


def labelled_images(num_classes: int, drop: float = 0.1) -> Prepare:
    """Prepare batches (images (b,c,h,w), labels (b,)); a share `drop` forgets its labels."""

    def prepare(batch: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = batch
        forgotten = forget(len(labels), drop, generator)[:, :, None]
        return images, label_context(labels, num_classes).masked_fill(forgotten, 0.0)

    return prepare


def captioned_images(text_encoder: CLIPTextModel, empty_ids: Tensor, drop: float = 0.1) -> Prepare:
    """Prepare batches (images or latents (b,c,h,w), ids (b,n)) for diffusion with words.

    A share `drop` of the texts becomes `empty_ids` (n,), the text "". The text encoder is used as
    it is, without gradients. Rombach et al. 2022, eq. 3.
    """

    @torch.no_grad()
    def prepare(batch: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, ids = batch
        ids = torch.where(forget(len(ids), drop, generator), empty_ids.to(ids.device), ids)
        return images, text_encoder(ids)

    return prepare


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
        beside = map_channels(maps, num_labels, factor)
        forgotten = forget(len(maps), drop, generator)[:, :, None, None]
        seeing = Concatenation(model, beside.masked_fill(forgotten, 0.0))
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
