"""Checkers for the exercises of chapter 5, schedulers."""

import math
from collections.abc import Callable

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
        got = answer(get_velocity(x_start, noise, alpha_bar), x_t, alpha_bar, alpha_bar_prev)
        if isinstance(got, torch.Tensor) and got.shape == x_t.shape:
            if torch.allclose(got, x_t, atol=1e-5):
                raise Wrong("You came back to x_t: mix with alpha_bar_prev, not with alpha_bar.")
            if there < 1 and torch.allclose(got, x_start, atol=1e-5):
                raise Wrong("That is the picture itself. Mix the noise in again, at the new level.")
        wanted = add_noise(x_start, noise, alpha_bar_prev)
        expect_close(got, wanted, "The step", "Find x_0 and the noise first, then mix them again.")


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

    one = answer(slope, torch.tensor([1.0], dtype=torch.float64), [1.0, 0.5])
    if len(calls) != 2:
        raise Wrong(f"One step called slope {len(calls)} times; Heun's method looks twice.")
    if calls != [1.0, 0.5]:
        raise Wrong(f"You called slope at sigma = {calls}; look at both ends of the step.")
    euler = torch.tensor([1 - 0.5 * 2.0], dtype=torch.float64)
    if torch.allclose(torch.as_tensor(one), euler):
        raise Wrong("That is Euler's step. Take the mean of the two slopes.")
    # the trial step leads to 1 - 0.5 * 2 = 0, where the slope is 0: the mean slope is 1
    expect_close(one, torch.tensor([0.5]), "One step", "Step from where you were, by the mean.")
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
def down_and_up(answer: Callable) -> None:
    """Compare with Euler at 0, with the ancestral step at 1, and add up the squares."""
    for sigma, sigma_next in ((10.0, 4.0), (1.0, 0.9)):
        for eta in (0.0, 0.4, 1.0):
            got = answer(sigma, sigma_next, eta)
            if not isinstance(got, tuple) or len(got) != 2:
                raise Wrong("Return two numbers: sigma_down, sigma_up.")
            down, up = map(float, got)
            if abs(down**2 + up**2 - sigma_next**2) > 1e-4:
                raise Wrong(
                    f"The squares add up to {down**2 + up**2:.3g}, not to sigma_next squared, "
                    f"{sigma_next**2:.3g}: the level after the step is wrong."
                )
            full = sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
            if abs(up - eta * full) > 1e-4:
                raise Wrong(
                    f"At eta = {eta} sigma_up should be {eta * full:.3g}, not {up:.3g}. At eta = 1 "
                    "its square is that of DDPM's posterior; eta scales the root."
                )
