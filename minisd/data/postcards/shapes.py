"""Chapter 7: shapes as distances to their edge, negative inside, at any resolution.

Coordinates are tensors that broadcast to (n,1,h,w): u (or x) to the right, v (or y) upwards. The
union of two shapes is `torch.minimum`, what they share is `torch.maximum`.
"""

import torch
from torch import Tensor

Number = Tensor | float  # one for all pictures, or one for each, (n,1,1,1)


def block(
    u: Tensor, v: Tensor, low: Number, high: Number, half: Number, half_top: Number | None = None
) -> Tensor:
    """Return the distance to a box around u = 0, or to a trapezoid that is `half_top` at `high`."""
    upright = (v - (low + high) / 2).abs() - (high - low) / 2
    if half_top is None:
        return torch.maximum(u.abs() - half, upright)
    slope = (half - half_top) / (high - low)
    side = (u.abs() + ((v - low) * slope - half)) / (1 + slope**2) ** 0.5
    return torch.maximum(side, upright)


def ellipse(u: Tensor, v: Tensor, a: Number, b: Number) -> Tensor:
    """Return about the distance to an ellipse around 0 with half axes a and b; exact for a = b."""
    return ((u / a).square() + (v / b).square()).sqrt().sub(1) * ((a + b - abs(a - b)) / 2)


def stroke(
    u: Tensor, v: Tensor, start: tuple[float, float], end: tuple[float, float], width: float
) -> Tensor:
    """Return the distance to a straight line of the brush with round ends."""
    (x, y), (dx, dy) = start, (end[0] - start[0], end[1] - start[1])
    along = (((u - x) * dx + (v - y) * dy) / (dx**2 + dy**2)).clamp(0, 1)
    return ((u - x - along * dx).square() + (v - y - along * dy).square()).sqrt() - width / 2


def repeat(u: Tensor, period: float) -> Tensor:
    """Return the offset of u to the nearest multiple of `period`: one shape becomes a row."""
    return u - (u / period).round() * period


def both(*distances: Tensor) -> Tensor:
    """Return the distance to what all shapes share."""
    result = distances[0]
    for distance in distances[1:]:
        result = torch.maximum(result, distance)
    return result


def union(*distances: Tensor) -> Tensor:
    """Return the distance to all shapes together."""
    result = distances[0]
    for distance in distances[1:]:
        result = torch.minimum(result, distance)
    return result
