"""minisd's schedulers and diffusers' walk the same way, step by step.

Where they differ diffusers is wrong, as the oracle of tests/test_schedulers.py shows: ours are
compared with `match_diffusers`, and without it where nothing is wrong.
"""

import inspect
import itertools
import logging
import warnings
from dataclasses import fields
from fractions import Fraction
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DConditionModel, UNet2DModel
from helpers import KINDS, SIGMA_SPACE, pairwise, randomise
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import IdealDenoiser

from minisd import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UNet,
    UNetConfig,
)
from minisd.pipeline import denoise, sample
from minisd.schedules import add_noise

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' own
TOLERANCE = 1e-5  # largest difference, float32: absolute, but see `compare`
THEIRS = {kind: getattr(diffusers, kind.__name__) for kind in KINDS}
CHAIN = (DDPMScheduler, DDIMScheduler)  # the two of chapter 4

SD15 = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    steps_offset=1,
)
SD15_NOISE = {name: value for name, value in SD15.items() if name != "clip_sample"}
SCHEDULES = {
    "DDPM paper": {},
    "linear, not clipped": dict(clip_sample=False),
    "v1.5": SD15,
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
    "short and clipped at 2": dict(num_train_timesteps=100, beta_end=0.2, clip_sample_range=2.0),
}
DIGITS = dict(beta_start=0.0001, beta_end=0.02)  # diffusers' defaults, but for Heun
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")
STEPS = (5, 20, 50)


class StandIn:
    """A deterministic network: it knows a picture and sees it a little wrong, as networks do."""

    def __init__(self, scheduler, shape, generator):
        self.scheduler = scheduler
        self.sigmas = (1 / scheduler.alphas_cumprod.double() - 1).sqrt().numpy()
        self.picture = torch.rand(shape, generator=generator) * 2 - 1
        self.weights = torch.randn(shape[-1], shape[-1], generator=generator) / shape[-1] ** 0.5

    def __call__(self, x, t):
        t = float(t)  # between two timesteps, too
        sigma = np.interp(t, np.arange(len(self.sigmas)), self.sigmas)
        alpha_bar = torch.tensor(1 / (sigma**2 + 1), dtype=x.dtype)
        picture, weights = self.picture.to(x.dtype), self.weights.to(x.dtype)
        error = 0.1 * torch.sin(x @ weights + t / 100)
        if self.scheduler.prediction_type == "epsilon":
            noise = (x - alpha_bar.sqrt() * picture) / (1 - alpha_bar).sqrt()
            return noise + error * alpha_bar.sqrt()  # else the error, over sqrt(abar), explodes
        if self.scheduler.prediction_type == "sample":
            return picture + error
        noise = (x - alpha_bar.sqrt() * picture) / (1 - alpha_bar).sqrt()
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * picture + error


def compare(
    kind,
    config,
    steps,
    seed=0,
    fault=None,
    change=None,
    largest=3,
    match=True,
    **step_settings,
):
    """Walk both schedulers from one noise; return the largest difference anywhere on the way.

    The values of Euler, Euler ancestral and Heun, x_0 + sigma * noise, begin at sigma, which is of
    the order of 100: there, and only there, the difference is relative to max(1, largest |x|).
    A `fault` is planted in ours; a `change` is made to both. `match` is for `match_diffusers`.
    """
    ours, theirs = kind(**config, match_diffusers=match), THEIRS[kind](**config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
        if change:
            change(scheduler)
    if fault:
        fault(ours)
    generators = [torch.Generator().manual_seed(seed + 1) for _ in range(2)]
    shape = (2, 1, 4, 4)
    network = StandIn(kind(**config), shape, torch.Generator().manual_seed(seed))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 2))
    dtype = torch.float64 if change is in_double else torch.float32
    x, y = (noise.to(dtype) * float(s.init_noise_sigma) for s in (ours, theirs))
    their_settings = dict(step_settings)
    if "generator" in inspect.signature(theirs.step).parameters:
        their_settings["generator"] = generators[1]
    assert len(ours.timesteps) == len(theirs.timesteps)
    worst = relative_to(kind, x) * (x - y).abs().max().item()
    for t, their_t in zip(ours.timesteps, theirs.timesteps, strict=True):
        prediction = network(ours.scale_model_input(x, t), t)
        a = ours.step(prediction, t, x, generator=generators[0], **step_settings)
        prediction = network(theirs.scale_model_input(y, their_t), their_t)
        b = theirs.step(prediction, their_t, y, **their_settings)
        unit = relative_to(kind, y)
        x, y = a.prev_sample, b.prev_sample
        assert x.dtype == dtype and x.isfinite().all()
        worst = max(worst, unit * (x - y).abs().max().item())
        if "pred_original_sample" in b:  # PNDM and DPM-Solver++ of diffusers do not say
            apart = (a.pred_original_sample - b.pred_original_sample).abs().max().item()
            worst = max(worst, unit * apart)
    assert 0.1 < y.std() < largest, "the walk should end in something like a picture"
    return worst


def relative_to(kind, x):
    return 1 / max(1.0, x.abs().max().item()) if kind in SIGMA_SPACE else 1.0


def in_double(scheduler):
    """Compute in float64 what diffusers lets us: the noise levels, as they were chosen."""
    for name in ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())


def of(kind, config):
    """Return the settings that this kind of scheduler has."""
    return {field.name: config[field.name] for field in fields(kind) if field.name in config}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_walks_as_diffusers(schedule, spacing):
    variances = "fixed_small", "fixed_large"
    for prediction_type, variance_type, steps in pairwise(
        itertools.product(PREDICTION_TYPES, variances, STEPS)
    ):
        config = SCHEDULES[schedule] | dict(
            prediction_type=prediction_type, timestep_spacing=spacing, variance_type=variance_type
        )
        assert compare(DDPMScheduler, config, steps) <= TOLERANCE, (config, steps)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_walks_as_diffusers(schedule, spacing):
    # At eta = 1 and almost no signal, diffusers can take the root of a rounding error.
    etas = 0.0, 0.5, 0.95 if schedule == "cosine" else 1.0
    for prediction_type, eta, steps in pairwise(itertools.product(PREDICTION_TYPES, etas, STEPS)):
        config = SCHEDULES[schedule] | dict(
            prediction_type=prediction_type,
            timestep_spacing=spacing,
            set_alpha_to_one=schedule != "v1.5",
        )
        assert compare(DDIMScheduler, config, steps, eta=eta) <= TOLERANCE, (config, steps, eta)


VARIANTS = {
    PNDMScheduler: [
        dict(skip_prk_steps=skip, set_alpha_to_one=one)
        for skip in (False, True)
        for one in (False, True)
    ],
    EulerDiscreteScheduler: [{}, dict(use_karras_sigmas=True)],
    EulerAncestralDiscreteScheduler: [{}],
    HeunDiscreteScheduler: [
        dict(use_karras_sigmas=karras, clip_sample=clip)
        for karras in (False, True)
        for clip in (False, True)
    ],
    DPMSolverMultistepScheduler: [
        dict(use_karras_sigmas=karras, solver_order=order, lower_order_final=lower)
        for karras in (False, True)
        for order, lower in ((1, True), (2, True), (2, False), (3, True), (3, False))
    ],
}
UNKNOWN_TO_DIFFUSERS = {  # these are compared with DDIM, in tests/test_schedulers.py
    (PNDMScheduler, "sample"),
    (EulerAncestralDiscreteScheduler, "sample"),
}


def rounding_grows(kind, config, steps):
    """At the end of the digits' chain sigma is 157, and 157 times float32's rounding is 1e-5.

    At 5 steps the error made there reaches the picture: Heun's x is of that size, and others
    extrapolate from x_0 = (x - sqrt(1 - abar) eps) / sqrt(abar).
    """
    if steps > 5 or config["beta_end"] != DIGITS["beta_end"]:
        return False
    return kind is HeunDiscreteScheduler or (
        config["prediction_type"] == "epsilon"
        and (
            kind is PNDMScheduler
            or (config.get("solver_order") == 3 and config["use_karras_sigmas"])
        )
    )


def combinations(kind, spacings=("leading",)):
    schedules = DIGITS, of(kind, SD15)
    known = [p for p in PREDICTION_TYPES if (kind, p) not in UNKNOWN_TO_DIFFUSERS]
    variants = range(len(VARIANTS[kind]))
    return itertools.product(range(len(schedules)), variants, known, spacings, STEPS)


def settings_of(kind, schedule, variant, prediction_type, spacing):
    return (
        (DIGITS, of(kind, SD15))[schedule]
        | VARIANTS[kind][variant]
        | dict(prediction_type=prediction_type, timestep_spacing=spacing)
    )


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_others_walk_as_diffusers(kind):
    seen = 0
    for *row, steps in pairwise(combinations(kind, SPACINGS)):
        config = settings_of(kind, *row)
        found = compare(kind, config, steps)
        limit = 1e-4 if rounding_grows(kind, config, steps) else TOLERANCE
        assert found <= limit, (config, steps)
        seen += 1
    assert seen >= 9


@pytest.mark.parametrize("kind", KINDS)
def test_without_being_told_they_walk_as_diffusers_where_it_is_right(kind):
    cases = [({"timestep_spacing": "leading"}, steps) for steps in STEPS]
    if kind in VARIANTS:
        cases = [(settings_of(kind, *row), steps) for *row, steps in pairwise(combinations(kind))]
    for config, steps in cases:
        wrong = (
            kind is DPMSolverMultistepScheduler
            and (config["use_karras_sigmas"] or config["solver_order"] == 3)
            or kind is PNDMScheduler
            and config["prediction_type"] == "v_prediction"
        )
        if not wrong:
            found = compare(kind, config, steps, match=False)
            limit = 1e-4 if kind in VARIANTS and rounding_grows(kind, config, steps) else TOLERANCE
            assert found <= limit, (config, steps)


@pytest.mark.parametrize(
    "kind", [PNDMScheduler, HeunDiscreteScheduler, DPMSolverMultistepScheduler]
)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_what_grows_is_only_rounding(kind, spacing):
    """With the same noise levels in float64, as far as diffusers computes in it, it is gone."""
    cases = [(settings_of(kind, *row), steps) for *row, steps in combinations(kind, [spacing])]
    grown = [(config, steps) for config, steps in cases if rounding_grows(kind, config, steps)]
    assert grown
    for config, steps in grown:
        limit = 1e-6 if kind is DPMSolverMultistepScheduler else 1e-10  # it goes through float32
        found = compare(kind, config, steps, change=in_double)
        assert found <= limit, (config, steps)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "rescale_betas_zero_snr" in kind().config]
)
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_zero_terminal_snr_walks_as_diffusers(kind, prediction_type, spacing):
    if (kind, prediction_type) in UNKNOWN_TO_DIFFUSERS:
        return
    config = DIGITS | dict(rescale_betas_zero_snr=True, timestep_spacing=spacing)
    for steps in (5, 20):
        found = compare(kind, config | dict(prediction_type=prediction_type), steps)
        assert found <= TOLERANCE, steps


@pytest.mark.parametrize("kind", CHAIN)
def test_the_whole_chain_agrees(kind):
    """Every one of the training's steps, as DDPM samples."""
    config = dict(num_train_timesteps=200, beta_end=0.1)
    settings = {} if kind is DDPMScheduler else dict(eta=1.0)
    assert compare(kind, config, 200, **settings) <= TOLERANCE


@st.composite
def any_settings(draw):
    beta_start = draw(st.floats(1e-4, 1e-2))
    total = draw(st.integers(20, 1000))
    return dict(
        num_train_timesteps=total,
        beta_start=beta_start,
        beta_end=draw(st.floats(beta_start, 0.02)),
        beta_schedule=draw(st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"])),
        prediction_type=draw(st.sampled_from(PREDICTION_TYPES)),
        timestep_spacing=draw(st.sampled_from(SPACINGS)),
        steps_offset=draw(st.integers(0, 1)),
        clip_sample=draw(st.booleans()),
        clip_sample_range=draw(st.floats(1.0, 3.0)),
    ), draw(st.integers(2, 18))


def same_timesteps(kind, config, steps):
    """False in the rare cases that `test_the_timesteps_are_the_same_but_for_ties` looks at."""
    ours, theirs = kind(**config, match_diffusers=True), THEIRS[kind](**config)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    if len(ours.timesteps) != len(theirs.timesteps):
        return False
    if theirs.timesteps[0] == theirs.timesteps[1]:
        return False  # Karras' first two, cut to whole numbers: diffusers begins at the second
    apart = (ours.timesteps - theirs.timesteps).abs().max()
    return apart <= 1e-3  # Karras' timesteps are real numbers, and so rounded


@settings(max_examples=30)
@given(
    drawn=any_settings(),
    seed=st.integers(0, 2**31),
    variance_type=st.sampled_from(["fixed_small", "fixed_large"]),
)
def test_ddpm_agrees_for_any_settings(drawn, seed, variance_type):
    config, steps = drawn
    assume(same_timesteps(DDPMScheduler, config, steps))
    found = compare(DDPMScheduler, config | dict(variance_type=variance_type), steps, seed)
    assert found <= TOLERANCE


@settings(max_examples=30)
@given(
    drawn=any_settings(),
    seed=st.integers(0, 2**31),
    set_alpha_to_one=st.booleans(),
    eta=st.sampled_from([0.0, 0.3, 0.95]),
)
def test_ddim_agrees_for_any_settings(drawn, seed, set_alpha_to_one, eta):
    config, steps = drawn
    assume(same_timesteps(DDIMScheduler, config, steps))
    config = config | dict(set_alpha_to_one=set_alpha_to_one)
    assert compare(DDIMScheduler, config, steps, seed, eta=eta) <= TOLERANCE


@pytest.mark.parametrize("kind", VARIANTS)
@settings(max_examples=40)
@given(drawn=any_settings(), seed=st.integers(0, 2**31), data=st.data())
def test_the_others_agree_for_any_settings(kind, drawn, seed, data):
    config, steps = drawn
    assume((kind, config["prediction_type"]) not in UNKNOWN_TO_DIFFUSERS)
    assume(steps >= 4)
    cosine = config["beta_schedule"] == "squaredcos_cap_v2"
    assume(not (cosine and config["prediction_type"] == "epsilon"))  # there, sigma begins at 20,000
    config = of(kind, config) | data.draw(st.sampled_from(VARIANTS[kind]))
    assume(same_timesteps(kind, config, steps))
    found = compare(kind, config, steps, seed, change=in_double, largest=10)  # see rounding_grows
    assert found <= TOLERANCE


@pytest.mark.parametrize("kind", CHAIN)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("total", [1000, 37])
def test_the_timesteps_are_the_same_but_for_ties(kind, spacing, total):
    config = dict(num_train_timesteps=total, timestep_spacing=spacing)
    ours, theirs = kind(**config), THEIRS[kind](**config)
    for steps in range(2 if spacing == "linspace" else 1, total + 1):
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        extra = len(theirs.timesteps) - steps  # numpy.arange overshoots now and then, by one
        assert len(ours.timesteps) == steps and extra in ((0, 1) if spacing == "trailing" else (0,))
        for i in (ours.timesteps != theirs.timesteps[:steps]).nonzero().flatten().tolist():
            exact = {
                "linspace": Fraction((total - 1) * (steps - 1 - i), max(1, steps - 1)),
                "trailing": total - Fraction(total * i, steps),
            }[spacing]
            assert exact % 1 == Fraction(1, 2), (steps, i)  # a tie, and a rounding error decides
            assert abs(ours.timesteps[i] - theirs.timesteps[i]) == 1


def test_a_single_step_starts_at_the_noisiest_timestep():
    """Here minisd differs: diffusers' linspace with one step would start from t = 0."""
    scheduler = DDIMScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [999]


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("karras", [False, True])
def test_noise_is_added_as_in_diffusers(kind, spacing, karras, generator):
    """Where image-to-image begins: at any of the timesteps that were chosen."""
    config = of(kind, SD15 | dict(timestep_spacing=spacing, use_karras_sigmas=karras))
    ours, theirs = kind(**config, match_diffusers=True), THEIRS[kind](**config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    count = len(ours.timesteps)
    x_start, noise = (torch.randn(count, 3, 2, 2, generator=generator) for _ in range(2))
    a = ours.add_noise(x_start, noise, ours.timesteps)
    b = theirs.add_noise(x_start, noise, theirs.timesteps)
    assert ((a - b).abs() <= TOLERANCE * b.abs().clamp(min=1)).all()


@pytest.mark.parametrize("kind", CHAIN)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_targets_agree(kind, schedule, generator):
    ours, theirs = kind(**SCHEDULES[schedule]), THEIRS[kind](**SCHEDULES[schedule])
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    total = ours.num_train_timesteps
    x_start, noise = (torch.randn(total, 3, 2, 2, generator=generator) for _ in range(2))
    arguments = x_start, noise, torch.arange(total)
    for function in ("add_noise", "get_velocity"):
        apart = getattr(ours, function)(*arguments) - getattr(theirs, function)(*arguments)
        assert apart.abs().max() <= TOLERANCE, function


# Faults. The comparison must see each of them.


def shift_alphas(scheduler):
    scheduler.alphas_cumprod = scheduler.alphas_cumprod[[0, *range(999)]]


def shift_timesteps(scheduler):
    scheduler.timesteps = scheduler.timesteps + 1


def stride_too_long(scheduler):
    right = scheduler.previous_timestep
    scheduler.previous_timestep = lambda t: max(-1, right(t) - 1)


def stop_one_early(scheduler):
    """The last step ends at the first noise level and not at the image."""
    right = scheduler.previous_timestep
    scheduler.previous_timestep = lambda t: max(0, right(t))


def other_variance(scheduler):
    scheduler.variance_type = "fixed_large"


def no_clipping(scheduler):
    scheduler.clip_sample = False


def other_prediction(scheduler):
    scheduler.prediction_type = "sample"


def sigmas_of_the_timestep_before(scheduler):
    sigmas = scheduler.to_sigma(scheduler.timesteps.numpy() - 1)
    scheduler.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float32)


def one_place_late(scheduler):
    """From the fifth step on, each reads the sigmas of the one before it."""
    name = "next_position" if hasattr(scheduler, "estimates") else "position"
    right = getattr(scheduler, name)

    def faulty(t):
        i = right(t)
        return i if i < 4 else i - 1

    setattr(scheduler, name, faulty)


def forgets_the_first_slope(scheduler):
    after_step(scheduler, lambda: setattr(scheduler, "slope", 0))


def corrects_the_wrong_step(scheduler):
    """Heun's second look is a step of the length that the next one will have."""

    def lengthen():
        i = scheduler.upcoming
        if i % 2 and i + 2 < len(scheduler.sigmas):
            scheduler.stride = (scheduler.sigmas[i + 2] - scheduler.sigmas[i]).item()

    after_step(scheduler, lengthen)


def after_step(scheduler, action):
    right = scheduler.step

    def faulty(*arguments, **settings):
        out = right(*arguments, **settings)
        action()
        return out

    scheduler.step = faulty


def one_order_more(scheduler):
    scheduler.solver_order += 1


def one_order_less(scheduler):
    scheduler.solver_order -= 1


def full_order_to_the_end(scheduler):
    scheduler.lower_order_final = False
    scheduler.solver_order = 3


def older_estimates(scheduler):
    right = scheduler.correction
    scheduler.correction = lambda order, i: right(order, max(1, i - 1))


def one_runge_kutta_step_less(scheduler):
    scheduler.calls = 4


def one_call_ahead(scheduler):
    """Without the Runge-Kutta start: the second call is not taken for one."""
    after_step(scheduler, lambda: setattr(scheduler, "calls", max(2, scheduler.calls)))


def stride_one_longer(scheduler):
    scheduler.stride += 1


def other_end(scheduler):
    scheduler.final_alpha_cumprod = torch.tensor(1.0)


def forgets_the_oldest(scheduler):
    class Short(list):
        def __getitem__(self, key):
            return list.__getitem__(self, slice(2) if key == slice(3) else key)

    right = scheduler.linear_multistep

    def faulty(*arguments):
        scheduler.predictions = Short(scheduler.predictions)
        return right(*arguments)

    scheduler.linear_multistep = faulty


def more_noise(scheduler):
    """One per cent more noise in each step."""
    step = scheduler.step

    def faulty(prediction, t, x, generator):
        out = step(prediction, t, x, generator)
        again = torch.Generator().manual_seed(0)
        extra = torch.randn(x.shape, generator=again) * scheduler.sigmas[scheduler.position(t) + 1]
        return out._replace(prev_sample=out.prev_sample + 0.01 * extra)

    scheduler.step = faulty


FAULTS = {
    DDPMScheduler: (
        *(shift_alphas, shift_timesteps, stride_too_long, stop_one_early),
        *(other_variance, no_clipping, other_prediction),
    ),
    DDIMScheduler: (
        *(shift_alphas, shift_timesteps, stride_too_long, stop_one_early),
        *(no_clipping, other_prediction),
    ),
    PNDMScheduler: (
        *(shift_alphas, shift_timesteps, stride_one_longer, other_end),
        *(one_runge_kutta_step_less, forgets_the_oldest, other_prediction),
    ),
    EulerDiscreteScheduler: (
        *(shift_timesteps, sigmas_of_the_timestep_before, one_place_late, other_prediction),
    ),
    EulerAncestralDiscreteScheduler: (
        *(
            shift_timesteps,
            sigmas_of_the_timestep_before,
            one_place_late,
            other_prediction,
            more_noise,
        ),
    ),
    HeunDiscreteScheduler: (
        *(shift_timesteps, sigmas_of_the_timestep_before),
        *(forgets_the_first_slope, corrects_the_wrong_step, other_prediction),
    ),
    DPMSolverMultistepScheduler: (
        *(shift_timesteps, sigmas_of_the_timestep_before, one_place_late, older_estimates),
        *(one_order_more, one_order_less, full_order_to_the_end, other_prediction),
    ),
}


@pytest.mark.parametrize(
    ("kind", "fault"), [(kind, fault) for kind, faults in FAULTS.items() for fault in faults]
)
def test_a_planted_fault_is_seen(kind, fault):
    config = dict(num_train_timesteps=1000, beta_schedule="linear")
    steps = 10 if kind is DPMSolverMultistepScheduler else 20  # below 15 its end is of lower order
    assert compare(kind, config, steps) <= TOLERANCE
    assert compare(kind, config, steps, fault=fault) > TOLERANCE


@pytest.mark.parametrize("fault", [one_call_ahead, stride_one_longer, forgets_the_oldest])
def test_a_planted_fault_is_seen_without_the_start_of_pndm(fault):
    assert compare(PNDMScheduler, dict(skip_prk_steps=True), 20) <= TOLERANCE
    assert compare(PNDMScheduler, dict(skip_prk_steps=True), 20, fault=fault) > TOLERANCE


def test_an_eta_one_per_cent_off_is_seen():
    class Off(DDIMScheduler):
        def step(self, *arguments, eta, **others):
            return super().step(*arguments, eta=0.99 * eta, **others)

    THEIRS[Off] = diffusers.DDIMScheduler
    try:
        assert compare(Off, {}, 20, eta=1.0) > TOLERANCE
    finally:
        del THEIRS[Off]


# Settings travel both ways.


@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_settings_saved_by_diffusers_are_read(kind, schedule, tmp_path):
    theirs = THEIRS[kind](**of(kind, SCHEDULES[schedule]), prediction_type="v_prediction")
    theirs.save_pretrained(tmp_path)
    ours = kind.from_pretrained(tmp_path)
    assert ours.config.items() <= theirs.config.items()
    assert kind.from_config(theirs.config).config == ours.config


@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_settings_saved_by_us_are_read_by_diffusers(kind, schedule, tmp_path):
    config = dict(prediction_type="sample", timestep_spacing="trailing")
    ours = kind(**of(kind, SCHEDULES[schedule]), **config)
    ours.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = THEIRS[kind].from_pretrained(tmp_path)
    assert ours.config.items() <= theirs.config.items()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("origin", KINDS)
def test_samplers_are_exchanged_as_in_diffusers(kind, origin, tmp_path):
    """A folder that was saved with one sampler, read with another."""
    THEIRS[origin](prediction_type="v_prediction", beta_end=0.015).save_pretrained(tmp_path)
    logging.getLogger("diffusers.configuration_utils").setLevel(logging.ERROR)  # foreign names
    theirs = THEIRS[kind].from_pretrained(tmp_path)
    expected = dict(theirs.config)
    if kind is DDPMScheduler and expected["variance_type"] is None:
        expected["variance_type"] = "fixed_small"  # DPM-Solver's "none learned", as diffusers reads
    assert kind.from_pretrained(tmp_path).config.items() <= expected.items()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [False, True])
def test_settings_survive_a_detour_as_in_diffusers(kind, clip):
    """From DDIM to another kind and back."""
    start = dict(clip_sample=clip, set_alpha_to_one=False, steps_offset=1)
    between = kind.from_config(DDIMScheduler(**start).config)
    ours = DDIMScheduler.from_config(between.config)
    theirs = THEIRS[kind].from_config(diffusers.DDIMScheduler(**start).config)
    theirs = diffusers.DDIMScheduler.from_config(theirs.config)
    assert ours.clip_sample == clip and not ours.set_alpha_to_one
    assert of(DDIMScheduler, ours.config).items() <= theirs.config.items()


@pytest.mark.parametrize("kind", KINDS)
def test_left_out_settings_have_diffusers_values(kind):
    assert kind().config.items() <= THEIRS[kind]().config.items()
    assert kind.order == THEIRS[kind].order


@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize(
    "change",
    [
        dict(thresholding=True),
        dict(trained_betas=[0.1, 0.2]),
        dict(use_exponential_sigmas=True),
        dict(sigma_max=10.0),
        dict(algorithm_type="sde-dpmsolver++"),
        dict(solver_type="heun"),
        dict(final_sigmas_type="sigma_min"),
        dict(lambda_min_clipped=-5.1),
        dict(beta_schedule="sigmoid"),
    ],
    ids=str,
)
def test_what_minisd_does_not_implement_is_refused(kind, change):
    config = dict(THEIRS[kind]().config) | change
    with pytest.raises(ValueError, match="|".join([*change, "sigmoid"])):
        kind.from_config(config)


@pytest.mark.parametrize("kind", KINDS)
def test_learned_variance_is_refused(kind):
    """Such a network has twice as many channels."""
    theirs = diffusers.DDPMScheduler(variance_type="learned_range")
    with pytest.raises(ValueError, match="'learned_range'"):
        kind.from_config(theirs.config)


# Inside each other's pipelines.

CONFIG = UNetConfig(8, 1, 1, (8, 16), (False, True), num_heads=2, norm_num_groups=4)


@pytest.fixture(scope="module")
def unets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    torch.manual_seed(0)
    ours = randomise(UNet(CONFIG)).eval()
    ours.save_pretrained(folder, format="diffusers")
    return ours, UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False).eval()


@pytest.mark.parametrize(
    ("kind", "pipeline"), [(DDPMScheduler, DDPMPipeline), (DDIMScheduler, DDIMPipeline)]
)
def test_our_schedulers_run_inside_diffusers_pipelines(kind, pipeline, unets):
    pictures = []
    for scheduler in (kind(), THEIRS[kind]()):
        pipe = pipeline(unet=unets[1], scheduler=scheduler)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(5)
        out = pipe(batch_size=2, num_inference_steps=10, generator=generator, output_type="np")
        pictures.append(out.images)
    assert pictures[0].std() > 0.05
    assert np.abs(pictures[0] - pictures[1]).max() <= TOLERANCE


@pytest.fixture(scope="module")
def text_pipeline():
    """diffusers' StableDiffusionPipeline with a tiny U-Net; the prompt is embedded beforehand."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    pipe = diffusers.StableDiffusionPipeline(
        *(None, None, None),
        unet=randomise(unet).eval(),
        scheduler=THEIRS[DDIMScheduler](**SD15),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("match", [False, True])
def test_ours_run_inside_the_stable_diffusion_pipeline(kind, match, text_pipeline):
    config = of(kind, SD15 | dict(set_alpha_to_one=False, skip_prk_steps=True))
    generator = torch.Generator().manual_seed(1)
    prompt, negative = (torch.randn(1, 5, 8, generator=generator) for _ in range(2))
    config["timestep_spacing"] = "trailing" if match else "leading"  # the one diffusers gets right
    latents = []
    for scheduler in (kind(**config, match_diffusers=match), THEIRS[kind](**config)):
        text_pipeline.scheduler = scheduler
        out = text_pipeline(
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            num_inference_steps=10,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(5),
            output_type="latent",
        )
        latents.append(out.images)
    assert latents[0].isfinite().all() and latents[0].std() > 0.1
    scale = max(1.0, latents[1].abs().max().item())
    assert (latents[0] - latents[1]).abs().max() <= TOLERANCE * scale


class OracleUNet(torch.nn.Module):
    """The oracle, called as diffusers' pipelines call a U-Net."""

    config = SimpleNamespace(in_channels=4, sample_size=8, time_cond_proj_dim=None)
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, oracle):
        super().__init__()
        self.oracle = oracle

    def forward(self, x, t, **others):
        return (self.oracle(x, t),)


def image_to_image(scheduler, picture, strength, steps=20):
    """diffusers' own image to image from a picture that is its own latents, by the oracle."""
    oracle = IdealDenoiser(picture, scheduler.alphas_cumprod, scheduler.config["prediction_type"])
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        *(None, None, None),
        unet=OracleUNet(oracle),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        image=picture,
        strength=strength,
        prompt_embeds=torch.zeros(1, 5, 8),
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.1, 0.3, 0.5, 0.8, 0.9, 0.95, 1.0])
def test_ours_run_inside_image_to_image_and_find_the_picture(kind, strength):
    """0.95 of 20 steps cuts PNDM's list between the two calls of one timestep."""
    picture = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(6)) * 2 - 1
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(5))
    variants = [
        v for v in VARIANTS.get(kind, [dict(clip_sample=False)]) if not v.get("clip_sample")
    ]
    for i, variant in enumerate(variants):
        spacing = SPACINGS[(i + int(20 * strength)) % 3]
        scheduler = kind(**SD15_NOISE, timestep_spacing=spacing, **variant)
        found = image_to_image(scheduler, picture, strength)
        end = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0))
        expected = add_noise(picture, noise, end)
        assert (found - expected).abs().max() < 1e-4, (variant, spacing)


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not EulerAncestralDiscreteScheduler])
@pytest.mark.parametrize("strength", [0.3, 0.95])
def test_told_to_match_ours_err_inside_image_to_image_as_diffusers(kind, strength):
    picture = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(6)) * 2 - 1
    variants = [
        v for v in VARIANTS.get(kind, [dict(clip_sample=False)]) if not v.get("clip_sample")
    ]
    for variant in variants:
        if kind is PNDMScheduler and strength < 1 and not variant["skip_prk_steps"]:
            continue  # diffusers raises
        for i, spacing in enumerate(SPACINGS):
            many = variant.get("use_karras_sigmas") and i % 2 == (strength > 0.5)
            steps = 60 if many else 20  # of 60, Karras' last ones crowd
            config = SD15_NOISE | dict(timestep_spacing=spacing) | variant
            ours = kind(**config, match_diffusers=True)
            a = image_to_image(ours, picture, strength, steps)
            b = image_to_image(THEIRS[kind](**config), picture, strength, steps)
            assert (a - b).abs().max() < TOLERANCE * max(1, b.abs().max()), (config, steps)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_reads_a_file_that_says_to_match_it(kind, tmp_path):
    kind(match_diffusers=True).save_pretrained(tmp_path)
    theirs = THEIRS[kind].from_pretrained(tmp_path)
    assert kind().config.items() <= theirs.config.items()
    theirs.set_timesteps(10)
    assert kind.from_config(theirs.config).match_diffusers  # kept on the way through


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_schedulers_run_inside_our_loop(kind, unets):
    results = []
    for scheduler in (kind(), THEIRS[kind]()):
        generator = torch.Generator().manual_seed(5)
        results.append(torch.cat(list(sample(unets[0], scheduler, 2, 10, generator))))
    assert results[0].std() > 0.1
    scale = max(1.0, results[1].abs().max().item())
    assert (results[0] - results[1]).abs().max() <= TOLERANCE * scale


@pytest.mark.parametrize("kind", KINDS)
def test_our_loop_yields_every_network_call(kind, unets, generator):
    x = torch.randn(1, 1, 8, 8, generator=generator)
    scheduler = kind()
    states = list(denoise(unets[0], scheduler, x, 6, generator))
    assert [s.t for s in states] == scheduler.timesteps.tolist()
    assert all(s.x.isfinite().all() and s.x_start.shape == x.shape for s in states)
