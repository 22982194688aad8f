"""Chapter 7: sky and ground of a postcard, and what is in the air."""

import torch
from torch import Tensor

from minisd.data.postcards.canvas import Canvas, rgb
from minisd.data.postcards.shapes import both, ellipse, repeat, stroke, union

# One row per value of the attribute, in its order in ATTRIBUTES: day, sunset, night, storm.
SKY_TOP = rgb("3f8fe0", "5b3a86", "060a24", "3a404c")
SKY_MIDDLE = rgb("86c0f2", "f0705a", "131c48", "5d6672")
SKY_BOTTOM = rgb("d9eefb", "ffd07a", "33427c", "98a2a8")
CLOUD = rgb("ffffff", "ffcdb8", "5a6488", "2c313b")
GROUND = {  # under each sky: grass, sand, snow, sea
    "day": rgb("6fb348", "ecd39a", "f2f6fb", "2f7fb5"),
    "sunset": rgb("86913a", "e7a564", "f0cfdc", "536c98"),
    "night": rgb("1f4a35", "75684f", "8094c8", "182f68"),
    "storm": rgb("3f7440", "a3916a", "bcc7d4", "2b5674"),
}
OPEN_X = torch.tensor([0.76, 0.16, 0.24]).view(3, 1, 1, 1)  # where the sky is free, by place
WHITE, PALE = rgb("ffffff"), rgb("fff3cf")


def open_x(canvas: Canvas) -> Tensor:
    """Return where in the sky (n,1,1,1) the subject does not hide things."""
    between = canvas.pick(OPEN_X, "place").where(canvas.has("second", "none"), torch.tensor(0.5))
    return between + canvas.vary("sky x", -0.07, 0.07)


def paint_sky(canvas: Canvas) -> None:
    """Fill everything with the sky: three colours from the horizon up, and stars at night."""
    warm = canvas.vary("warmth", -0.04, 0.04) * torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1)
    t = (canvas.y - canvas.horizon) / (1 - canvas.horizon)
    bend = canvas.vary("bend", 0.35, 0.5)
    bottom, middle, top = (
        canvas.pick(table, "sky") + warm for table in (SKY_BOTTOM, SKY_MIDDLE, SKY_TOP)
    )
    sky = bottom.lerp(middle, (t / bend).clamp(0, 1))
    canvas.image.copy_(sky.lerp(top, ((t - bend) / (1 - bend)).clamp(0, 1)).clamp(0, 1))
    for part in canvas.where(canvas.has("sky", "night")):
        part.paint(part.dots("stars", 7, 8, 0.007, 0.007), PALE, opacity=0.5)


def paint_sun(canvas: Canvas) -> None:
    """Set the sun: high and yellow by day, low and large at sunset."""
    low = canvas.has("sky", "sunset")
    height = canvas.vary("sun", 0.8, 0.88).where(
        ~low, canvas.horizon + canvas.vary("sun", 0.07, 0.17)
    )
    radius = canvas.vary("radius", 0.07, 0.09) + 0.035 * low
    sun = ellipse(canvas.x - open_x(canvas), canvas.y - height, 1.0, 1.0) + (1 - radius)
    canvas.glow(sun, PALE, 0.14, 0.2)
    canvas.glow(sun, PALE, 0.07, 0.3)
    canvas.paint(sun, PALE.where(low, rgb("ffd93b")), "companions")


def paint_moon(canvas: Canvas) -> None:
    """Set a moon between crescent and full, with a faint halo."""
    x, y = canvas.x - open_x(canvas), canvas.y - canvas.vary("moon", 0.78, 0.86)
    disc, phase = ellipse(x, y, 0.09, 0.09), canvas.vary("phase", 0.04, 0.19)
    canvas.glow(disc, PALE, 0.12, 0.25)
    canvas.paint(both(disc, -ellipse(x - phase, y - phase / 3, 0.085, 0.085)), PALE, "companions")


def paint_birds(canvas: Canvas) -> None:
    """Let three gulls fly on curved wings."""
    x, y = canvas.x - open_x(canvas), canvas.y - canvas.vary("birds", 0.74, 0.83)
    for i, (right, up) in enumerate(((-0.1, -0.01), (0.03, 0.07), (0.1, -0.06))):
        wing = canvas.vary(f"wing {i}", 0.055, 0.075)
        a = (x - right).abs() / wing
        curve = (y - up - canvas.vary(f"bird {i}", -0.02, 0.02)) / wing - 1.5 * a * (1 - 0.7 * a)
        canvas.paint(both(0.6 * curve.abs() - 0.1, a - 1), rgb("2b2b38"), "companions", unit=wing)


def paint_clouds(canvas: Canvas) -> None:
    """Hang two clouds with flat feet: white by day, rosy at sunset, dark in a storm."""
    for i in range(2):
        width = canvas.vary(f"cloud width {i}", 0.8, 1.2)
        x = (canvas.x - (open_x(canvas) + 0.45 * i) % 1.0) / width
        y = canvas.y - canvas.vary(f"cloud {i}", 0.72, 0.88)
        puffs = union(
            ellipse(x, y, 0.085, 0.075),
            ellipse(x + 0.09, y + 0.03, 0.075, 0.05),
            ellipse(x - 0.09, y + 0.025, 0.08, 0.055),
        )
        canvas.paint(both(puffs, -0.035 - y), canvas.pick(CLOUD, "sky"), "companions", 0.92)


def paint_lightning(canvas: Canvas) -> None:
    """Strike a bolt from the top of the sky to the horizon, and its flash."""
    x = (canvas.x - open_x(canvas)) * canvas.vary("bolt", 0.8, 1.3)
    corners = ((0.02, 1.02), (-0.05, 0.8), (0.05, 0.75), (-0.04, 0.56), (0.03, 0.52), (-0.02, 0.36))
    pairs = zip(corners, corners[1:], strict=False)
    bolt = union(*(stroke(x, canvas.y, a, b, 0.03 - 0.003 * i) for i, (a, b) in enumerate(pairs)))
    canvas.glow(bolt, rgb("cdd6ff"), 0.1, 0.35)
    canvas.paint(bolt, rgb("fffbe0"), "companions")


def paint_ground(canvas: Canvas) -> None:
    """Raise hills, dunes or mountains behind a plain, or spread the sea with light on its waves."""
    table = torch.stack(list(GROUND.values()))
    hue = canvas.vary("hue", -0.03, 0.03) * torch.tensor([1.0, 0.2, -1.0]).view(3, 1, 1)
    colour = (table[canvas.scenes.sky, canvas.scenes.ground] + hue).clamp(0, 1)
    far = (0.85 * colour).lerp(canvas.pick(SKY_BOTTOM, "sky"), 0.25)
    depth = (canvas.y / canvas.horizon).clamp(0, 1)  # 0 at our feet, 1 at the horizon
    near = (0.8 + 0.24 * depth) * colour
    land = canvas.has("ground", "grass", "sand", "snow")
    for part in canvas.where(land):
        wave, shift = part.vary("wave", 7, 11), part.vary("shift", 0, 6)
        hills = 0.5 + 0.5 * torch.sin(part.x * wave + shift)
        peaks = 3 * repeat(part.x * wave / 4 + shift, 1.0).abs()
        ridge = peaks.where(part.has("ground", "snow"), hills) * part.vary("ridge", 0.05, 0.1)
        part.paint(part.y - part.horizon - ridge, far[land.flatten()], "ground")
    slope = canvas.vary("slope", -0.04, 0.04) * land
    canvas.paint(canvas.y - canvas.horizon - slope * (canvas.x - 0.5), near.clamp(0, 1), "ground")
    for part in canvas.where(land):
        tufts = both(part.dots("tufts", 9, 16, 0.014, 0.008), part.y - part.horizon + 0.04)
        part.paint(tufts, 0.82 * colour[land.flatten()], opacity=0.5)
    for part in canvas.where(~land):
        waves = both(part.dots("waves", 6, 20, 0.05, 0.006), part.y - part.horizon + 0.01)
        part.paint(waves, part.pick(SKY_BOTTOM, "sky"), opacity=0.3)


def paint_water(canvas: Canvas, shore: Tensor) -> None:
    """Mirror what is above the shore (n,1,1,1) in the sea below it."""
    row = ((1 - 2 * shore + canvas.y) * canvas.size - 0.5).round().long()
    row = row.clamp(0, canvas.size - 1).expand(-1, 3, -1, canvas.size)
    canvas.paint(canvas.y - shore, canvas.image.gather(2, row), opacity=0.45)


def paint_weather(canvas: Canvas) -> None:
    """Let it rain; over snow, let it snow."""
    snow = canvas.has("ground", "snow")
    for part in canvas.where(snow):
        part.paint(part.dots("flakes", 7, 8, 0.011, 0.011), WHITE, opacity=0.45)
    for part in canvas.where(~snow):
        part.paint(part.dots("rain", 12, 8, 0.003, 0.04, slant=0.25), rgb("e8eef6"), opacity=0.2)


COMPANIONS = {
    "sun": paint_sun,
    "moon": paint_moon,
    "clouds": paint_clouds,
    "lightning": paint_lightning,
    "birds": paint_birds,
}
