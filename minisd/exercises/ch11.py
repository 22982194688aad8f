"""Checkers for the exercises of chapter 11, more than text."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.exercises.ch10 import expect_none_of
from minisd.exercises.checking import Wrong, exercise, expect_close, seeded


@exercise("11.1")
def last_part(answer: Callable) -> None:
    """Ask for parts of several walks, whole ones and short ones among them."""
    for n, strength in ((10, 0.3), (25, 0.6), (10, 1.0), (9, 0.4), (20, 0.05)):
        timesteps = torch.arange(999, -1, -(1000 // n))[:n]
        got = answer(timesteps.clone(), strength)
        steps = int(n * strength)
        right = timesteps[n - steps :]
        where = f"With {n} timesteps and strength {strength}"
        if not isinstance(got, Tensor):
            raise Wrong(f"{where} it should be a tensor of timesteps, not {type(got).__name__}.")
        got = got.flatten()
        if got.tolist() == right.tolist():
            continue
        if got.tolist() == timesteps[:steps].tolist():
            raise Wrong(
                "That is the noisy part of the way. A picture is to be kept: walk its end, where "
                "there is little noise."
            )
        if len(got) == n - steps:
            raise Wrong(f"{where}, {steps} steps are to be walked, and {n - steps} left away.")
        if got.tolist() == right.flip(0).tolist():
            raise Wrong("The noisiest timestep comes first: that is where the walk begins.")
        if len(got) == steps + 1:
            raise Wrong(f"{where} the number of steps is rounded down, to {steps}.")
        raise Wrong(f"{where} it should be {right.tolist()}, not {got.tolist()}.")


@exercise("11.2")
def hold_what_is_known(answer: Callable) -> None:
    """Compare with the mixture of what was drawn and of what is known, as noisy as it must be."""
    generator = seeded(1)
    x, x_start, noise = torch.randn(3, 2, 4, 6, 6, generator=generator)
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 1:4, 2:6] = 1
    for value in (0.9, 0.2, 1.0):
        alpha_bar = torch.tensor(value)
        known = alpha_bar.sqrt() * x_start + (1 - alpha_bar).sqrt() * noise
        right = mask * x + (1 - mask) * known
        got = answer(x.clone(), x_start.clone(), noise.clone(), alpha_bar, mask.clone())
        if value < 1:
            loud = alpha_bar * x_start + (1 - alpha_bar) * noise
            expect_none_of(
                got,
                {
                    "The mask is 1 where something is to be drawn, 0 where the picture stays.": (
                        (1 - mask) * x + mask * known
                    ),
                    "What stays must be as noisy as the rest at this step: add noise to it.": (
                        mask * x + (1 - mask) * x_start
                    ),
                    "alpha_bar is a variance: take the square roots, as in chapter 2.": (
                        mask * x + (1 - mask) * loud
                    ),
                    "Nothing is held here: outside of the mask the picture is known.": x,
                },
            )
        hint = "Inside of the mask x, outside x_start with the noise of this step."
        expect_close(got, right, f"With alpha_bar = {value} the result", hint, tolerance=1e-5)


@exercise("11.3")
def map_on_the_grid(answer: Callable) -> None:
    """Compare with one-hot and pixel unshuffle, on maps that are higher than wide."""
    for labels, factor, shape in ((4, 2, (2, 8, 4)), (3, 4, (1, 16, 8))):
        maps = torch.randint(labels, shape, generator=seeded(factor))
        one_hot = F.one_hot(maps, labels).movedim(-1, 1).float()
        right = F.pixel_unshuffle(one_hot, factor)
        got = answer(maps.clone(), labels, factor)
        apart = right.unflatten(1, (labels, factor, factor))
        expect_none_of(
            got,
            {
                "The mean of a cell forgets where in it the labels are.": F.avg_pool2d(
                    one_hot, factor
                ),
                "Within a cell, go along its rows first: the channels are (k p q).": (
                    apart.transpose(2, 3).flatten(1, 3)
                ),
                "The label comes first: the channels are (k p q), not (p q k).": (
                    apart.permute(0, 2, 3, 1, 4, 5).flatten(1, 3)
                ),
                "These are still the labels: first make them one-hot.": F.pixel_unshuffle(
                    maps[:, None].float(), factor
                ),
            },
        )
        hint = "One-hot (b, k, h p, w q), and then einops: b k (h p) (w q) -> b (k p q) h w."
        expect_close(got, right, "The channels", hint, tolerance=1e-6)


class Network(nn.Module):
    """Stands in for a U-Net that sees a map: its answer depends on all that it is given."""

    def forward(self, x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        if len(context) != len(x):
            raise ValueError(f"{len(x)} pictures came with {len(context)} contexts: expand them")
        picture, beside = x[:, :2], x[:, 2:]
        said = context.sin().mean(dim=(1, 2)).view(-1, 1, 1, 1)
        shown = beside.cos().mean(dim=1, keepdim=True)
        return torch.tanh(picture + said * shown + 0.3 * shown) + 0.01 * torch.as_tensor(t)


@exercise("11.4")
def two_leashes(answer: Callable) -> None:
    """Compare with both pushes, and with what comes out if they are taken for one another."""
    generator = seeded(3)
    x = torch.randn(2, 2, 4, 4, generator=generator)
    beside = torch.randn(2, 3, 4, 4, generator=generator)
    empty, context = torch.randn(3, 5, 6, generator=generator).split([1, 2])
    network, t = Network(), torch.tensor(7)

    def predict(shown: Tensor, said: Tensor) -> Tensor:
        return network(torch.cat([x, shown], dim=1), t, said.expand(2, -1, -1))

    blank = torch.zeros_like(beside)
    nothing, mapped, both = predict(blank, empty), predict(beside, empty), predict(beside, context)
    for map_scale, words_scale in ((1.5, 4.0), (1.0, 1.0), (0.0, 0.0)):
        right = nothing + map_scale * (mapped - nothing) + words_scale * (both - mapped)
        got = answer(
            network, x.clone(), t, beside.clone(), context.clone(), empty.clone(),
            map_scale, words_scale,
        )  # fmt: skip
        if map_scale == 1.5:
            worded = predict(blank, context)
            expect_none_of(
                got,
                {
                    "The two scales have changed places.": (
                        nothing + words_scale * (mapped - nothing) + map_scale * (both - mapped)
                    ),
                    "What the words add is to be measured with the map in view, on both sides.": (
                        nothing + map_scale * (mapped - nothing) + words_scale * (worded - nothing)
                    ),
                    "Begin with neither map nor words.": mapped + words_scale * (both - mapped),
                    "The last push is from the map to map and words, not from nothing to both.": (
                        nothing + map_scale * (mapped - nothing) + words_scale * (both - nothing)
                    ),
                },
            )
        hint = "Three predictions: with neither, with the map, with both; two differences, scaled."
        expect_close(got, right, "The prediction", hint, tolerance=1e-5)
