"""Chapter 7: the captioned world, tiny postcards drawn by code.

A Scene is a description; `render`, `caption` and `masks` say it as a picture, a sentence and a map.
"""

from minisd.data.postcards.canvas import LAYERS
from minisd.data.postcards.captions import caption
from minisd.data.postcards.dataset import CLASSES, Postcards
from minisd.data.postcards.drawing import draw, masks, render
from minisd.data.postcards.scenes import (
    ATTRIBUTES,
    JUDGED,
    SECOND,
    TWO,
    Scene,
    Scenes,
    Split,
    combinations,
    draw_scenes,
    is_held_out,
    is_held_out_pair,
    pairs,
)

__all__ = [
    "ATTRIBUTES", "CLASSES", "JUDGED", "LAYERS", "Postcards", "SECOND", "Scene", "Scenes", "Split",
    "TWO", "caption", "combinations", "draw", "draw_scenes", "is_held_out", "is_held_out_pair",
    "masks", "pairs", "render",
]  # fmt: skip
