"""Chapter 7: a scene becomes a picture, and a map of what is where."""

from typing import Literal, overload

import torch
from torch import Tensor

from minisd.data.postcards.canvas import Canvas, rgb
from minisd.data.postcards.scenery import (
    COMPANIONS,
    GROUND,
    paint_ground,
    paint_sky,
    paint_water,
    paint_weather,
)
from minisd.data.postcards.scenes import SUBJECTS, Scene, Scenes
from minisd.data.postcards.shapes import both, ellipse
from minisd.data.postcards.subjects import SHAPES

CHUNK = 2**20  # pixels painted at once, to bound the memory

# One row per value of the attribute, in its order in ATTRIBUTES.
COLOURS = rgb("d8292f", "f7c815", "2f9e41", "2659d9", "9240c4", "f6f3ec")
LIGHT = rgb("ffffff", "ffe6d2", "abb3de", "d8dde2")  # mild: a colour stays what it is
LEAF = rgb("2e7d45", "3f8f4a", "4d8a72", "2e7d45")
GLOW = rgb("4a5a70", "ffd98a", "ffd75a", "ffdf8f")  # windows are lit when it is dark
SCALE = torch.tensor([0.36, 0.46, 0.56]).view(3, 1, 1, 1)
PLACE = torch.tensor([0.25, 0.5, 0.75]).view(3, 1, 1, 1)
TREES = torch.tensor([[0.62, 0.80, 0.93], [0.10, 0.90, 0.22], [0.38, 0.20, 0.07]])[..., None, None]


def render(scenes: Scene | Scenes, size: int = 64) -> Tensor:
    """Paint scenes: (n,3,size,size) in [-1,1], in the 256 steps of a picture file.

    One Scene gives (3,size,size). Raises ValueError for a size below 8.
    """
    return draw(scenes, size, with_masks=False)[0]


def masks(scenes: Scene | Scenes, size: int = 64) -> Tensor:
    """Say what is where: (n,size,size) int64, the index in LAYERS of what is on top.

    One Scene gives (size,size). Shadows and mirror images belong to the ground, stars and rain to
    what they are before. Raises ValueError for a size below 8.
    """
    return draw(scenes, size)[1]


@overload
def draw(
    scenes: Scene | Scenes, size: int = 64, with_masks: Literal[True] = True
) -> tuple[Tensor, Tensor]: ...


@overload
def draw(scenes: Scene | Scenes, size: int, with_masks: bool) -> tuple[Tensor, Tensor | None]: ...


def draw(
    scenes: Scene | Scenes, size: int = 64, with_masks: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Return what `render` and `masks` return, in the time of one."""
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    if isinstance(scenes, Scene):
        image, label = draw(Scenes.of([scenes]), size, with_masks)
        return image[0], None if label is None else label[0]
    n = len(scenes)
    image = torch.empty(n, 3, size, size)
    label = torch.zeros(n, 1, size, size, dtype=torch.uint8) if with_masks else None
    canvas = Canvas(scenes, image, label)
    for rows in scenes.subject.argsort().split(max(1, CHUNK // size**2)):  # like beside like
        for part in canvas.at(rows):
            paint(part)
    image.mul_(255).round_().div_(127.5).sub_(1)
    return image, None if label is None else label[:, 0].long()


def paint(canvas: Canvas) -> None:
    """Paint all layers, the farthest first."""
    paint_sky(canvas)
    for companion, paint_companion in COMPANIONS.items():
        for part in canvas.where(canvas.has("companion", companion)):
            paint_companion(part)
    paint_ground(canvas)
    paint_trees(canvas)
    for subject in canvas.subjects():
        sea = subject.has("ground", "sea")
        for part in subject.where(~sea):
            paint_shadow(part)
        for _ in range(2):  # once would do; the bundled models have learned this softer edge
            for part in subject.where(sea & ~subject.has("subject", "boat", "balloon")):
                paint_island(part)
    for subject in canvas.subjects():
        paint_subject(subject)
    for part in canvas.where(canvas.has("ground", "sea")):
        paint_water(part, shore(part))
    for part in canvas.where(canvas.has("sky", "storm")):
        paint_weather(part)


def standing(canvas: Canvas) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the subject stands, x and y, and its scale, about its height: (n,1,1,1) each.

    Two subjects stand in one line, and each is 0.85 times the size of one alone.
    """
    x = canvas.pick(PLACE, "place") + canvas.vary("x", -0.04, 0.04)
    y = canvas.horizon - canvas.shared("y", 0.06, 0.13)
    share = torch.tensor(1.0).where(canvas.has("second", "none"), torch.tensor(0.85))
    return x, y, share * canvas.pick(SCALE, "scale") * canvas.vary("scale", 0.95, 1.05)


def shore(canvas: Canvas) -> Tensor:
    """Return the height (n,1,1,1) of the water's edge, where mirror images begin: the lowest."""
    edges = []
    for subject in (canvas, canvas.second()):
        _, y, scale = standing(subject)
        edge = y.where(subject.has("subject", "boat"), y - 0.06 * scale)
        edges.append(canvas.horizon.where(subject.has("subject", "balloon"), edge))
    first, second = edges
    return first.where(canvas.has("second", "none"), first.minimum(second))


def paint_shadow(canvas: Canvas) -> None:
    """Lay a flat shadow under the subject."""
    x, y, scale = standing(canvas)
    shadow = ellipse((canvas.x - x) / scale - 0.1, (canvas.y - y) / scale, 0.55, 0.06)
    canvas.paint(shadow, rgb("2a2c3a"), opacity=0.3, unit=scale / 2)


def paint_island(canvas: Canvas) -> None:
    """Raise an island, sand under grass, for a subject that cannot swim."""
    x, y, scale = standing(canvas)
    u, v = (canvas.x - x) / scale, (canvas.y - y) / scale
    island = both(ellipse(u, v + 0.05, canvas.vary("island", 0.66, 0.78), 0.13), -0.06 - v)
    grass, sand, *_ = torch.stack(list(GROUND.values()), dim=1)  # each by sky
    canvas.paint(island, canvas.pick(sand, "sky"), "ground", unit=scale)
    canvas.paint(both(island, 0.02 - v), canvas.pick(grass, "sky"), unit=scale)


def paint_subject(canvas: Canvas) -> None:
    """Paint the subject; a balloon floats in the sky."""
    for name in SUBJECTS:
        for part in canvas.where(canvas.has("subject", name)):
            x, y, scale = standing(part)
            if name == "balloon":
                y, scale = part.horizon + part.vary("float", 0.04, 0.1), 0.88 * scale
            main = part.pick(COLOURS, "colour")
            jitter = torch.cat([part.vary(f"tint {c}", -0.04, 0.04) for c in "rgb"], dim=1)
            paint_shapes(part, name, "subject", (main + jitter).clamp(0, 1), x, y, scale)


def paint_trees(canvas: Canvas) -> None:
    """Set one to three small trees beside the subject: pines, but palms on sand."""
    sand = canvas.has("ground", "sand")
    for i in range(3):
        growing = (canvas.scenes.trees > i).view(-1, 1, 1, 1)
        for tree, ground in (("palm tree", sand), ("pine tree", ~sand)):
            for part in canvas.where(growing & ground):
                x = part.pick(TREES[:, i : i + 1], "place") + part.vary(f"tree x {i}", -0.03, 0.03)
                y = part.horizon - part.vary(f"tree y {i}", 0.01, 0.06)
                scale = part.vary(f"tree {i}", 0.2, 0.28)
                paint_shapes(part, tree, "companions", part.pick(LEAF, "ground"), x, y, scale)


def paint_shapes(
    canvas: Canvas, name: str, label: str, colour: Tensor, x: Tensor, y: Tensor, scale: Tensor
) -> None:
    """Paint a subject's shapes, standing at (x, y), with its materials in the light of the sky."""
    light = canvas.pick(LIGHT, "sky")
    glow = canvas.pick(GLOW, "sky")
    materials = {
        "main": colour * light,
        "shade": 0.76 * colour * light,
        "pale": colour.lerp(torch.ones(()), 0.3) * light,
        "roof": rgb("7a4a3c") * light,
        "wood": rgb("7b5233") * light,
        "dark": rgb("3b302e") * light,
        "cream": rgb("f4ead2") * light,
        "dim": rgb("c3bba8") * light,
        "glow": glow,
        "lamp": glow.lerp(rgb("ffe9a0"), 0.6),
    }
    u, v = (canvas.x - x) / scale, (canvas.y - y) / scale
    for distance, material in SHAPES[name](u, v, canvas.vary):
        canvas.paint(distance, materials[material], label, unit=scale)
