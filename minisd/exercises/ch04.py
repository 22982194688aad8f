"""Checkers for the exercises of chapter 4, training a DDPM."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minisd.exercises.checking import Wrong, exercise, expect_close, seeded
from minisd.schedules import add_noise, get_velocity


@exercise("4.1")
def velocity_loss(answer: Callable) -> None:
    """Compare with the loss of a known prediction, which the model makes from what it was given."""
    generator = seeded()
    x_start, noise = torch.randn((2, 3, 1, 4, 4), generator=generator)
    t, alpha_bar = torch.tensor([10, 500, 900]), torch.tensor([0.9, 0.4, 0.1])[:, None, None, None]
    seen = []

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append((x_t, t))
        return x_t / 2

    got = answer(model, x_start, noise, t, alpha_bar)
    if len(seen) != 1:
        raise Wrong(f"model was called {len(seen)} times. Call it once, as model(x_t, t).")
    x_t = add_noise(x_start, noise, alpha_bar)
    expect_close(seen[0][0], x_t, "What the model was given", "It sees x_t: mix x_start and noise.")
    if seen[0][1] is not t:
        raise Wrong("The model was not given t. Call it as model(x_t, t).")
    velocity = get_velocity(x_start, noise, alpha_bar)
    wanted = (x_t / 2 - velocity).square().mean()
    for other, name in ((noise, "noise"), (x_start, "picture"), (-velocity, "velocity's negative")):
        wrong = (x_t / 2 - other).square().mean()
        if isinstance(got, torch.Tensor) and got.shape == () and torch.isclose(got, wrong):
            raise Wrong(f"Your target is the {name}. The target is the velocity.")
    expect_close(got, wanted, "The loss", "It is the mean of the squared error, a scalar.")


@exercise("4.2")
def reverse_mean(answer: Callable) -> None:
    """Compare with DDPM eq. 7, to which eq. 11 is equal."""
    generator = seeded(1)
    x_start, noise = torch.randn((2, 2, 1, 4, 4), generator=generator)
    alpha, alpha_bar = torch.tensor(0.8), torch.tensor(0.3)
    previous = alpha_bar / alpha
    x_t = add_noise(x_start, noise, alpha_bar)
    wanted = (previous.sqrt() * (1 - alpha) * x_start + alpha.sqrt() * (1 - previous) * x_t) / (
        1 - alpha_bar
    )
    got = answer(x_t, noise, alpha, alpha_bar)
    if isinstance(got, torch.Tensor) and torch.allclose(got * alpha.sqrt(), wanted, atol=1e-4):
        raise Wrong("Nearly: divide by the square root of alpha, not by alpha.")
    expect_close(got, wanted, "The mean", "Beta is 1 - alpha; mind which bar stands where.")


@exercise("4.3")
def half_life(answer: Callable) -> None:
    """Compare with the definition, step by step."""
    for decay in (0.5, 0.9, 0.995, 0.9999):
        wanted = math.ceil(math.log(0.5) / math.log(decay))
        got = answer(decay)
        if got == wanted - 1:
            raise Wrong(f"For a decay of {decay} you say {got}, but the weight is still above 1/2.")
        if got != wanted:
            raise Wrong(
                f"For a decay of {decay} you say {got}. After n steps the weight is decay to the "
                "power n; find the smallest whole n for which that is at most 1/2."
            )


@exercise("4.4")
def min_snr_weight(answer: Callable) -> None:
    """Compare with min(SNR, gamma) / SNR."""
    alpha_bar = torch.tensor([0.001, 0.3, 0.5, 0.9, 0.999])
    snr = alpha_bar / (1 - alpha_bar)
    for gamma in (5.0, 1.0):
        got = answer(alpha_bar, gamma)
        if isinstance(got, torch.Tensor) and torch.allclose(got, snr.clamp(max=gamma)):
            raise Wrong(
                "That is the weight of the picture's error. An error of the noise already carries "
                "a factor SNR; take it out."
            )
        expect_close(got, snr.clamp(max=gamma) / snr, "The weight", "It never exceeds 1.")
