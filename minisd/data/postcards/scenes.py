"""Chapter 7: what can be on a postcard, and how scenes are drawn at random.

A scene is ten named attributes and a seed. All that varies continuously (size, hue, horizon, the
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
import torch.nn.functional as F
from torch import Tensor

SUBJECTS = (
    "temple", "house", "castle", "lighthouse", "tent", "windmill", "rocket", "mushroom",
    "boat", "balloon", "pine tree", "palm tree",
)  # fmt: skip
COLOUR_NAMES = ("red", "yellow", "green", "blue", "purple", "white")
ATTRIBUTES = {
    "subject": SUBJECTS,
    "colour": COLOUR_NAMES,
    "sky": ("day", "sunset", "night", "storm"),
    "ground": ("grass", "sand", "snow", "sea"),
    "place": ("left", "middle", "right"),
    "scale": ("small", "medium", "large"),
    "companion": ("none", "sun", "moon", "birds", "clouds", "lightning"),
    "trees": (0, 1, 2, 3),
    "second": ("none", *SUBJECTS),  # to the right of the first, which is then on the left
    "second_colour": ("none", *COLOUR_NAMES),
}
JUDGED = ("subject", "colour", "sky", "ground", "place")  # what a full caption names
SECOND = ("second", "second_colour")  # and of two subjects, these
TWO = 0.0  # the share of cards with two subjects, of which the models learn
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
    on land, and not around a subject that is a tree. A card may hold a second subject, of another
    kind: then the first is on the left, the second to the right of it, and there are no trees.
    `seed` is in [0, 2^32).
    """

    subject: str = "house"
    colour: str = "red"
    sky: str = "day"
    ground: str = "grass"
    place: str = "middle"
    scale: str = "medium"
    companion: str = "none"
    trees: int = 0
    second: str = "none"
    second_colour: str = "none"
    seed: int = 0

    def __post_init__(self):
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, got {getattr(self, name)!r}")
        if "boat" in (self.subject, self.second) and self.ground != "sea":
            raise ValueError(f"a boat is only ever on the sea, not on {self.ground}")
        if self.companion not in COMPANIONS[self.sky]:
            raise ValueError(
                f"the {self.sky} sky holds one of {COMPANIONS[self.sky]}, got {self.companion!r}"
            )
        if (self.second == "none") != (self.second_colour == "none"):
            raise ValueError(
                f"a second subject has a colour, and none has none: got {self.second!r} and "
                f"{self.second_colour!r}"
            )
        if self.second == self.subject:
            raise ValueError(f"two subjects are of two kinds, got {self.subject!r} twice")
        if self.second != "none" and self.place != "left":
            raise ValueError(f"of two subjects, the first is on the left, got {self.place!r}")
        if self.trees and self.second != "none":
            raise ValueError("no trees around two subjects: set trees=0")
        if self.trees and (self.ground == "sea" or self.subject.endswith("tree")):
            raise ValueError(f"no trees around a {self.subject} on {self.ground}: set trees=0")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")


class Scenes(Sequence[Scene]):
    """A batch of scenes as tensors: `labels` (n,10), in the order of ATTRIBUTES, and `seed` (n,).

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

    def seconds(self) -> "Scenes":
        """Return the scenes with the second subject in the place of the first, on the right."""
        labels = self.labels.clone()
        names = list(ATTRIBUTES)
        for name in SECOND:  # 0 is none, 1 the first value of the attribute
            first = names.index("subject" if name == "second" else "colour")
            labels[:, first] = (getattr(self, name) - 1).clamp(min=0)
        labels[:, names.index("place")] = ATTRIBUTES["place"].index("right")
        return Scenes(labels, self.seed)

    def exchanged(self, what: Literal["colours", "sides"]) -> "Scenes":
        """Return the scenes of two subjects with their colours exchanged, or their sides.

        The words of a caption stay the same, and mean another picture. Raises ValueError for scenes
        of one subject, and for another word.
        """
        if what not in ("colours", "sides"):
            raise ValueError(f'what to exchange must be "colours" or "sides", got {what!r}')
        if not bool((self.second > 0).all()):
            raise ValueError("a scene of one subject has nothing to exchange")
        labels, names = self.labels.clone(), list(ATTRIBUTES)
        for first, second in zip(("subject", "colour"), SECOND, strict=True):
            if what == "sides" or first == "colour":
                labels[:, names.index(first)] = getattr(self, second) - 1
                labels[:, names.index(second)] = getattr(self, first) + 1
        return Scenes(labels, self.seed)

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


def is_held_out_pair(one: str, other: str) -> bool:
    """Say whether a pair of subjects, in either order, is kept from training, by the same rule."""
    digest = sha256(" and ".join(sorted((one, other))).encode()).digest()
    return int.from_bytes(digest, "big") % 10 == 0


@cache
def pairs(split: Split) -> Tensor:
    """Return the labels (m,5) of two subjects in a split: subject, colour, sky, second, its colour.

    Held out are the pairs of subjects; the combinations with colour and sky are those of training,
    so that only the pair is new.
    """
    of_sky: list[list[tuple[int, int]]] = [[] for _ in ATTRIBUTES["sky"]]
    for subject, colour, sky in combinations("all" if split == "all" else "train").tolist():
        of_sky[sky].append((subject, colour))
    held_out = [[is_held_out_pair(one, other) for other in SUBJECTS] for one in SUBJECTS]
    return torch.tensor(
        [
            (subject, colour, sky, second + 1, second_colour + 1)
            for sky, options in enumerate(of_sky)
            for (subject, colour), (second, second_colour) in product(options, options)
            if subject != second
            and (split == "all" or held_out[subject][second] == (split == "held_out"))
        ]
    )


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


def draw_scenes(split: Split, index: Tensor, seed: int = 0, two: float = 0.0) -> Scenes:
    """Return the scenes of a split at `index` (n,), each a function of its index and `seed` alone.

    A share of `two` of them holds two subjects. Raises ValueError for an unknown split, a seed
    outside [0, 2^32) or a share outside [0,1].
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in [0, 2^32), got {seed}")
    if not 0 <= two <= 1:
        raise ValueError(f"the share of cards with two subjects must be in [0,1], got {two}")
    keys = mix(crc32(split.encode()), seed, index)
    scenes = Scenes(torch.zeros(len(index), len(ATTRIBUTES), dtype=torch.int64), keys)

    def below(name: str, n: int | Tensor) -> Tensor:
        return (scenes.uniform(name) * n).long()

    allowed = combinations(split)
    rows = F.pad(allowed[below("combination", len(allowed))], (0, 2))  # 0: no second subject
    double = scenes.uniform("two") < two
    if two:
        rows = torch.where(double[:, None], pairs(split)[below("pair", len(pairs(split)))], rows)
    subject, colour, sky, second, second_colour = rows.unbind(1)
    boat = SUBJECTS.index("boat")
    ground = torch.where((subject == boat) | (second == boat + 1), 3, below("ground", 4))
    companions = [
        [ATTRIBUTES["companion"].index(name) for name in names] for names in COMPANIONS.values()
    ]
    counts = torch.tensor([len(row) for row in companions])[sky]
    table = torch.tensor([(row * 4)[:4] for row in companions])
    trees = (below("trees", 6) - 2).clamp(min=0)  # none in every second scene
    bare = (ground == 3) | (subject >= SUBJECTS.index("pine tree")) | double
    columns = dict(
        subject=subject,
        colour=colour,
        sky=sky,
        ground=ground,
        place=below("place", 3).masked_fill(double, 0),
        scale=below("scale", 3),
        companion=table[sky, below("companion", counts)],
        trees=trees.masked_fill(bare, 0),
        second=second,
        second_colour=second_colour,
    )
    return Scenes(torch.stack([columns[name] for name in ATTRIBUTES], dim=1), scenes.seed)


assert [field.name for field in fields(Scene)] == [*ATTRIBUTES, "seed"]
