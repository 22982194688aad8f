"""The checkers of chapter 11 let the solution pass and name the usual mistakes."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from minisd.exercises import ch11
from minisd.exercises.checking import Wrong


def walked(timesteps, strength):
    n = len(timesteps)
    return timesteps[n - int(n * strength) :]


def hold(x, x_start, noise, alpha_bar, mask):
    known = alpha_bar.sqrt() * x_start + (1 - alpha_bar).sqrt() * noise
    return mask * x + (1 - mask) * known


def to_grid(maps, labels, factor, pattern="b (h p) (w q) k -> b (k p q) h w"):
    return rearrange(F.one_hot(maps, labels).float(), pattern, p=factor, q=factor)


def leashes(unet, x, t, beside, context, empty, map_scale, words_scale, mistake=""):
    def predict(shown, said):
        return unet(torch.cat([x, shown], dim=1), t, said.expand(len(x), -1, -1))

    blank = torch.zeros_like(beside)
    nothing, mapped, both = predict(blank, empty), predict(beside, empty), predict(beside, context)
    first, last, base = nothing, mapped, nothing
    if mistake == "swapped":
        map_scale, words_scale = words_scale, map_scale
    if mistake == "without the map":
        both, last = predict(blank, context), nothing
    if mistake == "begins with the map":
        base, first = mapped, mapped
    if mistake == "from nothing":
        last = nothing
    return base + map_scale * (mapped - first) + words_scale * (both - last)


ANSWERS = {
    "last_part": walked,
    "hold_what_is_known": hold,
    "map_on_the_grid": to_grid,
    "two_leashes": leashes,
}


def wrong_leash(mistake):
    return lambda *arguments: leashes(*arguments, mistake=mistake)


MISTAKES = [
    ("last_part", lambda ts, s: ts[: int(len(ts) * s)], "noisy part"),
    ("last_part", lambda ts, s: ts[int(len(ts) * s) :], "left away"),
    ("last_part", lambda ts, s: walked(ts, s).flip(0), "noisiest timestep comes first"),
    ("last_part", lambda ts, s: ts[-max(1, -int(-len(ts) * s // 1)) :], "rounded down"),
    ("last_part", lambda ts, s: walked(ts, s).tolist(), "a tensor of timesteps"),
    ("hold_what_is_known", lambda *a: hold(*a[:4], 1 - a[4]), "mask is 1 where"),
    ("hold_what_is_known", lambda x, x0, n, a, m: m * x + (1 - m) * x0, "as noisy"),
    ("hold_what_is_known", lambda x, x0, n, a, m: hold(x, x0, n, a, m)[:1], "shape"),
    (
        "hold_what_is_known",
        lambda x, x0, n, a, m: m * x + (1 - m) * (a * x0 + (1 - a) * n),
        "square roots",
    ),
    ("hold_what_is_known", lambda x, *_: x, "Nothing is held"),
    (
        "map_on_the_grid",
        lambda maps, k, f: F.avg_pool2d(F.one_hot(maps, k).movedim(-1, 1).float(), f),
        "forgets where",
    ),
    ("map_on_the_grid", lambda *a: to_grid(*a, "b (h p) (w q) k -> b (k q p) h w"), "rows first"),
    ("map_on_the_grid", lambda *a: to_grid(*a, "b (h p) (w q) k -> b (p q k) h w"), "label comes"),
    (
        "map_on_the_grid",
        lambda maps, k, f: F.pixel_unshuffle(maps[:, None].float(), f),
        "make them one-hot",
    ),
    ("map_on_the_grid", lambda maps, k, f: to_grid(maps, k, f).mT, "shape"),
    ("two_leashes", wrong_leash("swapped"), "changed places"),
    ("two_leashes", wrong_leash("without the map"), "with the map in view"),
    ("two_leashes", wrong_leash("begins with the map"), "neither map nor words"),
    ("two_leashes", wrong_leash("from nothing"), "not from nothing to both"),
]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_solution_passes(name):
    getattr(ch11, name)(ANSWERS[name])


@pytest.mark.parametrize(("name", "mistake", "hint"), MISTAKES)
def test_a_usual_mistake_is_named(name, mistake, hint):
    with pytest.raises(Wrong, match=hint):
        getattr(ch11, name)(mistake)
