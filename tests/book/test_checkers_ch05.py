"""The checkers of chapter 5 tell wrong answers what is wrong with them."""

import math
from itertools import pairwise

import pytest

import minisd


def told(number, answer, message):
    verdict = minisd.check(number, answer)
    assert not verdict and message in verdict.message, verdict


def parts(v, x, a):
    return a.sqrt() * x - (1 - a).sqrt() * v, (1 - a).sqrt() * x + a.sqrt() * v


def mix(x_start, noise, a):
    return a.sqrt() * x_start + (1 - a).sqrt() * noise


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda v, x, a, b: mix(*parts(v, x, a), a), "came back to x_t"),
        (lambda v, x, a, b: parts(v, x, a)[0], "the picture itself"),
        (lambda v, x, a, b: mix(*parts(-v, x, a), b), "signs of v"),
        (lambda v, x, a, b: mix((x - (1 - a).sqrt() * v) / a.sqrt(), v, b), "predicts the noise"),
        (
            lambda v, x, a, b: b * parts(v, x, a)[0] + (1 - b) * parts(v, x, a)[1],
            "square roots",
        ),
        (lambda v, x, a, b: mix(*parts(v, x, a)[::-1], b), "Find x_0 and the noise first"),
    ],
)
def test_ddim_from_velocity(answer, message):
    assert minisd.check("5.1", lambda v, x, a, b: mix(*parts(v, x, a), b))
    told("5.1", answer, message)


def heun(combine, look=lambda x, trial: trial, at=lambda sigma, sigma_next: sigma_next):
    """Return a method whose step is x + h * combine(first, second); the faults are arguments."""

    def method(slope, x, sigmas):
        for sigma, sigma_next in pairwise(sigmas):
            h, first = sigma_next - sigma, slope(x, sigma)
            second = slope(look(x, x + h * first), at(sigma, sigma_next))
            x = x + h * combine(first, second)
        return x

    return method


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (heun(lambda a, b: a), "Euler's step"),
        (heun(lambda a, b: a + (a + b) / 2), "from the point of the trial"),
        (heun(lambda a, b: b), "the second slope alone"),
        (heun(lambda a, b: a + b), "Halve it"),
        (heun(lambda a, b: a + b / 2), "Halve both"),
        (heun(lambda a, b: (a + b) / 2, look=lambda x, trial: x), "at the old x"),
        (heun(lambda a, b: (a + b) / 2, at=lambda now, then: now), "both ends of the step"),
        (lambda slope, x, sigmas: x + (sigmas[1] - sigmas[0]) * slope(x, sigmas[0]), "1 times"),
    ],
)
def test_heun(answer, message):
    assert minisd.check("5.3", heun(lambda a, b: (a + b) / 2))
    told("5.3", answer, message)


def calls_for(wanted, error, calls, order):
    return math.ceil(calls * (error / wanted) ** (1 / order))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda w, e, n, p: n * (e / w) ** (1 / p), "whole number"),
        (lambda w, e, n, p: int(n * (e / w) ** (1 / p)), "Round up"),
        (lambda w, e, n, p: math.ceil(n * e / w), "of first order"),
        (lambda w, e, n, p: math.ceil(n * (e / w) ** p), "fewer, not more"),
        (lambda w, e, n, p: math.ceil(n * (w / e) ** (1 / p)), "the error must fall"),
        (lambda w, e, n, p: 2 * calls_for(w, e, n, p), "to the power -order"),
    ],
)
def test_calls_for(answer, message):
    assert minisd.check("5.5", calls_for)
    told("5.5", answer, message)


def errors(method, few=40, many=80):
    for steps in (few, many):
        sigmas = [1 - 0.8 * k / steps for k in range(steps + 1)]
        x = method(lambda x, sigma: 2 * sigma * x, math.e, sigmas)
        yield abs(x - math.exp(0.2**2))


def ratio(method):
    larger, smaller = errors(method)
    return larger / smaller


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda method: -math.log2(ratio(method)), "larger error by the smaller"),
        (ratio, "its logarithm"),
        (lambda method: math.log(ratio(method)), "ratio of the steps"),
        (lambda method: 3.0, "exp(0.2^2)"),
    ],
)
def test_measured_order(answer, message):
    assert minisd.check("5.6", lambda method: math.log2(ratio(method)))
    told("5.6", answer, message)
