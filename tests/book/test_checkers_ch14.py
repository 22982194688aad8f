"""The checkers of chapter 14 let the solution pass and name the usual mistakes."""

import math

import pytest
import torch

import minisd


def size(aspect, area, rounded=round, least=64, multiple=64):
    height = math.sqrt(area / aspect)
    return tuple(
        max(least, multiple * rounded(side / multiple)) for side in (height, aspect * height)
    )


def noise(seeds, shape):
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def noise_in_a_row(seeds, shape):
    return torch.randn(len(seeds), *shape, generator=torch.Generator().manual_seed(seeds[0]))


def noise_of_everybody(seeds, shape):
    drawn = []
    for seed in seeds:
        torch.manual_seed(seed)
        drawn.append(torch.randn(shape))
    return torch.stack(drawn)


def plan(card, mps):
    if card is not None:
        return "cuda", "float16", card < 4
    return "mps" if mps else "cpu", "float32", False


def tiled(decode, latents, tile, overlap, soft=True, ragged=False, stride=None):
    def starts(n):
        last = max(n - tile, 0)
        return [*range(0, last, stride or tile - overlap), last]

    def ramp(n):
        up = (torch.arange(8 * n) + 0.5) / (8 * overlap)
        return torch.minimum(up, up.flip(0)).clamp(max=1) if soft else torch.ones(8 * n)

    b, _, h, w = latents.shape
    picture, total = torch.zeros(b, 3, 8 * h, 8 * w), torch.zeros(8 * h, 8 * w)
    for y in starts(h):
        for x in starts(w):
            part = latents[..., y : y + tile + ragged, x : x + tile + ragged]
            weight = ramp(part.shape[2])[:, None] * ramp(part.shape[3])
            rows, columns = (
                slice(8 * a, 8 * a + n) for a, n in zip((y, x), weight.shape, strict=True)
            )
            picture[..., rows, columns] += weight * decode(part)
            total[rows, columns] += weight
    return picture / total


def without_the_edge(decode, latents, tile, overlap):
    picture = tiled(decode, latents, tile, overlap)
    picture[..., -8:] = math.nan
    return picture


RIGHT = {"14.1": size, "14.2": noise, "14.3": plan, "14.4": tiled}
MISTAKES = [
    ("14.1", lambda aspect, area: size(aspect, area)[::-1], "The height comes first"),
    ("14.1", lambda aspect, area: size(aspect, area, least=0), "at least one multiple"),
    ("14.1", lambda aspect, area: size(aspect, area, multiple=8), "multiples of 64"),
    ("14.1", lambda aspect, area: size(aspect, area, rounded=int), "not always down"),
    ("14.1", lambda aspect, area: [n // 8 for n in size(aspect, area)], "These are the latents"),
    ("14.1", lambda aspect, area: 512, "Return two numbers"),
    ("14.2", noise_in_a_row, "depends on its neighbours"),
    ("14.2", lambda seeds, shape: noise(seeds[:1] * len(seeds), shape), "the same noise"),
    ("14.2", noise_of_everybody, "global state"),
    ("14.2", lambda seeds, shape: torch.zeros(len(seeds), *shape), "a draw of its own"),
    ("14.3", lambda card, mps: ("cuda", "float16", card < 4) if card else plan(card, mps), None),
    ("14.3", lambda card, mps: ("mps", "float32", False) if mps else plan(card, mps), "before mps"),
    ("14.3", lambda card, mps: plan(card, mps)[:2] + (card is not None,), "everything fits"),
    ("14.3", lambda card, mps: (plan(card, mps)[0], "float16", (card or 9) < 4), "for CUDA"),
    ("14.3", lambda card, mps: plan(card, mps)[:2] + ((card or 9) <= 4,), "not below 4 GB"),
    ("14.4", lambda decode, z, tile, overlap: decode(z), "was decoded"),
    ("14.4", lambda *args: tiled(*args, ragged=True), "was decoded"),
    ("14.4", lambda *args: tiled(*args, soft=False), "There is a seam"),
    ("14.4", lambda *args: tiled(*args, stride=1), "tiles are enough"),
    ("14.4", without_the_edge, "has every place a tile"),
    ("14.4", lambda decode, z, tile, overlap: z, "never called"),
]


@pytest.mark.parametrize("number", RIGHT)
def test_the_solution_passes(number):
    assert minisd.check(number, RIGHT[number]), minisd.check(number, RIGHT[number])


@pytest.mark.parametrize(("number", "answer", "hint"), MISTAKES)
def test_a_mistake_is_named(number, answer, hint):
    verdict = minisd.check(number, answer)
    if hint is None:  # another way to write the solution
        assert verdict, verdict.message
        return
    assert not verdict and hint in verdict.message, verdict.message
