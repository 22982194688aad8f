"""Checkers for the exercises of chapter 2."""

from collections.abc import Callable

import torch
from torch import Tensor

from minisd.exercises.checking import Wrong, exercise, expect_close, seeded
from minisd.schedules import make_betas, signal_to_noise_ratio

SCHEDULES = {
    "linear": make_betas("linear"),
    "cosine": make_betas("squaredcos_cap_v2"),
    "v1.5's": make_betas("scaled_linear", 1000, 0.00085, 0.012),
    "a short linear": make_betas("linear", 50, 0.001, 0.2),
}


def alphas_cumprod_of(betas: Tensor) -> Tensor:
    """Return the running product of 1 - beta, (T,)."""
    return (1 - betas).cumprod(dim=0)


@exercise("2.1")
def check_add_noise_at(answer: Callable) -> None:
    """Ask for batches whose width is, and is not, the number of pictures."""
    alphas_cumprod = alphas_cumprod_of(SCHEDULES["linear"])
    for shape in ((5, 3, 8, 6), (8, 1, 8, 8), (1, 4, 4, 4)):
        x_start = torch.rand(shape, generator=seeded(0)) * 2 - 1
        noise = torch.randn(shape, generator=seeded(1))
        t = torch.linspace(20, 900, shape[0]).long()
        column = alphas_cumprod[t].reshape(-1, 1, 1, 1)
        wanted = column.sqrt() * x_start + (1 - column).sqrt() * noise
        try:
            got = answer(x_start.clone(), noise.clone(), t.clone(), alphas_cumprod.clone())
        except RuntimeError as error:
            if "must match the size" not in str(error):
                raise
            raise Wrong(
                f"For pictures {shape} and t ({shape[0]},) the shapes do not fit: {error}. "
                "PyTorch lines shapes up from the right; give the levels three more axes."
            ) from None
        earlier = alphas_cumprod[t - 1].reshape(-1, 1, 1, 1)
        first = column[:1]
        for level in (column, earlier):  # a wrong formula is named first, then a wrong level
            _recognise(got, _wrong_jumps(x_start, noise, level), wanted)
        _recognise(
            got,
            {
                "This is one level too early: alphas_cumprod[t] belongs to t.": earlier.sqrt()
                * x_start
                + (1 - earlier).sqrt() * noise,
                "All pictures got the level of the first; each has its own.": first.sqrt() * x_start
                + (1 - first).sqrt() * noise,
            },
            wanted,
        )
        if shape[0] == shape[3]:
            levels = alphas_cumprod[t]
            _recognise(
                got,
                {
                    "With as many pictures as columns, each column gets a level, not each "
                    "picture. Reshape the levels to (b, 1, 1, 1).": levels.sqrt() * x_start
                    + (1 - levels).sqrt() * noise
                },
                wanted,
            )
        expect_close(got, wanted, f"x_t for pictures {shape}", "See DDPM eq. 4.")


def _wrong_jumps(x_start: Tensor, noise: Tensor, level: Tensor) -> dict[str, Tensor]:
    """Return {what is wrong: the wrong x_t} for a level that broadcasts against the pictures."""
    root, other = level.sqrt(), (1 - level).sqrt()
    return {
        "You forgot the square roots.": level * x_start + (1 - level) * noise,
        "The noise lacks its square root.": root * x_start + (1 - level) * noise,
        "The picture lacks its square root.": level * x_start + other * noise,
        "The factor of the noise is sqrt(1 - alpha_bar), not 1 - sqrt(alpha_bar): the two "
        "variances must add up to 1.": root * x_start + (1 - root) * noise,
        "Picture and noise have each other's factor.": other * x_start + root * noise,
        "The picture is not faded.": x_start + other * noise,
    }


@exercise("2.2")
def check_percent_left(answer: Callable) -> None:
    """Ask for two guesses, and say where the reasoning went astray."""
    truth = {
        steps: 100 * alphas_cumprod_of(make_betas("linear", steps))[-1].item()
        for steps in (100, 10)
    }
    guesses = {}
    for steps in truth:
        guess = answer(steps)
        if not isinstance(guess, int | float) or not 0 <= guess <= 100:
            raise Wrong(f"For {steps} steps, return a number from 0 to 100, not {guess!r}.")
        guesses[steps] = guess
    many, few = guesses[100], guesses[10]
    if 0 < few <= 1 and many <= 1:
        raise Wrong(f"{few} looks like a share of 1. Return percent.")
    if few < many:
        raise Wrong("Each step takes a part of the picture away. Which is more, 10 steps or 100?")
    if few == many:
        raise Wrong(
            "Both the same? The steps are as large as before, and there are fewer of them. "
            "How much does an average step take away?"
        )
    if many < 15:
        raise Wrong(
            f"{many} % after 100 steps is too little. An average step takes 1 %, but 1 % of what "
            "is left by then: 100 such steps do not take everything."
        )
    for steps, guess in guesses.items():
        if abs(guess - truth[steps]) > 10:
            size = "much" if guess > truth[steps] else "little"
            raise Wrong(
                f"{guess} % after {steps} steps is too {size}. Beta is about 0.01 on average, and "
                "each step multiplies what is left by 1 - beta."
            )


@exercise("2.3")
def check_jump_between(answer: Callable) -> None:
    """Ask for jumps, long and short; two jumps must make one."""
    alphas_cumprod = alphas_cumprod_of(SCHEDULES["linear"])
    for s, t in ((100, 400), (0, 999), (499, 500)):
        abar_s, abar_t = alphas_cumprod[s], alphas_cumprod[t]
        kept = abar_t / abar_s
        got = answer(alphas_cumprod.clone(), s, t)
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Wrong("Return two numbers, a and b.")
        a, b = (torch.as_tensor(value, dtype=torch.float64) for value in got)
        where = f"from {s} to {t}"
        _recognise(
            a,
            {
                "That factor is for a clean picture. x_s is faded already: what is still "
                "missing?": abar_t.sqrt(),
                "a is still a share of the variance: take its square root.": kept,
                "a is upside down: the picture gets weaker, not stronger.": kept.rsqrt(),
            },
            kept.sqrt(),
        )
        expect_close(a, kept.sqrt(), f"a, {where},", "Which alphas lie between s and t?")
        _recognise(
            b,
            {
                "b is the variance of the noise; its standard deviation is wanted.": 1 - kept,
                "That b forgets the noise that x_s has already: after the jump the variance "
                "would be more than 1.": (1 - abar_t).sqrt(),
                "The noise of x_s is faded by the jump as well, so the two variances do not "
                "subtract like this.": (abar_s - abar_t).sqrt(),
            },
            (1 - kept).sqrt(),
        )
        hint = "If x_s has variance 1, x_t should have it too: what must a^2 + b^2 be?"
        expect_close(b, (1 - kept).sqrt(), f"b, {where},", hint)


@exercise("2.4")
def check_end_at_zero(answer: Callable) -> None:
    """Ask for the betas of every schedule, and look at both ends first."""
    for name, betas in SCHEDULES.items():
        before = alphas_cumprod_of(betas.double())
        root = before.sqrt()
        shifted = root - root[-1]
        wanted = (shifted * root[0] / shifted[0]) ** 2
        given = betas.clone()
        got = answer(given)
        what = f"For the schedule '{name}', "
        if not torch.equal(given, betas):
            raise Wrong("Your function changes the betas it is given. Make a new tensor.")
        if not isinstance(got, Tensor) or got.shape != betas.shape:
            raise Wrong(f"Return a tensor of betas of the same shape, {tuple(betas.shape)}.")
        _recognise(
            got,
            {
                "This is the new alphas_cumprod. Which betas belong to it?": wanted,
                "This is the new sqrt(alphas_cumprod). Which betas belong to it?": wanted.sqrt(),
                "These are the new alphas; betas are 1 - alphas.": torch.cat(
                    [wanted[:1], wanted[1:] / wanted[:-1]]
                ),
                "This sets the last beta to 1 and leaves the other levels as they were: a "
                "cliff at the end. Shift and stretch the whole curve.": torch.cat(
                    [betas[:-1], torch.ones(1)]
                ),
            },
            torch.zeros(()),  # none of these is ever right
        )
        after = alphas_cumprod_of(got.double())
        of_variances = (before - before[-1]) * before[0] / (before[0] - before[-1])
        _recognise(
            after,
            {
                "you shifted and stretched alphas_cumprod; do it to its square root.": of_variances,
                "you shifted the curve but did not stretch it.": shifted**2,
            },
            wanted,
            what,
        )
        if not after[-1].abs() < 1e-9:
            raise Wrong(f"{what}alphas_cumprod ends at {after[-1]:.3g}, not at 0.")
        if not abs(after[0] - before[0]) < 1e-5:
            raise Wrong(
                f"{what}alphas_cumprod begins at {after[0]:.5f}, not at {before[0]:.5f} as before. "
                "The stretch should undo the shift at the first level."
            )
        hint = "Shift sqrt(alphas_cumprod) down, then multiply it by one factor."
        expect_close(after, wanted, f"{what}alphas_cumprod of your betas", hint)


@exercise("2.5")
def check_level_when_averaged(answer: Callable) -> None:
    """Ask at several levels; a measured answer may be three levels off."""
    for name in ("linear", "v1.5's"):
        alphas_cumprod = alphas_cumprod_of(SCHEDULES[name])
        ratios = signal_to_noise_ratio(alphas_cumprod)
        for t in (300, 500, 700):
            likely = {
                "This is the level itself: what does averaging four pixels do to the noise?": 1.0,
                "That would be right if the *standard deviation* counted. The SNR compares "
                "variances: what does the mean of four numbers do to the variance?": 2.0,
                "Averaging makes the noise weaker, not stronger: look before t.": 0.25,
                "That is the SNR of four pixels averaged twice.": 16.0,
            }
            levels = {
                text: int((ratios / (gain * ratios[t])).log().abs().argmin())
                for text, gain in likely.items()
            }
            wanted = int((ratios / (4 * ratios[t])).log().abs().argmin())
            got = answer(alphas_cumprod.clone(), t)
            if isinstance(got, Tensor) and got.numel() == 1:
                got = got.item()
            if not isinstance(got, int):
                raise Wrong(f"Return one whole number, not {type(got).__name__}.")
            if abs(got - wanted) <= 3:
                continue
            hint = "Measure the variance of the averaged noise, and look for its SNR in the list."
            for text, level in levels.items():
                if abs(got - level) <= 3:
                    hint = text
            raise Wrong(f"For the schedule '{name}' at t = {t}, {got} is not the level. {hint}")


def _recognise(got: object, mistakes: dict[str, Tensor], wanted: Tensor, before: str = "") -> None:
    """Raise Wrong with the message of the known mistake that `got` is, if it is one."""
    if not isinstance(got, Tensor) or _same(got, wanted):
        return
    for message, mistaken in mistakes.items():
        if _same(got, mistaken):
            raise Wrong(before + message)


def _same(got: Tensor, other: Tensor) -> bool:
    return got.shape == other.shape and torch.allclose(got.double(), other.double(), atol=1e-5)
