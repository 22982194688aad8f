"""Chapters 8 and 10: the conditions of a diffusion model in training: labels and captions.

A prompt reaches the U-Net as a context (b,n,d): one vector for a label, one per token for a text.
Some prompts are dropped in training, so that one network learns to draw with and without them, and
the difference can guide it (Ho and Salimans 2022).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.clip import CLIPTextModel
from minisd.losses import Prepare


def label_context(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels as prompts of one one-hot token: (b,) int64 -> (b,1,num_classes).

    No prompt is a token of zeros. The key and value projections of the attention take the place of
    an embedding table.
    """
    return F.one_hot(labels, num_classes)[:, None].float()


def cond_drop_mask(batch_size: int, share: float, generator: torch.Generator) -> Tensor:
    """Draw which prompts of a batch are dropped: (b,1) bool, true with probability `share`."""
    return torch.rand(batch_size, 1, generator=generator, device=generator.device) < share


def labelled_images(num_classes: int, drop: float = 0.1) -> Prepare:
    """Prepare batches (images (b,c,h,w), labels (b,)); a share `drop` of the labels is dropped."""

    def prepare(batch: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, labels = batch
        dropped = cond_drop_mask(len(labels), drop, generator)[:, :, None]
        return images, label_context(labels, num_classes).masked_fill(dropped, 0.0)

    return prepare


def captioned_images(text_encoder: CLIPTextModel, empty_ids: Tensor, drop: float = 0.1) -> Prepare:
    """Prepare batches (images or latents (b,c,h,w), ids (b,n)) for diffusion with words.

    A share `drop` of the texts becomes `empty_ids` (n,), the text "". The text encoder is frozen.
    Rombach et al. 2022, eq. 3.
    """

    @torch.no_grad()
    def prepare(batch: list[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, ids = batch
        ids = torch.where(cond_drop_mask(len(ids), drop, generator), empty_ids.to(ids.device), ids)
        return images, text_encoder(ids)

    return prepare
