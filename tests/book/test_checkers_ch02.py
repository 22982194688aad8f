"""The checkers of chapter 2 tell wrong answers what is wrong with them."""

import pytest
import torch

import minisd


def jump(signal=lambda a: a.sqrt(), noise_std=lambda a: (1 - a).sqrt(), level=0, axes=4):
    """Return a function for exercise 2.1; its defaults are right."""

    def add_noise_at(x_start, noise, t, alphas_cumprod):
        alpha_bar = alphas_cumprod[t + level].reshape(-1, *[1] * (axes - 1))
        return signal(alpha_bar) * x_start + noise_std(alpha_bar) * noise

    return add_noise_at


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (jump(axes=1), "three more axes"),
        (jump(noise_std=lambda a: 1 - a.sqrt(), level=-1), "not 1 - sqrt(alpha_bar)"),
        (jump(noise_std=lambda a: 1 - a.sqrt()), "not 1 - sqrt(alpha_bar)"),
        (jump(level=-1), "one level too early"),
        (jump(noise_std=lambda a: 1 - a, level=-1), "The noise lacks its square root"),
        (jump(signal=lambda a: a), "The picture lacks its square root"),
        (jump(signal=lambda a: a, noise_std=lambda a: 1 - a), "forgot the square roots"),
        (jump(signal=lambda a: 1), "not faded"),
        (jump(signal=lambda a: (1 - a).sqrt(), noise_std=lambda a: a.sqrt()), "each other's"),
        (jump(signal=lambda a: -a.sqrt()), "See DDPM eq. 4"),
        (lambda x, noise, t, a: jump()(x, noise, t[:1], a), "the level of the first"),
    ],
)
def test_add_noise_at(answer, message):
    assert minisd.check("2.1", jump())
    verdict = minisd.check("2.1", answer)
    assert not verdict and message in verdict.message


@pytest.mark.parametrize(
    ("guesses", "message"),
    [
        ({100: "some", 10: 90}, "from 0 to 100"),
        ({100: 37, 10: 120}, "from 0 to 100"),
        ({100: 0.37, 10: 0.9}, "Return percent"),
        ({100: 90, 10: 37}, "Which is more"),
        ({100: 0, 10: 0}, "Both the same"),
        ({100: 0, 10: 90}, "1 % of what is left"),
        ({100: 60, 10: 90}, "60 % after 100 steps is too much"),
        ({100: 37, 10: 70}, "70 % after 10 steps is too little"),
    ],
)
def test_percent_left(guesses, message):
    assert minisd.check("2.2", {100: 37, 10: 90}.get)
    assert minisd.check("2.2", {100: 36.4, 10: 90.4}.get)
    verdict = minisd.check("2.2", guesses.get)
    assert not verdict and message in verdict.message


def averaged(gain, off=0):
    """Return a function for exercise 2.5; a gain of 4 is right."""

    def level_when_averaged(alphas_cumprod, t):
        ratios = alphas_cumprod / (1 - alphas_cumprod)
        return int((ratios / (gain * ratios[t])).log().abs().argmin()) + off

    return level_when_averaged


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (averaged(1), "the level itself"),
        (averaged(2), "The SNR compares variances"),
        (averaged(0.25), "weaker, not stronger"),
        (averaged(16), "averaged twice"),
        (averaged(4, off=8), "Measure the variance"),
        (lambda alphas_cumprod, t: 0.5, "whole number"),
    ],
)
def test_level_when_averaged(answer, message):
    for right in (averaged(4), averaged(4, off=2), lambda a, t: torch.tensor(averaged(4)(a, t))):
        assert minisd.check("2.5", right)
    verdict = minisd.check("2.5", answer)
    assert not verdict and message in verdict.message
