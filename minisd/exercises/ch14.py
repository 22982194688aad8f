"""Checkers for the exercises of chapter 14, Stable Diffusion v1.5."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minisd.exercises.ch10 import expect_none_of
from minisd.exercises.checking import Wrong, exercise, expect_close, seeded

MULTIPLE = 64  # the decoder goes up by 8, the U-Net down by 8 more


def sides(aspect: float, area: int) -> tuple[float, float]:
    """Return the height and width, not rounded, of a rectangle of this area."""
    height = math.sqrt(area / aspect)
    return height, aspect * height


@exercise("14.1")
def size_of_a_picture(answer: Callable) -> None:
    """Ask for common formats, in the area of v1.5 and in others."""
    for aspect, area in ((1.0, 512**2), (16 / 9, 512**2), (2 / 3, 512**2), (1.5, 768**2), (9.0, 1)):
        exact = sides(aspect, area)
        right = tuple(max(MULTIPLE, MULTIPLE * round(side / MULTIPLE)) for side in exact)
        got = answer(aspect, area)
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Wrong(f"Return two numbers, the height and the width, not {got!r}.")
        got = tuple(got)
        if got == right:
            continue
        where = f"For an aspect of {aspect:.3g} and {area:,} pixels it is {right}, not {got}."
        hint = "Solve h w = area and w / h = aspect, then round both."
        if got == right[::-1]:
            hint = "The height comes first, and the aspect is width over height."
        elif any(side == 0 for side in got):
            hint = "No picture is 0 pixels high: at least one multiple is needed."
        elif got == tuple(side // 8 for side in right):
            hint = "These are the latents; the pixels are asked for."
        elif any(side % MULTIPLE for side in got):
            hint = "The decoder halves 3 times and the U-Net 3 times more: multiples of 64."
        elif got == tuple(max(MULTIPLE, int(side // MULTIPLE) * MULTIPLE) for side in exact):
            hint = "Round to the nearest multiple, not always down."
        raise Wrong(f"{where} {hint}")


@exercise("14.2")
def one_seed_one_picture(answer: Callable) -> None:
    """Ask for the noise of several seeds, together and alone."""
    shape = (4, 6, 5)
    before = torch.get_rng_state()
    got = answer([3, 1, 4], shape)
    right = torch.stack([torch.randn(shape, generator=seeded(seed)) for seed in (3, 1, 4)])
    expect_none_of(
        got,
        {
            "That is one generator for all: what a seed gives depends on its neighbours.": (
                torch.randn(3, *shape, generator=seeded(3))
            ),
            "Every picture has the same noise: each needs the generator of its own seed.": (
                right[:1].expand(3, -1, -1, -1)
            ),
        },
    )
    hint = "For each seed a new generator, and a draw of its own; then stack them."
    expect_close(got, right, "The noise of the seeds 3, 1 and 4", hint, tolerance=0.0)
    expect_close(answer([4], shape), right[2:], "The noise of seed 4 alone", hint, tolerance=0.0)
    if not torch.equal(before, torch.get_rng_state()):
        raise Wrong(
            "The global state of torch's randomness has changed: use a torch.Generator, so that "
            "nobody else's numbers depend on yours."
        )


@exercise("14.3")
def plan_for_a_machine(answer: Callable) -> None:
    """Ask for machines with a large card, a small one, Apple's, and none."""
    for card, mps, right, hint in (
        (24.0, False, ("cuda", "float16", False), "On such a card everything fits."),
        (16.0, True, ("cuda", "float16", False), "CUDA goes before mps."),
        (3.0, False, ("cuda", "float16", True), "Below 4 GB the networks take turns on the card."),
        (4.0, False, ("cuda", "float16", False), "4 GB are not below 4 GB."),
        (None, True, ("mps", "float32", False), "float16 is for CUDA, and so is offloading."),
        (None, False, ("cpu", "float32", False), "A CPU computes in float32."),
    ):
        got = answer(card, mps)
        if isinstance(got, list):
            got = tuple(got)
        if got != right:
            has = "no card of CUDA" if card is None else f"a card of {card:g} GB"
            raise Wrong(
                f"With {has}, and mps {'there' if mps else 'not there'}, it is {right}, "
                f"not {got!r}. {hint}"
            )


class Decoder:
    """Stands in for a decoder, eight times up, and writes down what it is given."""

    def __init__(self, kind: str):
        self.kind = kind
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, latents: Tensor) -> Tensor:
        self.seen.append(tuple(latents.shape[2:]))
        picture = latents[:, :3].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        if self.kind == "its neighbours count":  # as the statistics of a norm do
            return 0 * picture + latents.mean(dim=(1, 2, 3), keepdim=True)
        return picture


@exercise("14.4")
def decode_in_tiles(answer: Callable) -> None:
    """Decode with tiles that fit and tiles that do not, and look for seams."""
    for size, tile, overlap in (((8, 8), 8, 2), ((14, 20), 8, 2), ((13, 9), 6, 3), ((5, 11), 8, 4)):
        latents = torch.randn(2, 4, *size, generator=seeded(size[0]))
        decoder = Decoder("local")
        got = answer(decoder, latents.clone(), tile, overlap)
        where = f"Latents of {size[0]} x {size[1]}, tiles of {tile} that overlap by {overlap}:"
        largest = max((max(seen) for seen in decoder.seen), default=0)
        if not decoder.seen:
            raise Wrong("The decoder was never called.")
        if largest > tile:
            raise Wrong(f"{where} a tile with a side of {largest} was decoded.")
        right = Decoder("local")(latents)
        hint = "This decoder treats every place alike, so tiles and their blends must agree."
        if isinstance(got, Tensor) and got.shape == right.shape and got.isnan().any():
            hint = "Somewhere the weights add up to 0: has every place a tile?"
        expect_close(got, right, f"{where} the picture", hint, tolerance=1e-4)
        across, down = (math.ceil(max(n - tile, 0) / (tile - overlap)) + 1 for n in size)
        if len(decoder.seen) > across * down:
            raise Wrong(
                f"{where} {across * down} tiles are enough, and {len(decoder.seen)} were decoded. "
                "Go on by tile - overlap, and let the last tile end at the edge."
            )

    latents = torch.arange(24.0).view(1, 1, 1, 24).expand(1, 4, 8, 24) / 6
    picture = answer(Decoder("its neighbours count"), latents.clone(), 8, 4)
    jump = picture.diff(dim=3).abs().max().item()
    if jump > 0.2:
        raise Wrong(
            f"There is a seam: from one pixel to the next the picture jumps by {jump:.2f}. A tile "
            "does not know its neighbours; let its weight fall towards its edges, evenly over the "
            "overlap, and divide by the sum of the weights."
        )
