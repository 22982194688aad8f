"""Checkers for the exercises of chapter 9, the autoencoder."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from minisd.exercises.checking import Wrong, exercise, expect_close, seeded
from minisd.schedules import make_betas


def is_mistake(got: object, wrong: Tensor) -> bool:
    """Say whether an answer is what a known mistake gives."""
    return isinstance(got, Tensor) and got.shape == wrong.shape and torch.allclose(got, wrong, 1e-4)


@exercise("9.1")
def draw(answer: Callable) -> None:
    """Compare with the formula, and with what is often written in its place."""
    mean, logvar, noise = torch.randn((3, 2, 4, 3, 3), generator=seeded())
    got = answer(mean.clone(), logvar.clone(), noise.clone())
    mistakes = {
        "exp(logvar) is the variance: multiply the noise by its square root.": logvar.exp(),
        "logvar is a logarithm: take the exponential.": logvar,
        "Half of logvar is log sigma: take the exponential.": 0.5 * logvar,
        "Dividing is the wrong way: a large variance means much noise.": (-0.5 * logvar).exp(),
    }
    for hint, std in mistakes.items():
        if is_mistake(got, mean + std * noise):
            raise Wrong(hint)
    if is_mistake(got, mean):
        raise Wrong("That is the mean. Where is the noise?")
    wanted = mean + (0.5 * logvar).exp() * noise
    expect_close(got, wanted, "The draw", "z = mean + sigma * noise, with sigma = exp(logvar / 2).")


@exercise("9.2")
def kl_between(answer: Callable) -> None:
    """Compare with torch's own divergence, in both directions."""
    mean_1, logvar_1, mean_2, logvar_2 = torch.randn((4, 3, 2, 4, 5), generator=seeded(1))

    def right(a: Tensor, log_a: Tensor, b: Tensor, log_b: Tensor) -> Tensor:
        p, q = Normal(a, (0.5 * log_a).exp()), Normal(b, (0.5 * log_b).exp())
        return kl_divergence(p, q).sum(dim=(1, 2, 3))

    zeros = torch.zeros_like(mean_1)
    hint = "To the standard normal it must be what DiagonalGaussian.kl says."
    simple = answer(mean_1, logvar_1, zeros, zeros)
    if is_mistake(simple, right(mean_1, logvar_1, zeros, zeros) / mean_1[0].numel()):
        raise Wrong("Sum over the numbers of a picture, do not average them.")
    expect_close(simple, right(mean_1, logvar_1, zeros, zeros), "KL", hint, 1e-3)
    got = answer(mean_1, logvar_1, mean_2, logvar_2)
    wanted = right(mean_1, logvar_1, mean_2, logvar_2)
    if is_mistake(got, right(mean_2, logvar_2, mean_1, logvar_1)):
        raise Wrong("That is the other direction; KL is not symmetric. The draws are from cloud 1.")
    hint = "Under cloud 1 the mean of (z - mean_2)^2 is sigma_1^2 + (mean_1 - mean_2)^2."
    expect_close(got, wanted, "KL", hint, 1e-2)


@exercise("9.3")
def shift_and_scale(answer: Callable) -> None:
    """Check the statistics of the channels, and that the clouds are counted."""
    size = torch.tensor([0.5, 1.0, 4.0]).view(1, 3, 1, 1)
    offset = torch.tensor([3.0, 0.0, -1.0]).view(1, 3, 1, 1)
    means = offset + size * torch.randn(20, 3, 4, 4, generator=seeded(2))
    logvars = torch.randn(20, 3, 4, 4, generator=seeded(3))
    got = answer(means.clone(), logvars.clone())
    if not isinstance(got, tuple) or len(got) != 2:
        raise Wrong("Return two things: the shift and the scale.")
    shift, variance = means.mean(dim=(0, 2, 3)), means.var(dim=(0, 2, 3), correction=0)
    expect_close(got[0], shift, "The shift", "It is the mean of each channel: one number for each.")
    mistakes = {
        "The clouds have a width, too: add the mean of their variances.": variance.rsqrt(),
        "exp(logvar) is the variance already; do not take its root before you average.": (
            (variance + (0.5 * logvars).exp().mean(dim=(0, 2, 3))).rsqrt()
        ),
        "Variances add up, standard deviations do not.": (
            1 / (variance.sqrt() + (0.5 * logvars).exp().mean(dim=(0, 2, 3)))
        ),
        "That is the standard deviation; the scale is 1 over it.": (
            (variance + logvars.exp().mean(dim=(0, 2, 3))).sqrt()
        ),
        "That is 1 over the variance; take its root.": (
            1 / (variance + logvars.exp().mean(dim=(0, 2, 3)))
        ),
    }
    for hint, wrong in mistakes.items():
        if is_mistake(got[1], wrong):
            raise Wrong(hint)
    wanted = (variance + logvars.exp().mean(dim=(0, 2, 3))).rsqrt()
    hint = "The variance of a draw is that of the means plus the mean of the variances."
    expect_close(got[1], wanted, "The scale", hint, 2e-3)  # with or without n - 1


@exercise("9.4")
def fitting_schedule(answer: Callable) -> None:
    """Compare signal-to-noise ratios, in double precision: they span many powers of ten."""
    alpha_bar = (1 - make_betas("linear").double()).cumprod(0)
    for k in (10.0, 1.0, 0.2):
        got = answer(alpha_bar.clone(), k)
        if not isinstance(got, Tensor) or got.shape != alpha_bar.shape:
            raise Wrong("Return one value for each timestep, a tensor like alpha_bar.")
        if not ((got > 0) & (got < 1)).all():
            raise Wrong("alpha_bar' must lie between 0 and 1. Solve for it: SNR = a / (1 - a).")
        wanted = alpha_bar / (1 - alpha_bar)
        snr = k**2 * got / (1 - got)
        if torch.allclose(snr, wanted, 1e-4, 0):
            continue
        if torch.allclose(snr, k**4 * wanted, 1e-4, 0):
            raise Wrong("The other way: larger latents need more noise, so a smaller alpha_bar'.")
        if torch.allclose(snr, k * wanted, 1e-4, 0):
            raise Wrong("The signal's variance grows with k squared.")
        raise Wrong(
            f"For k = {k:g}, k^2 a' / (1 - a') should be {wanted[500]:.4g} at t = 500, as it was, "
            f"but is {snr[500]:.4g}."
        )
