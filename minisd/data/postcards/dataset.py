"""Chapter 7: the captioned world as a data set."""

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from minisd.data.postcards.captions import canonical, compose
from minisd.data.postcards.drawing import masks, render
from minisd.data.postcards.scenes import (
    ATTRIBUTES,
    JUDGED,
    SECOND,
    TWO,
    Scenes,
    Split,
    draw_scenes,
)

QUESTIONS = (*JUDGED, *SECOND) if TWO else JUDGED
CLASSES = tuple((name, len(ATTRIBUTES[name])) for name in QUESTIONS)  # what a judge is asked


class Postcards(Dataset):
    """Postcards with labels: items are pairs (image (3,size,size) in [-1,1], labels (k,) int64).

    The labels answer the k questions of CLASSES, as indices in ATTRIBUTES. A share of `two` of the
    cards holds two subjects. `captions`, `full_captions`, `scenes` and `labels` are in the order of
    the items. Pictures are painted when they are asked for, a batch at once. Item i is a function
    of split, seed and i: a longer data set begins with the shorter one.

    "train" and "test" share the combinations of subject, colour and sky, and no scene; "held_out"
    has the other tenth of the combinations, and of two subjects the other tenth of the pairs. "all"
    has every combination, for a judge that is to be fair to both. Raises ValueError for an unknown
    split, n < 1, a size below 8, a seed outside [0, 2^32), or a share outside [0,1].
    """

    source = "postcards"

    def __init__(
        self,
        split: Split = "train",
        n: int = 50_000,
        seed: int = 0,
        size: int = 64,
        two: float = TWO,
    ):
        if n < 1 or size < 8:
            raise ValueError(f"need n >= 1 and size >= 8, got n={n} and size={size}")
        self.size = size
        self.scenes = draw_scenes(split, torch.arange(n), seed, two)
        self.labels = torch.stack([getattr(self.scenes, name) for name, _ in CLASSES], dim=1)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the items of a batch; a DataLoader calls this in place of `__getitem__`."""
        return list(zip(self.images(indices), self.labels[indices], strict=True))

    def images(self, indices: list[int] | slice | Tensor = slice(None)) -> Tensor:
        """Return pictures (b,3,size,size) in [-1,1]."""
        return render(self.scenes[indices], self.size)

    def twins(self, indices: list[int] | slice | Tensor = slice(None)) -> Tensor:
        """Return others of the same labels (b,3,size,size): what these leave open is drawn anew."""
        return render(self._twins(indices), self.size)

    def twin_masks(self, indices: list[int] | slice | Tensor = slice(None)) -> Tensor:
        """Return the semantic maps (b,size,size) int64 of the twins."""
        return masks(self._twins(indices), self.size)

    def _twins(self, indices: list[int] | slice | Tensor) -> Scenes:
        scenes = self.scenes[indices]
        return Scenes(scenes.labels, scenes.integer("twin"))

    def masks(self, indices: list[int] | slice | Tensor = slice(None)) -> Tensor:
        """Return semantic maps (b,size,size) int64 with values of LAYERS."""
        return masks(self.scenes[indices], self.size)

    @cached_property
    def captions(self) -> list[str]:
        """One varied caption for each postcard; half of them leave things out."""
        return [compose(*pair) for pair in zip(self.scenes, self._numbers, strict=True)]

    @cached_property
    def full_captions(self) -> list[str]:
        """One varied caption for each postcard that names all five attributes."""
        return [compose(*pair, full=True) for pair in zip(self.scenes, self._numbers, strict=True)]

    @cached_property
    def canonical_captions(self) -> list[str]:
        """The plain full caption of each postcard."""
        return [canonical(scene) for scene in self.scenes]

    def exchanged_captions(self, what: Literal["colours", "sides"]) -> list[str]:
        """Return the full captions with the colours, or the sides, of two subjects exchanged.

        The words stay the same. Raises ValueError if a postcard has one subject.
        """
        other, mirrored = self.scenes.exchanged(what), what == "sides"
        scenes = self.scenes if mirrored else other
        return [
            compose(*pair, full=True, mirrored=mirrored)
            for pair in zip(scenes, self._numbers, strict=True)
        ]

    @cached_property
    def negative_captions(self) -> list[str]:
        """One full caption for each postcard that is false, in almost the words of the true one.

        Of two subjects the colours are exchanged or the sides, of one the colour is another.
        """
        scenes, coin = self.scenes, self.scenes.integer("false")
        double, alike = scenes.second > 0, scenes.second_colour == scenes.colour + 1
        mirrored = double & ((coin % 2 == 0) | alike)
        hues, column = len(ATTRIBUTES["colour"]), list(ATTRIBUTES).index("colour")
        labels = scenes.labels.clone()
        labels[:, column] = (scenes.colour + 1 + coin % (hues - 1)) % hues
        labels[double] = scenes[double].exchanged("colours").labels
        labels = torch.where(mirrored[:, None], scenes.labels, labels)
        return [
            compose(scene, number, full=True, mirrored=mirror)
            for scene, number, mirror in zip(
                Scenes(labels, scenes.seed), self._numbers, mirrored.tolist(), strict=True
            )
        ]

    @property
    def _numbers(self) -> list[int]:
        high, low = (self.scenes.integer(f"caption {part}") for part in range(2))
        return (high >> 1 << 31 | low >> 1).tolist()
