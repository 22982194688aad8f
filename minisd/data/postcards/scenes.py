"""Chapter 7: what can be on a postcard, and how scenes are drawn at random.

A scene is eight named attributes and a seed. All that varies continuously (size, hue, horizon, the
shapes of clouds) is a function of the seed and of a name, so a scene looks the same at any
resolution, in any batch, on any machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from hashlib import sha256
from itertools import product
from typing import Any, Literal, overload
from zlib import crc32

import torch
from torch import Tensor

SUBJECTS = (
    "temple", "house", "castle", "lighthouse", "tent", "windmill", "rocket", "mushroom",
    "boat", "balloon", "pine tree", "palm tree",
)  # fmt: skip
ATTRIBUTES = {
    "subject": SUBJECTS,
    "colour": ("red", "yellow", "green", "blue", "purple", "white"),
    "sky": ("day", "sunset", "night", "storm"),
    "ground": ("grass", "sand", "snow", "sea"),
    "place": ("left", "middle", "right"),
    "scale": ("small", "medium", "large"),
    "companion": ("none", "sun", "moon", "birds", "clouds", "lightning"),
    "trees": (0, 1, 2, 3),
}
JUDGED = ("subject", "colour", "sky", "ground", "place")  # what a full caption names
COMPANIONS = {  # what each sky can hold
    "day": ("none", "sun", "birds", "clouds"),
    "sunset": ("none", "sun", "birds", "clouds"),
    "night": ("none", "moon"),
    "storm": ("none", "clouds", "lightning"),
}
SPLITS = ("train", "test", "held_out", "all")
Split = Literal["train", "test", "held_out", "all"]


@dataclass(frozen=True)
class Scene:
    """One postcard in words and a seed; raises ValueError for what this world does not hold.

    Boats are only on the sea; the sun shines by day and at sunset, the moon at night; trees stand
    on land, and not around a subject that is a tree. `seed` is in [0, 2^32).
    """

    subject: str = "house"
    colour: str = "red"
    sky: str = "day"
    ground: str = "grass"
    place: str = "middle"
    scale: str = "medium"
    companion: str = "none"
    trees: int = 0
    seed: int = 0

    def __post_init__(self):
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, got {getattr(self, name)!r}")
        if self.subject == "boat" and self.ground != "sea":
            raise ValueError(f"a boat is only ever on the sea, not on {self.ground}")
        if self.companion not in COMPANIONS[self.sky]:
            raise ValueError(
                f"the {self.sky} sky holds one of {COMPANIONS[self.sky]}, got {self.companion!r}"
            )
        if self.trees and (self.ground == "sea" or self.subject.endswith("tree")):
            raise ValueError(f"no trees around a {self.subject} on {self.ground}: set trees=0")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")


class Scenes(Sequence[Scene]):
    """A batch of scenes as tensors: `labels` (n,8), in the order of ATTRIBUTES, and `seed` (n,).

    `scenes[3]` is a Scene; a slice, a list or a tensor of indices gives Scenes.
    """

    def __init__(self, labels: Tensor, seed: Tensor):
        self.labels, self.seed = labels, seed

    @classmethod
    def of(cls, scenes: Sequence[Scene]) -> "Scenes":
        """Collect single scenes into a batch."""
        labels = [
            [values.index(getattr(scene, name)) for name, values in ATTRIBUTES.items()]
            for scene in scenes
        ]
        seed = torch.tensor([scene.seed for scene in scenes], dtype=torch.int64)
        return cls(torch.tensor(labels, dtype=torch.int64).reshape(-1, len(ATTRIBUTES)), seed)

    def __len__(self) -> int:
        return len(self.seed)

    @overload
    def __getitem__(self, index: int) -> Scene: ...

    @overload
    def __getitem__(self, index: slice | list[int] | Tensor) -> "Scenes": ...

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> "Scene | Scenes":
        if isinstance(index, int):
            pairs = zip(ATTRIBUTES.items(), self.labels[index].tolist(), strict=True)
            values: dict[str, Any] = {name: values[label] for (name, values), label in pairs}
            return Scene(**values, seed=int(self.seed[index]))
        return Scenes(self.labels[index], self.seed[index])

    def __getattr__(self, name: str) -> Tensor:
        """Return the labels (n,) of one attribute: `scenes.sky`."""
        if name not in ATTRIBUTES:
            raise AttributeError(name)
        return self.labels[:, list(ATTRIBUTES).index(name)]

    def integer(self, name: str) -> Tensor:
        """Return one integer in [0, 2^32) per scene (n,), a function of its seed and of `name`."""
        return mix(self.seed ^ crc32(name.encode()))

    def uniform(self, name: str) -> Tensor:
        """Return one number in [0,1) per scene (n,), a function of its seed and of `name`."""
        return (self.integer(name) >> 8) * 2.0**-24


def mix(*keys: Tensor | int) -> Tensor:
    """Hash integers into [0, 2^32), one-to-one in the last; broadcasts. No product overflows int64.

    The rounds are those of C. Wellons' `hash-prospector` (multipliers 21f0aaad and 735a2d97).
    """
    h = torch.zeros((), dtype=torch.int64)
    for key in keys:
        h = (h + 0x9E3779B9) & 0xFFFFFFFF ^ key
        h = (h ^ h >> 16) * 0x21F0AAAD & 0xFFFFFFFF
        h = (h ^ h >> 15) * 0x735A2D97 & 0xFFFFFFFF
        h = h ^ h >> 15
    return h


def is_held_out(subject: str, colour: str, sky: str) -> bool:
    """Say whether a combination is kept from training: SHA-256 of its words, mod 10, is 0."""
    digest = sha256(f"{colour} {subject} {sky}".encode()).digest()
    return int.from_bytes(digest, "big") % 10 == 0


@cache
def combinations(split: Split) -> Tensor:
    """Return the labels (m,3) of the combinations of subject, colour and sky in a split."""
    names = ("subject", "colour", "sky")
    labels = product(*(range(len(ATTRIBUTES[name])) for name in names))
    chosen = []
    for row in labels:
        words = (ATTRIBUTES[name][label] for name, label in zip(names, row, strict=True))
        if split == "all" or is_held_out(*words) == (split == "held_out"):
            chosen.append(row)
    return torch.tensor(chosen)


def draw_scenes(split: Split, index: Tensor, seed: int = 0) -> Scenes:
    """Return the scenes of a split at `index` (n,), each a function of its index and `seed` alone.

    Raises ValueError for an unknown split, or a seed outside [0, 2^32).
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2^32), got {seed}")
    keys = mix(crc32(split.encode()), seed, index)
    scenes = Scenes(torch.zeros(len(index), len(ATTRIBUTES), dtype=torch.int64), keys)

    def below(name: str, n: int | Tensor) -> Tensor:
        return (scenes.uniform(name) * n).long()

    allowed = combinations(split)
    subject, colour, sky = allowed[below("combination", len(allowed))].unbind(1)
    ground = torch.where(subject == SUBJECTS.index("boat"), 3, below("ground", 4))
    companions = [
        [ATTRIBUTES["companion"].index(name) for name in names] for names in COMPANIONS.values()
    ]
    counts = torch.tensor([len(row) for row in companions])[sky]
    table = torch.tensor([(row * 4)[:4] for row in companions])
    trees = (below("trees", 6) - 2).clamp(min=0)  # none in every second scene
    bare = (ground == 3) | (subject >= SUBJECTS.index("pine tree"))
    columns = dict(
        subject=subject,
        colour=colour,
        sky=sky,
        ground=ground,
        place=below("place", 3),
        scale=below("scale", 3),
        companion=table[sky, below("companion", counts)],
        trees=trees.masked_fill(bare, 0),
    )
    return Scenes(torch.stack([columns[name] for name in ATTRIBUTES], dim=1), scenes.seed)


assert [field.name for field in fields(Scene)] == [*ATTRIBUTES, "seed"]
