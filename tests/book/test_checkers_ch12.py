"""The checkers of chapter 12 let the solution pass and name the usual mistakes."""

import math

import pytest
import scipy.stats
import torch

from minisd.exercises import ch12
from minisd.exercises.checking import Wrong


def exact(share, half):
    return 1.96**2 * share * (1 - share) / half**2


def needed(share, half):
    return math.ceil(exact(share, half))


def p_value(a, b):
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    return min(1.0, 2 * tail)


def unpaired(a, b):
    n = int(a.sum() + b.sum())
    tail = sum(math.comb(n, k) for k in range(int(min(a.sum(), b.sum())) + 1)) / 2**n
    return min(1.0, 2 * tail)


def limit(sizes, values):
    design = torch.stack([torch.ones_like(sizes), 1 / sizes], dim=1)
    return float(torch.linalg.lstsq(design, values[:, None]).solution[0])


def distances(samples, pictures):
    return torch.cdist(samples.flatten(1), pictures.flatten(1))


def share(samples, training, fresh):
    closer = distances(samples, training).amin(1) < distances(samples, fresh).amin(1)
    return float(closer.float().mean())


def by_mean(samples, training, fresh):
    closer = distances(samples, training).mean(1) < distances(samples, fresh).mean(1)
    return closer.float().mean()


ANSWERS = {
    "pictures_needed": needed,
    "paired": p_value,
    "without_end": limit,
    "copied": share,
}
MISTAKES = [
    ("pictures_needed", lambda p, h: math.floor(exact(p, h)), "Rounded up"),
    ("pictures_needed", lambda p, h: math.ceil(exact(p, h) ** 0.5), "square is missing"),
    ("pictures_needed", lambda p, h: needed(p, h / 2), "half of the interval"),
    ("pictures_needed", lambda p, h: math.ceil(p * (1 - p) / h**2), "68 %"),
    ("pictures_needed", lambda p, h: math.ceil(1.96**2 * p / h**2), r"not p\."),
    ("pictures_needed", lambda p, h: str(needed(p, h)), "should be a number"),
    ("paired", lambda a, b: p_value(a, b) / 2, "one tail"),
    ("paired", unpaired, "say nothing"),
    ("paired", lambda a, b: 0.05, "so uneven a split"),
    ("without_end", lambda n, values: values[-1], "largest sample"),
    ("without_end", lambda n, values: limit(1 / n, values), "not in n"),
    ("without_end", lambda n, values: values.mean().item(), "too large"),
    ("copied", lambda *a: 1 - share(*a), "fresh pictures"),
    ("copied", by_mean, "nearest of each set"),
    ("copied", lambda s, t, f: share(s, t, f) * 16, "nearest training picture nearer"),
]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_solution_passes(name):
    getattr(ch12, name)(ANSWERS[name])


@pytest.mark.parametrize(("name", "mistake", "hint"), MISTAKES)
def test_a_usual_mistake_is_named(name, mistake, hint):
    with pytest.raises(Wrong, match=hint):
        getattr(ch12, name)(mistake)


def test_a_probability_above_1_is_refused():
    """Twice the tail of an even split is more than 1."""

    def doubled(a, b):
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        n = only_a + only_b
        return 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n

    with pytest.raises(Wrong, match="can exceed 1"):
        ch12.paired(doubled)


@pytest.mark.parametrize(("a", "b"), [(7, 1), (9, 12), (4, 4), (0, 5)])
def test_the_sign_test_is_that_of_scipy(a, b):
    assert ch12.sign_test(a, b) == pytest.approx(scipy.stats.binomtest(a, a + b).pvalue)
