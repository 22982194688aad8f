"""Chapters 7, 10 and 11: pictures with captions, as CLIP and latent diffusion learn from them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minisd.data.postcards import Postcards
from minisd.progress import progress
from minisd.tokenizer import Tokenizer
from minisd.vae import AutoencoderKL


class Captioned(Dataset):
    """Pairs (image (c,h,w), ids (n,) int64) of a data set with pictures and `captions`.

    The first entry of each item of `dataset` is the picture. `captions` replace its own, if given.
    Raises ValueError unless there is one caption for each picture, or if the tokenizer would cut
    one short.
    """

    def __init__(self, dataset: Any, tokenizer: Tokenizer, captions: list[str] | None = None):
        self.dataset, self.source = dataset, dataset.source
        self.captions = dataset.captions if captions is None else captions
        if len(self.captions) != len(dataset):
            raise ValueError(f"{len(dataset)} pictures have {len(self.captions)} captions")
        self.ids = tokenizer(self.captions)
        check_lengths(self.captions, self.ids, tokenizer)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.dataset[index][0], self.ids[index]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the items of a batch; a DataLoader calls this in place of `__getitem__`."""
        if not hasattr(self.dataset, "__getitems__"):
            return [self[index] for index in indices]
        items = self.dataset.__getitems__(indices)
        return [(item[0], ids) for item, ids in zip(items, self.ids[indices], strict=True)]


class WithNegatives(Dataset):
    """The items of a captioned data set, each with the ids (n,) of a hard negative: a false text.

    Yuksekgonul et al. 2023, section 4. Raises ValueError unless there is one for each item, or if
    the tokenizer would cut one short.
    """

    def __init__(self, dataset: Captioned, captions: list[str], tokenizer: Tokenizer):
        if len(captions) != len(dataset):
            raise ValueError(f"{len(dataset)} pictures have {len(captions)} negative captions")
        self.dataset, self.source, self.ids = dataset, dataset.source, tokenizer(captions)
        check_lengths(captions, self.ids, tokenizer)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return (*self.dataset[index], self.ids[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, ...]]:
        """Return the items of a batch; a DataLoader calls this in place of `__getitem__`."""
        items = self.dataset.__getitems__(indices)
        return [(*item, ids) for item, ids in zip(items, self.ids[indices], strict=True)]


class Latents(Dataset):
    """Pairs (latents (4,h/8,w/8), ids (n,)): a captioned data set, encoded once and kept in memory.

    The latents are the means, scaled as the autoencoder says.
    """

    @torch.no_grad()
    def __init__(self, dataset: Captioned, vae: AutoencoderKL, batch_size: int = 250):
        self.source, self.ids = dataset.source, dataset.ids
        device = next(vae.parameters()).device
        batches = progress(DataLoader(dataset, batch_size), desc="encoding", delay=2, leave=False)
        self.latents = torch.cat([vae.encode(images.to(device)).cpu() for images, _ in batches])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.latents[index], self.ids[index]


class Mapped(Dataset):
    """The items of a data set, each with one more entry: the map (h,w) int64 of its postcard.

    `dataset` holds these `postcards`, in the same order. A map is drawn when its item is asked for.
    Raises ValueError unless both have the same length.
    """

    def __init__(self, dataset: Any, postcards: Postcards):
        if len(dataset) != len(postcards):
            raise ValueError(f"{len(dataset)} items come with {len(postcards)} postcards")
        self.dataset, self.postcards, self.source = dataset, postcards, dataset.source

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, ...]]:
        """Return the items of a batch; a DataLoader calls this in place of `__getitem__`."""
        if hasattr(self.dataset, "__getitems__"):
            items = self.dataset.__getitems__(indices)
        else:
            items = [self.dataset[index] for index in indices]
        maps = self.postcards.masks(indices)
        return [(*item, labels) for item, labels in zip(items, maps, strict=True)]


def check_lengths(captions: list[str], ids: Tensor, tokenizer: Tokenizer) -> None:
    """Raise ValueError with the longest caption if the tokenizer cut it short to ids (m,n)."""
    room = ids.shape[1] - 2
    filled = (ids[:, -2] != tokenizer.pad_token_id).nonzero().flatten().tolist()
    lengths = {captions[row]: len(tokenizer.encode(captions[row])) for row in filled}
    longest = max(lengths, key=lambda caption: lengths[caption], default="")
    if longest and lengths[longest] > room:
        raise ValueError(
            f"captions must have at most {room} tokens, got {lengths[longest]}: {longest!r}; "
            "shorten it, or train a tokenizer for your captions"
        )
