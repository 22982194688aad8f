"""Chapter 7: the twelve subjects of a postcard, each a few shapes.

A subject stands on v = 0, is about 1 high, and centred at u = 0. It yields (distance, material)
from back to front; `vary(name, low, high)` gives a number (n,1,1,1) that differs between scenes.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

from minisd.data.postcards.shapes import block, both, ellipse, repeat, stroke, union

Vary = Callable[[str, float, float], Tensor]
Shapes = Iterator[tuple[Tensor, str]]


def temple(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield three lotus towers on a stepped base: a small Angkor."""
    a = u.abs()
    middle = ellipse(u, v - 0.34, 0.14, vary("tower", 0.58, 0.66))
    towers = both(union(middle, ellipse(a - 0.3, v - 0.28, 0.1, 0.4)), 0.3 - v)
    yield towers, "main"
    yield both(towers, repeat(v, 0.11).abs() - 0.018, 0.36 - v), "shade"
    base = union(block(u, v, 0.17, 0.34, 0.41), block(u, v, 0, 0.18, 0.5))
    yield base, "main"
    yield both(base, union((v - 0.17).abs(), (v - 0.33).abs()) - 0.016), "shade"
    yield both(block(repeat(u, 0.14), v, 0.21, 0.29, 0.028), a - 0.38), "dark"
    yield block(u, v, 0, 0.27, 0.08, 0.06), "dark"
    yield block(u, v, 0, 0.21, 0.035), "glow"


def house(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield walls, a gabled roof and its chimney, a door and two windows."""
    yield block(u - 0.25, v, 0.6, 1.02, 0.06), "wood"
    wall = block(u, v, 0, 0.62, 0.44)
    yield wall, "main"
    yield both(wall, 0.2 - u), "shade"
    yield block(u, v, 0.6, vary("roof", 0.88, 1.0), 0.53, 0.12), "roof"
    yield block(u, v, 0, 0.32, 0.08), "wood"
    window = block(u.abs() - 0.27, v, 0.24, 0.4, 0.07)
    yield window - 0.025, "cream"
    yield window, "glow"


def castle(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield a keep between two pointed towers, with battlements and a gate."""
    a, tower = u.abs(), vary("tower", 0.56, 0.66)
    yield stroke(u, v, (0, 0.7), (0, 1.0), 0.025), "wood"
    yield block(u - 0.09, v, 0.9, 1.0, 0.09), "cream"
    teeth = both(repeat(u, 0.11).abs() - 0.033, a - 0.2)
    keep = union(block(u, v, 0, 0.7, 0.19), both(teeth, v - 0.78, 0.6 - v))
    yield keep, "main"
    yield both(keep, 0.1 - u), "shade"
    teeth = both(repeat(u, 0.11).abs() - 0.033, a - 0.42)
    wall = union(block(u, v, 0, 0.38, 0.42), both(teeth, v - 0.45, 0.3 - v))
    yield wall, "main"
    yield both(wall, v - 0.06), "shade"
    yield block(a - 0.4, v, 0, tower, 0.11), "main"
    yield both(block(a - 0.4, v, 0, tower, 0.11), 0.05 - a + 0.4), "shade"
    yield block(a - 0.4, v - tower, 0, 0.26, 0.16, 0.0), "roof"
    yield union(block(u, v, 0, 0.16, 0.1), ellipse(u, v - 0.16, 0.1, 0.1)), "dark"
    yield union(block(a - 0.4, v, 0.36, 0.47, 0.03), block(u, v, 0.5, 0.6, 0.04)), "glow"


def lighthouse(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield a tapering tower with two pale bands, a gallery and a lamp."""
    tower = block(u, v, 0, 0.74, 0.2, 0.12)
    yield tower, "main"
    yield both(tower, 0.06 - u), "shade"
    bands = both(tower, union((v - 0.24).abs(), (v - 0.54).abs()) - 0.045)
    yield bands, "cream"
    yield both(bands, 0.06 - u), "dim"
    yield block(u, v, 0.74, 0.9, 0.085), "lamp"
    yield block(u, v, 0.72, 0.77, 0.17), "dark"
    yield block(u, v, 0.88, 1.02, 0.13, 0.02), "roof"
    yield block(u, v, 0, 0.13, 0.05), "dark"


def tent(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield a ridge tent with an open door and its ropes."""
    top = vary("top", 0.62, 0.72)
    yield stroke(u.abs(), v, (0.0, 0.64), (0.68, 0.0), 0.018), "wood"
    cloth = block(u, v, 0, top, 0.56, 0.02)
    yield cloth, "main"
    yield both(cloth, repeat(u.abs() - 0.1 + 0.55 * v, 0.28).abs() - 0.05), "shade"
    yield block(u, v, 0, 0.5, 0.2, 0.0), "dark"
    yield block(u, v, 0, 0.26, 0.09, 0.02), "glow"


def windmill(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield a tapering mill whose four sails stand at any angle."""
    body = block(u, v, 0, 0.6, 0.32, 0.19)
    yield body, "main"
    yield both(body, 0.06 - u), "shade"
    yield both(ellipse(u, v - 0.59, 0.2, 0.18), 0.59 - v), "roof"
    yield block(u, v, 0, 0.2, 0.065), "dark"
    yield block(u, v, 0.3, 0.4, 0.045), "glow"
    t = vary("turn", 0.1, 0.9)  # the tangent of half the angle: no sine is needed
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    p = (cos * u + sin * (v - 0.64)).abs()
    q = (cos * (v - 0.64) - sin * u).abs()
    long, across = p.maximum(q), p.minimum(q)
    yield both(across - 0.05, 0.1 - long, long - 0.4), "cream"
    yield both(union(across - 0.016, ellipse(u, v - 0.64, 0.04, 0.04)), long - 0.4), "dark"


def rocket(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield a rocket on its fins, with a porthole and a pale nose."""
    a = u.abs()
    yield both(block(a - 0.2, v, 0, 0.34, 0.13, 0.02), 0.05 - a), "roof"
    yield block(u, v, 0.02, 0.14, 0.09, 0.12), "dark"
    hull = both(ellipse(u, v - 0.42, vary("hull", 0.185, 0.215), 0.58), 0.1 - v)
    yield hull, "main"
    yield both(hull, 0.08 - u), "shade"
    yield both(hull, 0.8 - v), "cream"
    yield ellipse(u, v - 0.58, 0.105, 0.105), "cream"
    yield ellipse(u, v - 0.58, 0.075, 0.075), "glow"


def mushroom(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield a round cap with dots on a pale stem."""
    yield block(u, v, 0, 0.5, 0.15, 0.11), "cream"
    yield block(u - 0.09, v, 0, 0.5, 0.06, 0.03), "dim"
    cap = both(ellipse(u, v - 0.42, vary("cap", 0.46, 0.54), 0.5), 0.42 - v)
    yield cap, "main"
    yield both(cap, v - 0.5), "shade"
    dots = union(
        ellipse(u + 0.05, v - 0.74, 0.09, 0.08),
        ellipse(u - 0.26, v - 0.6, 0.07, 0.065),
        ellipse(u + 0.3, v - 0.58, 0.06, 0.055),
    )
    yield dots, "cream"


def boat(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield a sailing boat: a hull, a mast and two sails."""
    yield block(u, v, 0.1, 1.0, 0.02), "wood"
    lean = vary("sail", 0.36, 0.46)
    yield both(block(u, v, 0.24, 0.96, lean, 0.0), 0.03 - u), "main"
    yield both(block(u, v, 0.24, 0.84, 0.34, 0.02), u + 0.04), "dim"
    hull = block(u, v, 0.0, 0.18, 0.36, 0.52)
    yield hull, "main"
    yield both(hull, v - 0.07), "shade"
    yield both(hull, 0.15 - v), "cream"


def balloon(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield a hot-air balloon: a striped envelope over a basket."""
    yield stroke(u.abs(), v, (0.06, 0.12), (0.2, 0.4), 0.015), "wood"
    yield block(u, v, 0, 0.14, 0.07, 0.085), "wood"
    a = vary("width", 0.36, 0.41)
    skirt = block(u, v, 0.22, 0.46, 0.09, 0.32)
    envelope = union(ellipse(u, v - 0.63, a, 0.37), skirt)
    yield envelope, "main"
    bulge = (1 - ((v - 0.63) / 0.42).square()).clamp(min=0.05).sqrt()
    yield both(envelope, repeat(u / bulge, 0.28).abs() - 0.06), "pale"
    yield both(envelope, 0.2 - u / bulge), "shade"


def pine_tree(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield a pine: three tiers of needles on a trunk."""
    yield block(u, v, 0, 0.22, 0.06), "wood"
    width = vary("width", 0.92, 1.08)
    for low, high, half in ((0.16, 0.58, 0.38), (0.38, 0.78, 0.3), (0.6, 1.0, 0.21)):
        tier = block(u / width, v, low, high, half, 0.0)
        yield tier, "main"
        yield both(tier, 0.06 + 0.3 * (v - low) - u), "shade"


def palm_tree(u: Tensor, v: Tensor, vary: Vary) -> Shapes:
    """Yield a palm: a bent trunk under arching fronds."""
    bend = vary("bend", -0.2, 0.2)
    u = u - bend * (v * (2 - v) - 0.5)
    yield block(u, v, 0, 0.76, 0.06, 0.035), "wood"
    a, w = u.abs(), v - 0.74
    for x, y, radius in ((0.2, -0.06, 0.22), (0.25, -0.22, 0.36)):
        frond = ellipse(a - x, w - y, radius, radius).abs() - 0.1 * (1 - a)
        yield both(frond, -0.22 - w, y - 0.02 - w), "main"
    yield stroke(a, w, (0.0, 0.0), (0.2, 0.24), 0.09), "shade"
    yield ellipse(a - 0.05, w + 0.05, 0.05, 0.05), "dark"


SHAPES = {
    "temple": temple, "house": house, "castle": castle, "lighthouse": lighthouse, "tent": tent,
    "windmill": windmill, "rocket": rocket, "mushroom": mushroom, "boat": boat,
    "balloon": balloon, "pine tree": pine_tree, "palm tree": palm_tree,
}  # fmt: skip
