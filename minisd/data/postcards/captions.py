"""Chapter 6: a scene becomes a sentence; what it names is true, and often it does not name all."""

from collections.abc import Sequence
from typing import TypeVar

import torch

from minisd.data.postcards.scenes import ATTRIBUTES, Scene

NOUNS = {
    "temple": ("temple", "shrine"),
    "house": ("house", "cottage"),
    "castle": ("castle", "fortress"),
    "lighthouse": ("lighthouse",),
    "tent": ("tent",),
    "windmill": ("windmill", "mill"),
    "rocket": ("rocket", "spaceship"),
    "mushroom": ("mushroom", "toadstool"),
    "boat": ("boat", "sailing boat"),
    "balloon": ("balloon", "hot-air balloon"),
    "pine tree": ("pine tree", "pine"),
    "palm tree": ("palm tree", "palm"),
}
SIZES = {"small": ("small", "little"), "medium": ("",), "large": ("large", "big")}
GROUNDS = {
    "grass": ("on the grass", "in a meadow"),
    "sand": ("on the sand", "in the desert"),
    "snow": ("in the snow", "on snowy ground"),
    "sea": ("by the sea", "on an island"),
}
AFLOAT = ("on the sea", "on the water")  # a boat
ABOVE = {  # a balloon, and the sky itself
    "grass": ("above the grass", "over a meadow"),
    "sand": ("above the sand", "over the desert"),
    "snow": ("above the snow", "over snowy ground"),
    "sea": ("above the sea", "over the water"),
}
TOGETHER = {  # two subjects, each standing, swimming or floating as it does
    "grass": ("on the grass", "in a meadow"),
    "sand": ("on the sand", "in the desert"),
    "snow": ("in the snow", "on snowy ground"),
    "sea": ("by the sea", "by the water"),
}
SKIES = {
    "day": ("by day", "in daylight", "under a blue sky"),
    "sunset": ("at sunset", "at dusk", "under a sunset sky"),
    "night": ("at night", "under the stars", "under a night sky"),
    "storm": ("in a storm", "in stormy weather", "under a stormy sky"),
}
SCENERY = {  # a caption without a subject
    "day": ("a bright day",),
    "sunset": ("a sunset", "dusk"),
    "night": ("a night", "a starry night"),
    "storm": ("a storm", "stormy weather"),
}
PLACES = {
    "left": ("on the left", "on the left side"),
    "middle": ("in the middle", "in the centre"),
    "right": ("on the right", "on the right side"),
}
COMPANIONS = {
    "sun": ("the sun",),
    "moon": ("the moon",),
    "birds": ("birds", "three birds"),
    "clouds": ("clouds", "two clouds"),
    "lightning": ("lightning", "a flash of lightning"),
}
ORDERS = (  # of two subjects, the one on the left first; each says which is where
    "{0} left of {1}", "{0} to the left of {1}", "{1} right of {0}", "{1} to the right of {0}",
    "{0} on the left and {1} on the right", "{1} on the right and {0} on the left",
)  # fmt: skip
SIDE_BY_SIDE = ("{0} and {1}", "{1} and {0}", "{0} beside {1}", "{1} next to {0}")  # none does
TREES = ("", "a tree", "two trees", "three trees")
FRAMES = ("", "", "", "a picture of ", "a postcard of ")


T = TypeVar("T")


class Choices:
    """Reads a large integer as a row of choices, each out of as many as there are."""

    def __init__(self, number: int):
        self.number = number

    def __call__(self, options: Sequence[T]) -> T:
        self.number, choice = divmod(self.number, len(options))
        return options[choice]

    def chance(self, n: int) -> bool:
        """Say yes in one of n cases."""
        self.number, choice = divmod(self.number, n)
        return choice == 0


def caption(scene: Scene, generator: torch.Generator | None = None, full: bool = False) -> str:
    """Describe a scene in lower-case English.

    Without a generator, the canonical caption: "a red temple by the sea at sunset, on the left", or
    "a red temple left of a blue tent on the grass by day". With one, synonyms, orders and
    companions vary, and half the captions leave things out, but of two subjects neither; with
    `full` as well, subjects, colours, sky, ground and place are always named.
    """
    if generator is None:
        return canonical(scene)
    return compose(scene, int(torch.randint(2**62, (), generator=generator)), full)


def canonical(scene: Scene) -> str:
    """Return the one full caption that every scene has, in the plainest words."""
    ground, sky, place = grounds(scene)[0], SKIES[scene.sky][0], PLACES[scene.place][0]
    if scene.second != "none":
        second = f"a {scene.second_colour} {scene.second}"
        return f"a {scene.colour} {scene.subject} left of {second} {ground} {sky}"
    return f"a {scene.colour} {scene.subject} {ground} {sky}, {place}"


def grounds(scene: Scene) -> tuple[str, ...]:
    """Return how to say where the subject stands, swims or floats."""
    if scene.second != "none":
        return TOGETHER[scene.ground]
    if scene.subject == "boat":
        return AFLOAT
    return (ABOVE if scene.subject == "balloon" else GROUNDS)[scene.ground]


def compose(scene: Scene, number: int, full: bool = False, mirrored: bool = False) -> str:
    """Return the caption that `number`, in [0, 2^62), picks among all true ones.

    If `mirrored`, two subjects change sides in it: the same words, and false.
    """
    pick = Choices(number)
    everything = pick.chance(2) or full

    def maybe(phrase: str) -> str:
        return phrase if pick.chance(2) or everything else ""

    if not everything and pick.chance(8):
        return f"{pick(SCENERY[scene.sky])} {pick(ABOVE[scene.ground])}"

    def subject(noun: str, colour: str) -> str:
        size = pick(SIZES[scene.scale]) if pick.chance(3) else ""
        colour = colour if everything or not pick.chance(4) else ""
        return with_article(f"{size} {colour} {pick(NOUNS[noun])}")

    noun = subject(scene.subject, scene.colour)
    ground, sky = maybe(pick(grounds(scene))), maybe(pick(SKIES[scene.sky]))
    place = maybe(pick(PLACES[scene.place]))
    if scene.second != "none":
        in_order = everything or not pick.chance(2)
        second = subject(scene.second, scene.second_colour)
        if mirrored:
            noun, second = second, noun
        noun, place = pick(ORDERS if in_order else SIDE_BY_SIDE).format(noun, second), ""
    company = []
    if scene.companion != "none" and pick.chance(3):
        company.append(pick(COMPANIONS[scene.companion]))
    if scene.trees and pick.chance(3):
        company.append(TREES[scene.trees])
    along = f"with {' and '.join(company)}" if company else ""
    frame = pick(FRAMES)
    orders = (
        (f"{frame}{noun} {ground} {along} {sky}", place),
        (f"{frame}{noun} {ground} {along}", place, sky),
        (sky, f"{noun} {ground} {along}", place),
        (place, f"{noun} {ground} {along} {sky}"),
    )
    parts = (" ".join(part.split()) for part in pick(orders))
    return ", ".join(part for part in parts if part)


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a phrase."""
    phrase = " ".join(phrase.split())
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def prompts(attribute: str) -> list[list[str]]:
    """Return, for each value of an attribute, captions that name it, a noun, and nothing else.

    They run through all nouns and synonyms, so that their mean stands for the value alone. Raises
    ValueError for an attribute that full captions do not name.
    """
    nouns = [noun for synonyms in NOUNS.values() for noun in synonyms]
    standing = [noun for noun in nouns if noun not in NOUNS["boat"] + NOUNS["balloon"]]

    def pairs(
        nouns: list[str], phrases: dict[str, tuple[str, ...]], comma: str = ""
    ) -> list[list[str]]:
        return [
            [f"a {n}{comma} {phrase}" for n in nouns for phrase in row] for row in phrases.values()
        ]

    written = {
        "subject": [[f"{frame}a {n}" for frame in FRAMES for n in row] for row in NOUNS.values()],
        "colour": [[f"a {colour} {n}" for n in nouns] for colour in ATTRIBUTES["colour"]],
        "sky": pairs(nouns, SKIES),
        "ground": pairs(standing, GROUNDS),
        "place": pairs(nouns, PLACES, comma=","),
    }
    if attribute not in written:
        raise ValueError(f"attribute must be one of {', '.join(written)}, got {attribute!r}")
    return written[attribute]
