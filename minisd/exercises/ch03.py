"""Checkers for the exercises of chapter 3."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.data.digits import digits
from minisd.exercises.checking import Wrong, exercise, expect_close, seeded
from minisd.schedules import add_noise, make_betas
from minisd.unet import UNet, UNetBlock, UNetConfig


def agrees(got: object, with_mistake: Tensor) -> bool:
    """Say whether an answer is what a certain mistake leads to."""
    return (
        isinstance(got, Tensor)
        and got.shape == with_mistake.shape
        and torch.allclose(got.double(), with_mistake.double(), atol=1e-3)
    )


@exercise("3.1")
def receptive_field(answer: Callable) -> None:
    """`receptive_field(layers)` counts the input pixels that one output pixel depends on."""
    stacks = ([(3, 1)] * 5, [(5, 1), (1, 1)], [(3, 1), (3, 2), (3, 1)], [(3, 2), (4, 3), (3, 2)])
    for layers in stacks:
        got = answer(list(layers))
        wanted, ignoring, early, jump = 1, 1, 1, 1
        for kernel, stride in layers:
            wanted += (kernel - 1) * jump
            ignoring += kernel - 1
            jump *= stride
            early += (kernel - 1) * jump
        if got == wanted:
            continue
        told = f"For {layers} the view is {wanted} pixels wide, not {got}."
        if got == sum(kernel for kernel, _ in layers):
            hint = "A layer adds kernel - 1 pixels: its own centre was in view already."
        elif got == wanted - 1:
            hint = "With no layer at all a pixel sees itself: start from 1."
        elif got == ignoring:
            hint = "After a stride of 2, neighbours are 2 pixels of the input apart."
        elif got == early:
            hint = "A layer's own stride spreads what comes after it, not what it reads itself."
        else:
            hint = "Keep two numbers: the view so far, and how far apart neighbours are by now."
        raise Wrong(f"{told} {hint}")


@exercise("3.2")
def group_norm(answer: Callable) -> None:
    """`group_norm(x, num_groups)` normalises each group of channels of each image."""
    x = 3 * torch.randn(3, 8, 5, 5, generator=seeded()) + torch.arange(8)[:, None, None]
    got = answer(x.clone(), 4)
    grouped = x.reshape(3, 4, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    flat = centred.square().mean(-1, keepdim=True)
    over_batch = x.transpose(0, 1).reshape(4, -1)
    over_batch = (over_batch - over_batch.mean(-1, keepdim=True)) / over_batch.std(
        -1, keepdim=True, correction=0
    )
    mistakes = {
        "Each image must be normalised alone: keep the batch out of the mean.": over_batch.reshape(
            8, 3, 5, 5
        ).transpose(0, 1),
        "Each channel was normalised alone; pool the channels of a group.": F.group_norm(x, 8),
        "All channels were pooled; pool those of one group only.": F.group_norm(x, 1),
        "Divide by the standard deviation, the root of the variance.": centred / flat,
        "Divide the sum of squares by n, not n - 1 (torch: correction=0).": centred
        / (grouped.var(-1, keepdim=True) + 1e-5).sqrt(),
        "Subtract the mean of the group first.": grouped / (flat + 1e-5).sqrt(),
    }
    for hint, wrong in mistakes.items():
        if agrees(got, wrong.reshape(x.shape)):
            raise Wrong(hint)
    hint = "Mean and variance go over the channels of a group and all its positions."
    expect_close(got, F.group_norm(x, 4), "The result", hint)
    quiet = 1e-3 * x
    hint = "Add eps to the variance, under the root."
    expect_close(answer(quiet, 4), F.group_norm(quiet, 4), "For small inputs the result", hint)


@exercise("3.3")
def growth(answer: Callable) -> None:
    """`growth()` says what larger pictures cost: parameters, multiplications, scores."""
    wanted = {"parameters": 1, "multiplications": 4, "scores": 16}
    got = answer()
    if not isinstance(got, dict) or set(got) != set(wanted):
        raise Wrong(f"Return a dictionary with the keys {', '.join(wanted)}.")
    if got["parameters"] != 1:
        raise Wrong("Parameters: a convolution slides the same weights over a picture of any size.")
    if got["multiplications"] == 2:
        raise Wrong("Multiplications: twice as wide, and twice as high.")
    if got["multiplications"] != 4:
        raise Wrong("Multiplications: a convolution costs the same at every position. Count these.")
    if got["scores"] in (2, 4):
        raise Wrong("Scores: there are more positions, and each compares itself with all of them.")
    if got["scores"] != 16:
        raise Wrong("Scores: n positions need n * n of them. By what factor does n grow?")


@exercise("3.4")
def attention(answer: Callable) -> None:
    """`attention(q, k, v, num_heads)` lets every head attend to its own share of the channels."""
    g = seeded()
    q = torch.randn(2, 5, 12, generator=g)
    k, v = torch.randn(2, 2, 7, 12, generator=g)
    got = answer(q, k, v, 3)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (3, 4)).transpose(1, 2)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, axis: int = -1) -> Tensor:
        return (q @ k.mT * scale).softmax(axis) @ v

    def merge(x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    split = heads(q), heads(k), heads(v)
    cut = [x.reshape(2, 3, -1, 4) for x in (q, k, v)]
    right = merge(attend(*split, 0.5))
    mistakes = {
        "Divide the scores by sqrt(head_dim) before the softmax.": merge(attend(*split, 1.0)),
        "Divide by sqrt(head_dim), not by sqrt(d): a head has d / num_heads numbers.": merge(
            attend(*split, 1 / math.sqrt(12))
        ),
        "Divide by the root of head_dim, not by head_dim.": merge(attend(*split, 0.25)),
        "The softmax goes over the keys: the weights of one query sum to 1.": merge(
            attend(*split, 0.5, axis=-2)
        ),
        "That is one head; split the channels into num_heads parts.": attend(
            q, k, v, 1 / math.sqrt(12)
        ),
        "A reshape to (b, h, n, d) mixes positions: split the last axis, then swap axes.": (
            attend(*cut, scale=0.5).reshape(2, 5, 12)
        ),
        "Swap the axes of heads and positions back before you merge the heads.": attend(
            *split, 0.5
        ).reshape(2, 5, 12),
    }
    for hint, wrong in mistakes.items():
        if agrees(got, wrong):
            raise Wrong(hint)
    hint = "softmax(q k^T / sqrt(head_dim)) v for each head, the heads side by side again."
    expect_close(got, right, "The result", hint)


@exercise("3.5")
def up_widths(answer: Callable) -> None:
    """`up_widths(channels, layers_per_block)` lists what enters each residual block going up."""
    for channels, layers in (((32, 64), 1), ((32, 64, 128), 1), ((32, 96, 64, 128), 2)):
        config = UNetConfig(
            sample_size=32,
            channels=channels,
            attention=(False,) * len(channels),
            layers_per_block=layers,
        )
        with torch.device("meta"):
            blocks = [block for block in UNet(config).up if isinstance(block, UNetBlock)]
        wanted = [block.resnet.conv_1.in_channels for block in blocks]
        try:
            got = answer(channels, layers)
        except IndexError:
            raise Wrong(
                "There are fewer skips than blocks on the way up. Push the width of conv_in, of "
                "every block and of every Downsample."
            ) from None
        if not isinstance(got, list | tuple):
            raise Wrong(f"Return a list of whole numbers, not {type(got).__name__}.")
        if list(got) == wanted:
            continue
        told = f"For channels={channels}, layers_per_block={layers}:"
        if len(got) != len(wanted):
            raise Wrong(
                f"{told} there are {len(wanted)} residual blocks on the way up, not {len(got)}. "
                "Each level has layers_per_block + 1 of them."
            )
        place = next(i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
        raise Wrong(
            f"{told} number {place} (from 0) should be {wanted[place]}, not {got[place]}. Push the "
            "width of conv_in, of every block and of every Downsample, but there is none after the "
            "last level; pop the latest first, and add it to the width that comes from below."
        )


@exercise("3.6")
def mended(answer: Callable) -> None:
    """`Block(channels, emb_dim)` keeps pictures apart, hears the time, and adds to its input."""
    block, g = answer(16, 8), seeded()
    if not isinstance(getattr(block, "conv_2", None), nn.Conv2d):
        raise Wrong("Keep the last convolution, and its name conv_2.")
    nn.init.normal_(block.conv_2.weight, std=0.1, generator=g)
    x, emb = torch.randn(4, 16, 7, 7, generator=g), torch.randn(4, 8, generator=g)
    with torch.no_grad():
        got = block(x, emb)
        if got.shape != x.shape:
            raise Wrong(f"The shape {tuple(x.shape)} should stay, not become {tuple(got.shape)}.")
        if not torch.allclose(got[0], block(torch.cat([x[:1], 5 * x[1:]]), emb)[0], atol=1e-4):
            raise Wrong(
                "What becomes of a picture depends on the others in its batch. Which "
                "normalisation looks at one picture at a time?"
            )
        if torch.allclose(got, block(x, emb.flip(0)), atol=1e-4):
            raise Wrong(
                "The block does not hear the time: what is added to a channel is taken away again. "
                "How many channels must a group hold, so that they can differ?"
            )
        nn.init.zeros_(block.conv_2.weight)
        if block.conv_2.bias is not None:
            nn.init.zeros_(block.conv_2.bias)
        if not torch.allclose(block(x, emb), x, atol=1e-5):
            raise Wrong("With a conv_2 of zeros the input should come out as it is. Which path?")
    if sum(isinstance(layer, nn.GroupNorm) for layer in block.modules()) != 2:
        raise Wrong("Keep both normalisations, as group normalisations.")


@exercise("3.7")
@torch.no_grad()
def harm(answer: Callable) -> None:
    """`harm()` is the loss of digits-ddpm without its first skip, relative to that with it."""
    with torch.enable_grad():
        got = answer()
    if not isinstance(got, int | float | Tensor):
        raise Wrong(f"Return one number, not {type(got).__name__}.")
    unet, x_start = UNet.from_pretrained("digits-ddpm"), digits("test").images[:64]
    noise = torch.randn(x_start.shape, generator=seeded())
    x_t = add_noise(x_start, noise, (1 - make_betas()).cumprod(0)[200])

    def loss(cut: int | None) -> float:
        emb = unet.time_embedding(torch.full((64,), 200))
        x = unet.conv_in(x_t)
        skips = [x]
        for block in unet.down:
            x = block(x, emb, None)
            skips.append(x)
        if cut is not None:
            skips[cut] = torch.zeros_like(skips[cut])
        x = unet.mid(x, emb, None)
        for block in unet.up:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, None)
        return F.mse_loss(unet.conv_out(F.silu(unet.norm_out(x))), noise).item()

    def near(wanted: float, by: float = 0.2) -> bool:
        return abs(float(got) / wanted - 1) < by

    whole = loss(None)
    if near(loss(0) / whole):
        return
    told = f"{float(got):.3g} is not the factor."
    if near(whole / loss(0)):
        raise Wrong(f"{told} Divide the loss without the skip by the loss with it.")
    if near(loss(0), 0.06):
        raise Wrong(f"{told} That is the loss without the skip; divide it by the loss with it.")
    if near(loss(1) / whole):
        raise Wrong(f"{told} You cut the skip of the first block; `conv_in` comes before it.")
    if 0.8 < float(got) < 1.5:
        raise Wrong(f"{told} That is next to no harm. `conv_in` is at the bottom of the stack.")
    raise Wrong(f"{told} Put zeros in its place on the stack, not in what flows on, at t = 200.")
