"""Checkers for the exercises of chapter 13, growing up."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minisd.exercises.checking import Wrong, exercise, expect_close, seeded
from minisd.full_size import random_tensor
from minisd.pretrained import Unfilled
from minisd.unet import UNet, UNetConfig

ORIGINAL = {  # inside a ResnetBlock: minisd -> the file of 2022
    "norm_1": "in_layers.0",
    "conv_1": "in_layers.2",
    "time_proj": "emb_layers.1",
    "norm_2": "out_layers.0",
    "conv_2": "out_layers.3",
    "shortcut": "skip_connection",
}


@exercise("13.1")
def original_name(answer: Callable) -> None:
    """Ask for every tensor of a ResnetBlock on the way down, and one on the way up."""
    for place, theirs in (("down.0", "input_blocks.1.0"), ("up.11", "output_blocks.11.0")):
        for layer, name in ORIGINAL.items():
            for kind in ("weight", "bias"):
                ours = f"{place}.resnet.{layer}.{kind}"
                wanted, got = f"{theirs}.{name}.{kind}", answer(ours)
                if got == wanted:
                    continue
                hint = "Compare with the tables of the appendix, block by block."
                if isinstance(got, str) and got == wanted.replace(
                    "input_blocks.1.", "input_blocks.0."
                ):
                    hint = "Their input block 0 is conv_in: on the way down they count from 1."
                elif isinstance(got, str) and place.split(".")[0] in got.split("."):
                    hint = "The way is named, too: input_blocks and output_blocks."
                raise Wrong(f"{ours} is {wanted} there, not {got!r}. {hint}")


class LargestTensor(TorchFunctionMode):
    """Notes the most numbers that any function of torch has returned in one tensor."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@exercise("13.2")
def attention_in_slices(answer: Callable) -> None:
    """Compare with all at once, and watch how large the matrix of weights gets."""
    generator = seeded(1)
    for n, m, rows in ((64, 64, 16), (50, 77, 16), (9, 5, 1), (7, 40, 100)):
        q = torch.randn(2, 3, n, 4, generator=generator)
        k, v = torch.randn(2, 2, 3, m, 4, generator=generator)
        with LargestTensor() as largest:
            got = answer(q.clone(), k.clone(), v.clone(), rows)
        right = F.scaled_dot_product_attention(q, k, v)
        scores = [part @ k.mT / part.shape[-1] ** 0.5 for part in q.split(rows, dim=2)]
        hint = "Softmax runs over the keys, so each query's row can be computed by itself."
        if _is(got, torch.cat([part.softmax(dim=-2) @ v for part in scores], dim=2)):
            hint = (
                "Your weights sum to 1 over the queries: for each query they must, over the keys."
            )
        elif n % rows:
            hint = "The last slice may be shorter than the others."
        expect_close(got, right, f"The answer for {n} queries, {rows} at a time,", hint, 1e-5)
        allowed = max(2 * 3 * min(rows, n) * m, q.numel(), k.numel())
        if largest.numbers > allowed:
            raise Wrong(
                f"A tensor of {largest.numbers:,} numbers was made: with {rows} queries at a time "
                f"{allowed:,} are enough. Slice the queries before you multiply."
            )


def _is(got: object, wanted: Tensor) -> bool:
    return isinstance(got, Tensor) and got.shape == wanted.shape and torch.allclose(got, wanted)


def agreeing(seed: int) -> UNet:
    """Return a small U-Net none of whose branches is silent."""
    unet = UNet(UNetConfig(8, 2, 2, (8, 16), (True, False), 1, 2, 4, context_dim=6)).eval()
    tensors = {key: random_tensor(key, t.shape, seed) for key, t in unet.state_dict().items()}
    unet.load_state_dict(tensors)
    return unet


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a picture, a timestep and a context for it."""
    generator = seeded(seed)
    x = torch.randn(1, 2, 8, 8, generator=generator)
    context = torch.randn(1, 3, 6, generator=generator)
    return x, torch.tensor(7), context


def wrong_eps(layer: nn.GroupNorm | nn.LayerNorm) -> None:
    """Plant an eps that is much too large."""
    layer.eps = 1e-1


def wrong_weight(layer: nn.Conv2d | nn.Linear) -> None:
    """Plant weights that are shifted by one channel."""
    layer.weight.data = layer.weight.data.roll(1, dims=0)


FAULTS: dict[str, Callable[[Any], None]] = {
    "down.0.attention.block.norm_2": wrong_eps,
    "up.1.resnet.conv_1": wrong_weight,
    "mid.resnet_1.norm_1": wrong_eps,
    "time_embedding.linear_2": wrong_weight,
    "norm_out": wrong_eps,
}


@exercise("13.3")
@torch.no_grad()
def first_difference(answer: Callable) -> None:
    """Plant faults in a copy, one after the other, and ask where it is."""
    for seed, (where, plant) in enumerate(FAULTS.items()):
        right = agreeing(seed)
        faulty = copy.deepcopy(right)
        plant(faulty.get_submodule(where))
        got = answer(right, faulty, *inputs(seed))
        if got == where:
            continue
        hint = "Note the name of each module when its forward ends, and its output."
        if got == "":
            hint = "That is the whole network: it ends last, after all its layers."
        elif isinstance(got, str) and where.startswith(f"{got}."):
            hint = "The fault is inside that one: a module ends after the layers in it."
        elif isinstance(got, str) and got in dict(right.named_modules()):
            hint = "Go by the order in which they end, not by that of named_modules()."
        raise Wrong(f"The fault was planted in {where}, not in {got!r}. {hint}")
    right = agreeing(0)
    if answer(right, copy.deepcopy(right), *inputs(0)) is not None:
        raise Wrong("Two equal networks differ nowhere: return None.")
    hooked = [name for name, module in right.named_modules() if module._forward_hooks]
    if hooked:
        raise Wrong(f"Hooks were left behind on {len(hooked)} modules: remove them at the end.")


QUESTIONS = {  # what -> (how many times as much, {likely mistake: hint})
    "parameters, twice the width": (
        4,
        {
            2: "A layer has twice the inputs, and each of them goes to twice the outputs.",
            8: "Count one convolution from c channels to c: its kernel stays 3 x 3.",
        },
    ),
    "parameters, twice the side": (
        1,
        {4: "A weight is used at every place, but stored once.", 2: "Where would they be stored?"},
    ),
    "operations of a convolution, twice the side": (
        4,
        {2: "Both sides double. How many places are there?", 1: "It computes at every place."},
    ),
    "attention weights, twice the side": (
        16,
        {
            4: "The places are four times as many: both the queries and the keys.",
            8: "Two sides of the picture, and two sides of the matrix.",
            2: "First count the places, then the pairs of them.",
        },
    ),
}


@exercise("13.4")
def predictions(answer: Callable) -> None:
    """Ask for four factors."""
    got = answer()
    if not isinstance(got, dict) or got.keys() != QUESTIONS.keys():
        raise Wrong(f"Return a dictionary with the keys {', '.join(QUESTIONS)}.")
    for question, (right, mistakes) in QUESTIONS.items():
        if got[question] != right:
            hint = mistakes.get(got[question], "Think of a single layer, and count.")
            raise Wrong(f"{question}: not {got[question]!r} times. {hint}")


@exercise("13.5")
def wider_words(answer: Callable) -> None:
    """Compare with the U-Net of SD 2, counted on the meta device."""
    small, large = _shapes(UNetConfig.SD15), _shapes(replace(UNetConfig.SD15, context_dim=1024))
    total = sum(shape.numel() for shape in large.values())
    changed = sum(small[key] != large[key] for key in small)
    got = answer()
    if not isinstance(got, tuple) or len(got) != 2:
        raise Wrong("Return two numbers: the parameters, and the tensors that changed their shape.")
    hints = {
        sum(shape.numel() for shape in small.values()): "That is v1.5: set context_dim to 1024.",
        4 * total: "These are bytes.",
        changed: "First the parameters, then the tensors.",
    }
    if got[0] != total:
        hint = hints.get(got[0], "Take v1.5's config, and replace its context_dim alone.")
        raise Wrong(f"The parameters are not {got[0]!r}. {hint}")
    if got[1] != changed:
        hint = "Compare the shapes in the two state_dict(), name by name."
        if got[1] == changed / 2:
            hint = "The words give the keys, and also the values."
        elif got[1] == sum("cross_attention" in key for key in small):
            hint = "Some tensors of the cross-attention never touch the words."
        raise Wrong(f"The tensors with another shape are not {got[1]!r}. {hint}")


def _shapes(config: UNetConfig) -> dict[str, torch.Size]:
    with torch.device("meta"), Unfilled():
        return {key: tensor.shape for key, tensor in UNet(config).state_dict().items()}
