"""The checkers of chapter 10 let the solution pass and name the usual mistakes."""

import importlib
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from minisd.exercises.checking import CHECKERS, Wrong


@pytest.fixture(scope="module")
def ch10():
    with patch.dict(CHECKERS):  # an exercise is registered once its chapter is in the book
        return importlib.import_module("minisd.exercises.ch10")


def square(rows):
    side = round(rows.shape[-1] ** 0.5)
    return rows.unflatten(-1, (side, side))


def word_map(weights, token):
    return square(weights.mean(dim=1)[..., token])


def geglu(x, weight, bias):
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


def count(c, d, inner=8, qkv_bias=0, norms=4):
    ends = 2 * (c * c + c)
    self_attention = 4 * c * c + c + 3 * qkv_bias
    cross_attention = 2 * c * c + 2 * c * d + c + 3 * qkv_bias
    feed_forward = inner * (c * c + c) + 4 * c * c + c
    return ends + self_attention + cross_attention + feed_forward + 2 * norms * c


def wishes(unet, x, t, empty, contexts, scales):
    nothing = unet(x, t, empty.expand(len(x), -1, -1))
    pushes = [s * (unet(x, t, c) - nothing) for c, s in zip(contexts, scales, strict=True)]
    return nothing + sum(pushes)


ANSWERS = {
    "map_of_a_word": word_map,
    "gated": geglu,
    "count_spatial_transformer": count,
    "two_wishes": wishes,
}


def halves(x, weight, bias):
    return F.linear(x, weight, bias).chunk(2, dim=-1)


def mean_wish(unet, x, t, empty, contexts, scales):
    return wishes(unet, x, t, empty, contexts, [s / max(1, len(scales)) for s in scales])


def first_wish(unet, x, t, empty, contexts, scales):
    return wishes(unet, x, t, empty, contexts[:1], scales[:1])


MISTAKES = [
    ("map_of_a_word", lambda w, i: square(w.sum(dim=1)[..., i]), "not the sum"),
    ("map_of_a_word", lambda w, i: square(w[:, 0, :, i]), "first head"),
    ("map_of_a_word", lambda w, i: word_map(w, i).mT, "on its side"),
    ("map_of_a_word", lambda w, i: word_map(w, i - 1), "another token"),
    ("map_of_a_word", lambda w, i: w.mean(dim=1)[..., i], "shape"),
    ("gated", lambda *a: F.gelu(halves(*a)[0]) * halves(*a)[1], "value comes first"),
    ("gated", lambda *a: F.glu(F.linear(*a)), "sigmoid"),
    ("gated", lambda *a: halves(*a)[0] * F.gelu(halves(*a)[1], approximate="tanh"), "exact"),
    ("gated", lambda *a: torch.mul(*halves(*a)), "where is GELU"),
    ("gated", lambda x, w, b: geglu(x, w, 0 * b), "bias is missing"),
    ("count_spatial_transformer", lambda c, d: count(c, d, inner=4), "value and gate"),
    ("count_spatial_transformer", lambda c, d: count(c, d, qkv_bias=c), "no biases"),
    ("count_spatial_transformer", lambda c, d: count(c, d, norms=3), "group norm"),
    ("count_spatial_transformer", lambda c, d: count(c, c), "read vectors of context_dim"),
    ("count_spatial_transformer", lambda c, d: float(count(c, d)) + 0.5, "whole number"),
    ("two_wishes", mean_wish, "half as loud"),
    ("two_wishes", first_wish, "not heard"),
    ("two_wishes", lambda unet, x, t, empty, *_: unet(x, t, empty.expand(3, -1, -1)), "scales"),
]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_solution_passes(ch10, name):
    getattr(ch10, name)(ANSWERS[name])


@pytest.mark.parametrize(("name", "mistake", "hint"), MISTAKES)
def test_a_usual_mistake_is_named(ch10, name, mistake, hint):
    with pytest.raises(Wrong, match=hint):
        getattr(ch10, name)(mistake)
