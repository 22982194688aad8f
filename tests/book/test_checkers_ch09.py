"""The checkers of chapter 9 tell wrong answers what is wrong with them."""

import pytest
import torch

import minisd


def told(number, answer, message):
    verdict = minisd.check(number, answer)
    assert not verdict and message in verdict.message, verdict


def kl(mean_1, logvar_1, mean_2, logvar_2):
    spread, distance = (logvar_1 - logvar_2).exp(), (mean_1 - mean_2) ** 2 / logvar_2.exp()
    return 0.5 * (spread + distance - 1 + logvar_2 - logvar_1).sum((1, 2, 3))


def moments(means, logvars):
    over = (0, 2, 3)
    return means.mean(over), means.var(over, correction=0), logvars.exp().mean(over)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda m, v, e: m + v.exp() * e, "is the variance"),
        (lambda m, v, e: m + v * e, "take the exponential"),
        (lambda m, v, e: m + 0.5 * v * e, "Half of logvar"),
        (lambda m, v, e: m + (-0.5 * v).exp() * e, "the wrong way"),
        (lambda m, v, e: m, "Where is the noise"),
        (lambda m, v, e: m + e, "z = mean + sigma * noise"),
        (lambda m, v, e: 1.0, "should be a tensor"),
    ],
)
def test_draw(answer, message):
    told("9.1", answer, message)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda a, u, b, v: kl(a, u, b, v) / a[0].numel(), "do not average"),
        (lambda a, u, b, v: kl(b, v, a, u), "To the standard normal"),
        (lambda a, u, b, v: kl(a, u, b, v) if b.any() == 0 else kl(b, v, a, u), "other direction"),
        (lambda a, u, b, v: kl(a, u, 0 * b, 0 * v), "Under cloud 1"),
        (lambda a, u, b, v: kl(a, u, b, v).sum(), "shape"),
    ],
)
def test_kl_between(answer, message):
    assert minisd.check("9.2", kl)
    told("9.2", answer, message)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (lambda a, b, v: a.rsqrt(), "have a width, too"),
        (lambda a, b, v: (a + (0.5 * v).exp().mean((0, 2, 3))).rsqrt(), "the variance already"),
        (lambda a, b, v: 1 / (a.sqrt() + (0.5 * v).exp().mean((0, 2, 3))), "Variances add up"),
        (lambda a, b, v: (a + b).sqrt(), "1 over it"),
        (lambda a, b, v: 1 / (a + b), "take its root"),
        (lambda a, b, v: (a + b).rsqrt() * 1.1, "The variance of a draw"),
    ],
)
def test_shift_and_scale(scale, message):
    def answer(means, logvars):
        shift, variance, width = moments(means, logvars)
        return shift, scale(variance, width, logvars)

    told("9.3", answer, message)


def test_shift_and_scale_wants_two_things_for_each_channel():
    told("9.3", lambda m, v: m.mean((0, 2, 3)), "two things")
    told("9.3", lambda m, v: (m.mean(), m.std()), "one number for each")


def of(snr):
    return snr / (1 + snr)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda a, k: a / (1 - a) / k**2, "between 0 and 1"),
        (lambda a, k: of(a / (1 - a) * k**2), "The other way"),
        (lambda a, k: of(a / (1 - a) / k), "k squared"),
        (lambda a, k: a, "should be"),
        (lambda a, k: torch.tensor(0.5), "one value for each"),
    ],
)
def test_fitting_schedule(answer, message):
    told("9.4", answer, message)
