"""Checkers for the exercises of chapter 1, the big picture."""

from collections import Counter
from collections.abc import Callable
from functools import cache

from torch import Tensor

from minisd.data.postcards import ATTRIBUTES, Postcards
from minisd.exercises.checking import Wrong, exercise

THINGS = ("ids", "vectors", "noise", "latents", "picture")
CHANGED = {  # by each setting, of the things on the way
    "nothing": set(),
    "prompt": {"ids", "vectors", "latents", "picture"},
    "seed": {"noise", "latents", "picture"},
    "num_inference_steps": {"latents", "picture"},
    "guidance_scale": {"latents", "picture"},
    "scheduler": {"latents", "picture"},
    "decoder": {"picture"},
}
HINTS = {  # by what was named too much, or forgotten
    "ids": "Only the tokenizer makes ids, and it sees nothing but the prompt.",
    "vectors": "The text encoder turns ids into vectors. It has read them before the loop begins.",
    "noise": "The noise to begin with is drawn from the seed, before anybody reads the prompt.",
    "latents": "The loop makes the latents, from the noise and the vectors, step by step.",
    "picture": "The decoder makes the picture, from the latents alone.",
}


@exercise("1.1")
def latent_size(answer: Callable) -> None:
    """Ask for pictures of several shapes, and for latents of 4 and of 16 channels."""
    for height, width, channels, down in (
        (512, 512, 4, 8),
        (64, 64, 4, 8),
        (512, 768, 4, 8),
        (1024, 1024, 16, 8),
        (256, 256, 3, 4),
    ):
        shape = (channels, height // down, width // down)
        factor = 3 * height * width / (channels * shape[1] * shape[2])
        asked = f"For {height} x {width} pixels, {channels} channels and down={down}"
        got = answer(height, width, channels, down)
        if not isinstance(got, tuple) or len(got) != 2:
            raise Wrong("Return two things: the shape of the latents, and the factor.")
        if tuple(got[0]) != shape:
            hint = "Channels come first, then height, then width."
            raise Wrong(f"{asked} the latents are {shape}, not {got[0]!r}. {hint}")
        if abs(got[1] - factor) > 1e-6:
            hints = {
                down**2: "Do not forget the channels: three before, others after.",
                down: "Both the height and the width shrink.",
                1 / factor: "That is the inverse: how many numbers go in for each that comes out?",
            }
            hint = next((hints[n] for n in hints if abs(got[1] - n) < 1e-6), "Count the numbers.")
            raise Wrong(f"{asked} the factor is not {got[1]:g}. {hint}")


@exercise("1.2")
def what_changes(answer: Callable) -> None:
    """Ask about each setting, and name the first thing that is too much or missing."""
    for setting, wanted in CHANGED.items():
        got = answer(setting)
        if not isinstance(got, set):
            raise Wrong(f"Return a set of names, such as {{'noise'}}, not {got!r}.")
        unknown = got - set(THINGS)
        if unknown:
            raise Wrong(f"{sorted(unknown)} are no things on the way: use {', '.join(THINGS)}.")
        change = "If nothing changes" if setting == "nothing" else f"If the {setting} changes"
        for thing in THINGS:
            if thing in got - wanted:
                raise Wrong(f"{change}, the {thing} cannot change. {HINTS[thing]}")
            if thing in wanted - got:
                raise Wrong(f"{change}, something happens to the {thing}. {HINTS[thing]}")


@cache
def cards() -> tuple[Tensor, list[str]]:
    """Return postcards (n,3,64,64) in [-1,1], and the word for the sky of each."""
    data = Postcards("test", 32, seed=1)
    return data.images(), [ATTRIBUTES["sky"][label] for label in data.scenes.sky.tolist()]


@exercise("1.3")
def guess_sky(answer: Callable) -> None:
    """Show postcards, and count the skies that are taken for another."""
    images, skies = cards()
    got = answer(images.clone())
    if not isinstance(got, list) or len(got) != len(skies):
        raise Wrong(f"Return a list of {len(skies)} words, one for each postcard.")
    unknown = set(got) - set(ATTRIBUTES["sky"])
    if unknown:
        known = ", ".join(ATTRIBUTES["sky"])
        raise Wrong(f"{sorted(map(str, unknown))} are no skies: use {known}.")
    mistakes = Counter((sky, guess) for sky, guess in zip(skies, got, strict=True) if sky != guess)
    wrong = sum(mistakes.values())
    if wrong / len(skies) > 0.05:
        ((sky, guess), count), *_ = mistakes.most_common(1)
        raise Wrong(
            f"{wrong} of {len(skies)} are wrong. Most often ({count} times) you say {guess} where "
            f"it is {sky}. Look at the first rows of each picture, where there is only sky: how "
            "red, green and blue are they on average?"
        )
