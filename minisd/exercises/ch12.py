"""Checkers for the exercises of chapter 12, measuring."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from minisd.exercises.checking import Wrong, exercise, seeded


def number(got: object, what: str) -> float:
    """Return a number, or raise Wrong that says what came instead."""
    if isinstance(got, Tensor) and got.ndim == 0:
        got = got.item()
    if isinstance(got, bool) or not isinstance(got, int | float):
        raise Wrong(f"{what} should be a number, but is {type(got).__name__}.")
    return float(got)


def expect_number(
    got: object,
    wanted: float,
    what: str,
    hints: Mapping[str, float],
    hint: str,
    tolerance: float = 1e-5,
) -> None:
    """Raise Wrong, with the hint of a usual mistake if `got` is just that."""
    value = number(got, what)

    def equals(other: float) -> bool:
        return math.isclose(value, other, rel_tol=tolerance, abs_tol=1e-9)

    if equals(wanted):
        return
    for mistake, wrong in hints.items():
        if equals(wrong):
            raise Wrong(mistake)
    raise Wrong(f"{what} should be {wanted:.6g} here, not {value:.6g}. {hint}")


@exercise("12.1")
def pictures_needed(answer: Callable) -> None:
    """Compare with the formula, for shares near and far from 1."""
    for share, half in ((0.95, 0.02), (0.5, 0.03), (0.9, 0.01)):
        exact = 1.96**2 * share * (1 - share) / half**2
        root = 1.96 * math.sqrt(share * (1 - share)) / half
        got = answer(share, half)
        hints = {
            "Rounded up, please: with one picture less the interval would be too wide.": math.floor(
                exact
            ),
            "The square is missing: to halve an interval takes four times the pictures.": math.ceil(
                root
            ),
            "`half_width` is half of the interval, from its middle to its end.": math.ceil(
                4 * exact
            ),
            "One standard deviation covers 68 %; 95 % take 1.96 of them.": math.ceil(
                share * (1 - share) / half**2
            ),
            "The variance of one answer is p (1 - p), not p.": math.ceil(1.96**2 * share / half**2),
        }
        hint = "Solve 1.96 sqrt(p (1 - p) / n) = half_width for n, and round up."
        expect_number(got, math.ceil(exact), "The number of pictures", hints, hint)


def sign_test(a: int, b: int) -> float:
    """Return the two-sided p-value of a against b among a + b fair coins."""
    n = a + b
    tail = sum(math.comb(n, k) for k in range(min(a, b) + 1)) / 2**n
    return min(1.0, 2 * tail)


@exercise("12.2")
def paired(answer: Callable) -> None:
    """Compare with the sign test on the prompts about which two models differ."""
    for counts in ((90, 7, 1, 2), (60, 9, 12, 19), (30, 4, 4, 2), (50, 0, 0, 3)):
        both, only_a, only_b, neither = counts
        a = torch.tensor([1] * (both + only_a) + [0] * (only_b + neither), dtype=torch.bool)
        b = torch.tensor([1] * both + [0] * only_a + [1] * only_b + [0] * neither).bool()
        order = torch.randperm(len(a), generator=seeded(both))
        got = answer(a[order], b[order])
        wanted = sign_test(only_a, only_b)
        hints = {
            "That is one tail. Nobody said before which model would be better: count both.": (
                wanted / 2
            ),
            "Twice a tail can exceed 1 if the two are about equal: a probability cannot.": (
                2 * sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1))
            )
            / 2 ** (only_a + only_b),
            "Prompts on which both are right, or both wrong, say nothing: leave them out.": (
                sign_test(both + only_a, both + only_b)
            ),
            "Count also what is more extreme than what you saw, not only just that.": min(
                1.0, 2 * math.comb(only_a + only_b, only_a) / 2 ** (only_a + only_b)
            ),
        }
        hint = "Of the prompts on which only one is right: how likely is so uneven a split by luck?"
        expect_number(got, wanted, "The p-value", hints, hint)


@exercise("12.3")
def without_end(answer: Callable) -> None:
    """Compare with the intercept of the line, on values with and without scatter."""
    sizes = torch.tensor([100.0, 200.0, 400.0, 1000.0, 2000.0])
    for limit, slope, scatter in ((1.5, 300.0, 0.0), (0.4, 120.0, 0.02)):
        noise = torch.randn(len(sizes), generator=seeded(3)) * scatter
        values = limit + slope / sizes + noise
        wanted, steepness = line(1 / sizes, values)
        hints = {
            "That is the value of the largest sample; the bias in it is small, but there.": float(
                values[-1]
            ),
            "The bias is a straight line in 1 / n, not in n.": line(sizes, values)[0],
            "That is the slope. The limit is where the line meets 1 / n = 0.": steepness,
            "That is the mean of the values: each of them is too large.": float(values.mean()),
        }
        hint = "Fit a straight line to the values against 1 / n; the limit is its height at 0."
        got = answer(sizes.clone(), values.clone())
        expect_number(got, wanted, "The limit", hints, hint, tolerance=1e-3)


def line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return intercept and slope of the least squares line."""
    x, y = x.double(), y.double()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean()), float(slope)


@exercise("12.4")
def copied(answer: Callable) -> None:
    """Compare on samples of which some are copies and others are not."""
    for seed in (0, 1):
        generator = seeded(seed)
        training = torch.randn(20, 3, 4, 4, generator=generator)
        fresh = torch.randn(20, 3, 4, 4, generator=generator)
        samples = torch.randn(16, 3, 4, 4, generator=generator)
        samples[:6] = training[:6] + 0.1 * samples[:6]
        samples[6:9] = fresh[:3] + 0.1 * samples[6:9]
        to_training = torch.cdist(samples.flatten(1), training.flatten(1))
        to_fresh = torch.cdist(samples.flatten(1), fresh.flatten(1))

        def share(closer: Tensor) -> float:
            return float(closer.float().mean())

        wanted = share(to_training.amin(dim=1) < to_fresh.amin(dim=1))
        hints = {
            "That is the share that lies nearer to the fresh pictures.": 1 - wanted,
            "Compare the nearest of each set, not the mean distance to all.": share(
                to_training.mean(dim=1) < to_fresh.mean(dim=1)
            ),
            "Each picture may be near any of the others: compare with all, not with its own row.": (
                share(to_training[:, :16].diagonal() < to_fresh[:, :16].diagonal())
            ),
        }
        hint = "For each sample: is its nearest training picture nearer than its nearest fresh one?"
        got = answer(samples.clone(), training.clone(), fresh.clone())
        expect_number(got, wanted, "The share", hints, hint)
