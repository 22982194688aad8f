"""Checkers for the exercises of chapter 10, latent diffusion."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.exercises.checking import Wrong, exercise, expect_close, seeded
from minisd.layers import SpatialTransformer


def expect_none_of(got: object, mistakes: dict[str, Tensor]) -> None:
    """Raise Wrong with the hint of a usual mistake if `got` is just that."""
    for hint, wrong in mistakes.items():
        if (
            isinstance(got, Tensor)
            and got.shape == wrong.shape
            and torch.allclose(got, wrong, atol=1e-5)
        ):
            raise Wrong(hint)


@exercise("10.1")
def map_of_a_word(answer: Callable) -> None:
    """Compare with the mean over the heads, on weights of two sizes."""
    for side, token in ((4, 2), (8, 5)):
        scores = torch.randn(2, 3, side * side, 7, generator=seeded(side))
        weights = scores.softmax(dim=-1)
        got = answer(weights.clone(), token)
        right = rearrange(weights[..., token].mean(dim=1), "b (h w) -> b h w", h=side)
        expect_none_of(
            got,
            {
                "The picture lies on its side: places run along the rows, (h w).": right.mT,
                "Take the mean over the heads, not the sum.": 3 * right,
                "That is the first head only: take the mean over all heads.": rearrange(
                    weights[:, 0, :, token], "b (h w) -> b h w", h=side
                ),
                "That is another token: count from 0, and the start token is number 0.": (
                    rearrange(weights[..., token - 1].mean(dim=1), "b (h w) -> b h w", h=side)
                ),
            },
        )
        hint = "Take the column of the token, the mean over the heads, and lay it out as a square."
        expect_close(got, right, "The map", hint, tolerance=1e-5)


@exercise("10.2")
def gated(answer: Callable) -> None:
    """Compare with GEGLU, and with its relatives."""
    generator = seeded(1)
    x = 2 * torch.randn(2, 3, 4, generator=generator)
    weight = torch.randn(10, 4, generator=generator)
    bias = torch.randn(10, generator=generator)
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    value_alone, gate_alone = F.linear(x, weight).chunk(2, dim=-1)
    got = answer(x.clone(), weight.clone(), bias.clone())
    expect_none_of(
        got,
        {
            "The value comes first and the gate second; weights of v1.5 rely on it.": (
                gate * F.gelu(value)
            ),
            "The gate goes through GELU; a sigmoid makes it GLU.": value * gate.sigmoid(),
            "GELU is to be exact here, without the approximation by tanh.": (
                value * F.gelu(gate, approximate="tanh")
            ),
            "x sigmoid(1.702 x) is the GELU of CLIP; here it is the exact one.": (
                value * gate * (1.702 * gate).sigmoid()
            ),
            "This only multiplies the two halves: where is GELU?": value * gate,
            "The bias is missing.": value_alone * F.gelu(gate_alone),
        },
    )
    hint = "One linear layer, cut into two halves along the last axis: value * gelu(gate)."
    expect_close(got, value * F.gelu(gate), "The output", hint, tolerance=1e-5)


@exercise("10.3")
def count_spatial_transformer(answer: Callable) -> None:
    """Count those of blocks of four sizes, v1.5's among them."""
    for c, d in ((8, 4), (64, 192), (128, 192), (320, 768)):
        with torch.device("meta"):
            block = SpatialTransformer(c, num_heads=2, context_dim=d)
        wanted = sum(p.numel() for p in block.parameters())
        got = answer(c, d)
        if got == wanted:
            continue
        missing = {
            4 * c * c + 4 * c: "GEGLU's layer is twice as wide as its output: value and gate.",
            -6 * c: "The layers to_q, to_k and to_v have no biases here.",
            6 * c: "Each of the three norms before a part has a scale and a shift.",
            2 * c: "The group norm at the door has a scale and a shift, too.",
            2 * c * d - 2 * c * c: "In cross-attention, to_k and to_v read vectors of context_dim.",
            2 * c * c - 2 * c * d: "In self-attention, to_k and to_v read the places themselves.",
            2 * c * c + 2 * c: "There are two 1 x 1 convolutions, one at each end.",
        }
        hint = missing.get(wanted - got) if isinstance(got, int) else "It is a whole number."
        parts = "List them: [(name, p.shape) for name, p in block.named_parameters()]."
        raise Wrong(
            f"With {c} channels and context_dim={d} there are {wanted:,} parameters, not {got!r}. "
            f"{hint or parts}"
        )


class Network(nn.Module):
    """Stands in for a U-Net: its answer depends on the picture, the time and the context."""

    def forward(self, x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        if len(context) != len(x):
            raise ValueError(f"{len(x)} pictures came with {len(context)} contexts: expand them")
        spread = context.sin().mean(dim=1)[:, : x.shape[1], None, None]
        return torch.tanh(x + spread) + 0.01 * torch.as_tensor(t)


@exercise("10.4")
def two_wishes(answer: Callable) -> None:
    """Ask for no, one and two wishes, and compare with the sum of the pushes."""
    generator = seeded(2)
    x = torch.randn(3, 4, 2, 2, generator=generator)
    empty = torch.randn(1, 5, 6, generator=generator)
    wishes = list(torch.randn(2, 3, 5, 6, generator=generator))
    network, t = Network(), torch.tensor(7)
    nothing = network(x, t, empty.expand(3, -1, -1))
    pushes = [network(x, t, wish) - nothing for wish in wishes]
    for scales in ([], [4.0], [3.0, 3.0], [4.0, -1.5]):
        n = len(scales)
        got = answer(network, x.clone(), t, empty.clone(), wishes[:n], scales)
        total = sum(s * push for s, push in zip(scales, pushes, strict=False))
        right = nothing + total
        if n == 2:
            mean = nothing + total / 2
            start_at_wish = right - nothing + network(x, t, wishes[0])
            absolute = nothing + sum(
                s * (push + nothing) for s, push in zip(scales, pushes, strict=True)
            )
            expect_none_of(
                got,
                {
                    "Add the pushes up; their mean says each wish half as loud.": mean,
                    "Begin with the prediction for no wish, not for the first.": start_at_wish,
                    "A push is a difference: the prediction for the wish minus that for none.": (
                        absolute
                    ),
                    "The second wish is not heard.": nothing + scales[0] * pushes[0],
                },
            )
        hint = f"With scales {scales} it is the empty prediction plus one scaled push per wish."
        expect_close(got, right, "The prediction", hint, tolerance=1e-4)
