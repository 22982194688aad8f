"""Chapter 7: many pictures, painted at once, layer over layer."""

from collections.abc import Iterator
from functools import cached_property
from zlib import crc32

import torch
from torch import Tensor

from minisd.data.postcards.scenes import ATTRIBUTES, Scenes, mix
from minisd.data.postcards.shapes import ellipse

LAYERS = ("sky", "ground", "subject", "companions")  # the values of a mask


def rgb(*colours: str) -> Tensor:
    """Return colours "rrggbb" as numbers in [0,1], (n,3,1,1)."""
    return torch.tensor([list(bytes.fromhex(colour)) for colour in colours])[..., None, None] / 255


class Canvas:
    """Pictures being painted: `image` (n,3,h,w) in [0,1]; `label` (n,1,h,w), what is on top.

    `label` may be None where no one asks for it. `who` is whose numbers `vary` gives: of two
    subjects, each has its own.
    """

    def __init__(self, scenes: Scenes, image: Tensor, label: Tensor | None, who: str = ""):
        self.scenes, self.image, self.label, self.who = scenes, image, label, who
        self.size = image.shape[-1]
        self.x = ((torch.arange(self.size) + 0.5) / self.size).view(1, 1, 1, -1)
        self.y = 1 - self.x.view(1, 1, -1, 1)  # upwards

    @cached_property
    def horizon(self) -> Tensor:
        """The height (n,1,1,1) at which the ground ends."""
        return self.shared("horizon", 0.3, 0.4)

    def shared(self, name: str, low: float, high: float) -> Tensor:
        """Return one number per picture (n,1,1,1), a function of its seed and of `name`."""
        return (low + (high - low) * self.scenes.uniform(name)).view(-1, 1, 1, 1)

    def vary(self, name: str, low: float, high: float) -> Tensor:
        """Return what `shared` does, but for the second of two subjects another number."""
        return self.shared(self.who + name, low, high)

    def subjects(self) -> Iterator["Canvas"]:
        """Give all pictures to paint the first subject on, then those that have a second."""
        yield self
        for part in self.where(~self.has("second", "none")):
            yield part.second()

    def second(self) -> "Canvas":
        """Return the same pictures, on which the second subject is painted as if it were alone."""
        return Canvas(self.scenes.seconds(), self.image, self.label, "second ")

    def pick(self, table: Tensor, attribute: str) -> Tensor:
        """Look an attribute up in a table of colours (m,3,1,1) or of numbers (m,1,1,1)."""
        return table[getattr(self.scenes, attribute)]

    def has(self, attribute: str, *values: str) -> Tensor:
        """Say which pictures have one of these values (n,1,1,1)."""
        labels = [ATTRIBUTES[attribute].index(value) for value in values]
        return torch.isin(getattr(self.scenes, attribute), torch.tensor(labels)).view(-1, 1, 1, 1)

    def where(self, chosen: Tensor) -> Iterator["Canvas"]:
        """Give the chosen pictures (n,1,1,1) to paint on, if there are any, and take them back."""
        yield from self.at(chosen.flatten().nonzero().squeeze(1))

    def at(self, rows: Tensor) -> Iterator["Canvas"]:
        """Give the pictures of these indices to paint on, if there are any, and take them back."""
        if len(rows):
            label = None if self.label is None else self.label.index_select(0, rows)
            part = Canvas(self.scenes[rows], self.image.index_select(0, rows), label, self.who)
            yield part
            self.image.index_copy_(0, rows, part.image)
            if self.label is not None and label is not None:
                self.label.index_copy_(0, rows, label)

    def paint(
        self,
        distance: Tensor,
        colour: Tensor,
        label: str | None = None,
        opacity: Tensor | float | None = None,
        unit: Tensor | float = 1.0,
    ) -> None:
        """Lay a colour over all pixels inside a shape, softly over the one at its edge.

        `unit` is what 1 in `distance` measures on the picture, whose width is 1.
        """
        cover = (0.5 - distance * (unit * self.size)).clamp_(0, 1)
        if label is not None and self.label is not None:
            self.label.masked_fill_(cover >= 0.5, LAYERS.index(label))
        if opacity is not None:
            cover = cover * opacity
        torch.lerp(self.image, colour, cover, out=self.image)

    def glow(self, distance: Tensor, colour: Tensor, reach: float, opacity: float) -> None:
        """Lay light around a shape, fading over `reach`."""
        fade = (1 - distance / reach).clamp(0, 1)
        torch.lerp(self.image, colour, opacity * fade, out=self.image)

    def dots(
        self, name: str, columns: int, rows: int, a: float, b: float, slant: float = 0.0
    ) -> Tensor:
        """Return the distance to the ellipses, a by b, of which each cell of a grid holds one."""
        x, y = (self.x + slant * self.y) * columns, self.y * rows
        i, j = x.long(), y.long()
        width = int(columns * (1 + slant)) + 1
        cells = mix(self.scenes.seed.view(-1, 1) ^ crc32(name.encode()), torch.arange(width * rows))
        index = (j * width + i).expand(1, 1, self.size, self.size).flatten()
        px, py = (
            (edge + (1 - 2 * edge) / 65536 * part).index_select(1, index)
            for part, edge in ((cells & 0xFFFF, a * columns), (cells >> 16, b * rows))
        )  # far enough from the edge of its cell to stay whole
        px, py = px.view(-1, 1, self.size, self.size), py.view(-1, 1, self.size, self.size)
        return ellipse((x - i - px) / columns, (y - j - py) / rows, a, b)
