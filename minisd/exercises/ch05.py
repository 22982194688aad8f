"""Checkers for the exercises of chapter 5, schedulers."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from minisd.exercises.checking import Wrong, exercise, expect_close, seeded
from minisd.schedules import add_noise, get_velocity


@exercise("5.1")
def ddim_from_velocity(answer: Callable) -> None:
    """Mix a known picture and a known noise again, at another level."""
    x_start, noise = torch.randn((2, 3, 1, 4, 4), generator=seeded())
    for here, there in ((0.2, 0.7), (0.9, 0.99), (0.5, 1.0)):
        alpha_bar, alpha_bar_prev = torch.tensor(here), torch.tensor(there)
        x_t = add_noise(x_start, noise, alpha_bar)
        v_pred = get_velocity(x_start, noise, alpha_bar)
        got = answer(v_pred, x_t, alpha_bar, alpha_bar_prev)
        mistakes = {
            "You came back to x_t: mix with alpha_bar_prev, not with alpha_bar.": x_t,
            "The signs of v are wrong: v = sqrt(abar) eps - sqrt(1 - abar) x_0, so x_0 needs minus "
            "v and the noise plus v.": _mixed(-v_pred, x_t, alpha_bar, alpha_bar_prev),
            "That is the step for a network that predicts the noise. Yours predicts v: find x_0 "
            "and the noise from it first.": _as_noise(v_pred, x_t, alpha_bar, alpha_bar_prev),
        }
        if there < 1:
            mistakes |= {
                "That is the picture itself. Mix the noise in again, at the new level.": x_start,
                "Take the square roots: signal and noise are mixed with sqrt(alpha_bar_prev) and "
                "sqrt(1 - alpha_bar_prev).": there * x_start + (1 - there) * noise,
            }
        name_mistakes(got, mistakes)
        wanted = add_noise(x_start, noise, alpha_bar_prev)
        expect_close(got, wanted, "The step", "Find x_0 and the noise first, then mix them again.")


def _mixed(v_pred: Tensor, x_t: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    x_start = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * v_pred
    noise = (1 - alpha_bar).sqrt() * x_t + alpha_bar.sqrt() * v_pred
    return add_noise(x_start, noise, alpha_bar_prev)


def _as_noise(noise: Tensor, x_t: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    return add_noise(
        (x_t - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt(), noise, alpha_bar_prev
    )


def name_mistakes(got: object, mistakes: dict[str, Tensor]) -> None:
    """Raise Wrong with the name of the mistake that leads to this very answer, if one does."""
    for message, mistake in mistakes.items():
        if isinstance(got, Tensor) and got.shape == mistake.shape:
            if torch.allclose(got.double(), mistake.double(), atol=1e-5):
                raise Wrong(message)


@exercise("5.2")
def steps_for(answer: Callable) -> None:
    """Count the calls that the steps would cost."""
    costs = {
        "ddim": (lambda n: n, "One call a step."),
        "dpm-solver++": (lambda n: n, "One call a step: it remembers what it needs."),
        "heun": (lambda n: 2 * n - 1, "Two calls a step, but one in the last."),
        "pndm": (lambda n: n + 1, "One call a step, and the first step is repeated."),
        "pndm-prk": (lambda n: n + 9, "Four calls for each of the first three steps, then one."),
    }
    for sampler, (cost, hint) in costs.items():
        for budget in (13, 20, 25, 50, 100):
            steps = answer(sampler, budget)
            if not isinstance(steps, int):
                raise Wrong(f"For {sampler} you return {steps!r}; steps are a whole number.")
            if cost(steps) > budget:
                spent = f"{steps} steps of {sampler} cost {cost(steps)} calls"
                raise Wrong(f"{spent}, more than {budget}. {hint}")
            if cost(steps + 1) <= budget:
                raise Wrong(f"{budget} calls pay for more than {steps} steps of {sampler}. {hint}")


@exercise("5.3")
def heun(answer: Callable) -> None:
    """Count the calls, and compare one step and many with what they must give."""
    calls = []

    def slope(x: Tensor, sigma: Tensor | float) -> Tensor:
        calls.append(float(sigma))
        return 2 * sigma * x

    one = answer(slope, torch.tensor([1.0], dtype=torch.float64), [1.0, 0.75])
    if len(calls) != 2:
        raise Wrong(f"One step called slope {len(calls)} times; Heun's method looks twice.")
    if calls != [1.0, 0.75]:
        raise Wrong(f"You called slope at sigma = {calls}; look at both ends of the step.")
    # here 2, and there 2 * 0.75 * 0.5 = 0.75, because the trial step leads to 1 - 0.25 * 2 = 0.5
    first, second, h = torch.tensor([2.0]), torch.tensor([0.75]), -0.25
    mistakes = {
        "That is Euler's step. Take the mean of the two slopes.": 1 + h * first,
        "You step from the point of the trial. Step from where you were.": (
            1 + h * first + h * (first + second) / 2
        ),
        "You follow the second slope alone. Take the mean of both.": 1 + h * second,
        "You follow the sum of the slopes. Halve it.": 1 + h * (first + second),
        "Halve both slopes, not only the second.": 1 + h * first + h * second / 2,
        "The second slope belongs to the point of the trial; you asked for it at the old x.": (
            1 + h * (first + 1.5) / 2
        ),
    }
    name_mistakes(one, mistakes)
    wanted = 1 + h * (first + second) / 2
    expect_close(one, wanted, "One step", "Step from where you were, by the mean.")
    sigmas = torch.linspace(1, 0.2, 41, dtype=torch.float64).tolist()
    many = answer(slope, torch.tensor([math.e], dtype=torch.float64), sigmas)
    exact = torch.tensor([math.exp(0.2**2)])  # x = exp(sigma^2) solves it
    expect_close(many, exact, "Forty steps", "Each step begins where the last one ended.", 2e-3)


@exercise("5.4")
def mean_prediction(answer: Callable) -> None:
    """Integrate a line, on which the rule must be exact."""
    now, before = torch.randn((2, 2, 3), generator=seeded(2))
    equal = answer(now, before, 3.0, 2.0, 1.0)
    hint = "The mean of a line over an interval is its value in the middle."
    expect_close(equal, 1.5 * now - 0.5 * before, "At equal steps, the mean", hint)
    a, b = torch.randn((2, 4), generator=seeded(3))
    for sigma_0, sigma_1, sigma_2 in ((5.0, 2.0, 1.5), (3.0, 2.5, 0.5)):
        got = answer(a + b * sigma_1, a + b * sigma_0, sigma_0, sigma_1, sigma_2)
        wanted = a + b * (sigma_1 + sigma_2) / 2
        expect_close(got, wanted, "At unequal steps, the mean", "Mind the lengths of both steps.")


@exercise("5.5")
def calls_for(answer: Callable) -> None:
    """Let errors fall by the order, and round up."""
    wanted, error, calls = 0.003, 0.08, 20
    for order in (1, 2, 3):
        exact = calls * (error / wanted) ** (1 / order)
        got = answer(wanted, error, calls, order)
        if isinstance(got, bool) or not isinstance(got, int):
            raise Wrong(f"You return {got!r}; calls are a whole number, an int.")
        if got == math.ceil(exact):
            continue
        asked = f"From {error} at {calls} calls to {wanted}, order {order}"
        if got == math.floor(exact):
            raise Wrong(f"{asked}: with {got} calls the error is still a little above. Round up.")
        if order > 1 and abs(got - calls * error / wanted) < 1.5:
            raise Wrong(f"{asked}: you reckon as if every method were of first order.")
        if order > 1 and abs(got - calls * (error / wanted) ** order) < 1.5:
            raise Wrong(f"{asked}: {got} calls? A method of higher order needs fewer, not more.")
        if got < calls:
            raise Wrong(f"{asked}: {got} calls are fewer than before, and the error must fall.")
        raise Wrong(f"{asked}: {got} is not right. The error falls as calls to the power -order.")


def _euler(slope: Callable, x: float, sigmas: Sequence[float]) -> float:
    for sigma, sigma_next in pairwise(sigmas):
        x = x + (sigma_next - sigma) * slope(x, sigma)
    return x


def _midpoint(slope: Callable, x: float, sigmas: Sequence[float]) -> float:
    for sigma, sigma_next in pairwise(sigmas):
        h = sigma_next - sigma
        x = x + h * slope(x + h / 2 * slope(x, sigma), sigma + h / 2)
    return x


def _runge_kutta(slope: Callable, x: float, sigmas: Sequence[float]) -> float:
    for sigma, sigma_next in pairwise(sigmas):
        h = sigma_next - sigma
        first = slope(x, sigma)
        second = slope(x + h / 2 * first, sigma + h / 2)
        third = slope(x + h / 2 * second, sigma + h / 2)
        fourth = slope(x + h * third, sigma_next)
        x = x + h * (first + 2 * second + 2 * third + fourth) / 6
    return x


@exercise("5.6")
def measured_order(answer: Callable) -> None:
    """Let three methods of known order be measured."""
    for name, method, order in (
        ("Euler's method", _euler, 1),
        ("The midpoint method", _midpoint, 2),
        ("The method of Runge and Kutta", _runge_kutta, 4),
    ):
        got = float(answer(method))
        if abs(got - order) < 0.15:
            continue
        measured = f"{name} has order {order}, and you measured {got:.3g}."
        if abs(got + order) < 0.15:
            raise Wrong(f"{measured} Divide the larger error by the smaller.")
        if abs(got - 2**order) < 0.3:
            raise Wrong(f"{measured} That is the ratio of the errors; the order is its logarithm.")
        if abs(got - order * math.log(2)) < 0.1:
            raise Wrong(f"{measured} Divide by the logarithm of the ratio of the steps.")
        raise Wrong(
            f"{measured} Follow the curve to 0.2, compare with exp(0.2^2), take enough steps (and "
            "Python's floats, not float32)."
        )
