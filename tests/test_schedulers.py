import json
import math
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import pytest
import torch
from helpers import KINDS, SIGMA_SPACE
from hypothesis import given
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
)
from minisd.editing import img2img, last_timesteps
from minisd.files import read_json
from minisd.lab.recipes import POSTCARDS_SAMPLER
from minisd.schedulers import load_scheduler
from minisd.schedulers.settings import STEP_SETTINGS
from minisd.schedulers.sigma import karras_sigmas
from minisd.schedules import add_noise, make_betas, rescale_zero_terminal_snr

STOCHASTIC = (DDPMScheduler, DDIMScheduler, EulerAncestralDiscreteScheduler)  # DDIM: with eta
KARRAS = (EulerDiscreteScheduler, HeunDiscreteScheduler, DPMSolverMultistepScheduler)
SD15 = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ELSEWHERE = ["meta", *(["cuda"] if torch.cuda.is_available() else [])]  # meta: shapes, no numbers
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_network_leads_back_to_the_picture(kind, prediction_type, generator):
    settings = dict(set_alpha_to_one=True) if kind is PNDMScheduler else {}
    scheduler = kind(prediction_type=prediction_type, timestep_spacing="leading", **settings)
    picture = torch.rand(2, 1, 4, 4, generator=generator) * 2 - 1
    scheduler.set_timesteps(50)
    x = torch.randn(picture.shape, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, t)
        alpha_bar = scheduler.alphas_cumprod[t.long()]
        noise = (x_t - alpha_bar.sqrt() * picture) / (1 - alpha_bar).sqrt()
        prediction = scheduler.target(picture, noise, t[None].expand(2).long())
        x = scheduler.step(prediction, t, x, generator=generator).prev_sample
    assert torch.allclose(x, picture, atol=1e-3)


# The oracle: a network that knows the data must lead every sampler, from every start, to the data.

SPACINGS = ("leading", "linspace", "trailing")
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
ZERO_SNR = dict(rescale_betas_zero_snr=True)
VARIANTS = [
    (DDPMScheduler, dict(clip_sample=False)),
    (DDPMScheduler, dict(clip_sample=False, variance_type="fixed_large")),
    (DDPMScheduler, dict(clip_sample=False, steps_offset=1, **ZERO_SNR)),
    (DDIMScheduler, dict(clip_sample=False)),
    (DDIMScheduler, dict(clip_sample=False, steps_offset=1, set_alpha_to_one=False)),
    (DDIMScheduler, dict(clip_sample=False, **ZERO_SNR)),
    (PNDMScheduler, {}),
    (PNDMScheduler, dict(skip_prk_steps=True, steps_offset=1)),
    (PNDMScheduler, dict(skip_prk_steps=True, set_alpha_to_one=True)),
    (EulerDiscreteScheduler, {}),
    (EulerDiscreteScheduler, dict(use_karras_sigmas=True)),
    (EulerDiscreteScheduler, ZERO_SNR),
    (EulerAncestralDiscreteScheduler, {}),
    (HeunDiscreteScheduler, {}),
    (HeunDiscreteScheduler, dict(use_karras_sigmas=True)),
    *(
        (DPMSolverMultistepScheduler, dict(solver_order=order, use_karras_sigmas=karras))
        for order in (1, 2, 3)
        for karras in (False, True)
    ),
    (DPMSolverMultistepScheduler, ZERO_SNR),
]
each_variant = pytest.mark.parametrize(
    ("kind", "settings"), VARIANTS, ids=lambda v: v.__name__ if isinstance(v, type) else str(v)
)
each_spacing = pytest.mark.parametrize("spacing", SPACINGS)
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
each_prediction_type = pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)


def led_by_the_oracle(scheduler, data, steps, strength, **step_settings):
    """Image to image from the first picture; return the oracle, the noise, and where it ended."""
    if step_settings:
        scheduler.step = partial(scheduler.step, **step_settings)
    oracle = IdealDenoiser(data, scheduler.alphas_cumprod, scheduler.prediction_type)
    noise = torch.randn(1, *data.shape[1:], generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    *_, last = img2img(oracle, scheduler, data[:1], noise, steps, strength, generator)
    return oracle, noise, last.x


def pictures(n):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1


def last_alpha_bar(scheduler):
    """Below 1 (`set_alpha_to_one` is off) a little noise is meant to stay in the picture."""
    return getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0))


@each_variant
@each_spacing
@each_prediction_type
def test_the_oracle_leads_from_every_start_to_the_picture(kind, settings, spacing, prediction_type):
    """10 steps divide the 1000 of training, 7 and 24 do not."""
    settings = SD15 | settings | dict(timestep_spacing=spacing, prediction_type=prediction_type)
    if settings.get("rescale_betas_zero_snr") and prediction_type == "epsilon":
        return  # at no signal the noise says nothing about the picture
    picture = pictures(1)
    place, type_ = SPACINGS.index(spacing), PREDICTION_TYPES.index(prediction_type)
    steps = (7, 10, 24)[(place + 2 * type_) % 3]  # in a Latin square: each two values meet
    for strength in STRENGTHS[(place + type_) % 3 :: 3]:
        scheduler = kind(**settings)
        oracle, noise, x = led_by_the_oracle(scheduler, picture, steps, strength)
        expected = add_noise(picture, noise, last_alpha_bar(scheduler))
        assert torch.allclose(x, expected, atol=1e-4), (steps, strength)
        if kind in (DDPMScheduler, EulerAncestralDiscreteScheduler):
            continue  # with fresh noise the next level is the right one, but not the noise
        for x_t, t in oracle.calls:  # the network is told how noisy x is, in truth
            expected = add_noise(picture, noise, oracle.alpha_bar(t))
            assert torch.allclose(x_t, expected.float(), atol=1e-4), (steps, strength, t)


@each_variant
@each_spacing
@each_prediction_type
def test_the_oracle_leads_to_one_of_many_pictures(kind, settings, spacing, prediction_type):
    """PNDM alone comes only near: its last step follows a mean of predictions, old ones too."""
    settings = SD15 | settings | dict(timestep_spacing=spacing, prediction_type=prediction_type)
    if settings.get("rescale_betas_zero_snr") and prediction_type == "epsilon":
        return
    data, steps, tolerance = pictures(5), 24, 1e-4
    if kind is PNDMScheduler:
        settings, steps, tolerance = settings | dict(set_alpha_to_one=True), 50, 0.03
    if not settings.get("set_alpha_to_one", True):
        tolerance = 0.15  # 0.03 of noise stays
    turn = SPACINGS.index(spacing) + PREDICTION_TYPES.index(prediction_type)
    for strength in STRENGTHS[turn % 3 :: 3]:  # each strength meets each spacing and each type
        _, _, x = led_by_the_oracle(kind(**settings), data, steps, strength)
        assert (x - data).abs().amax((1, 2, 3)).min() < tolerance, strength


@each_spacing
@each_prediction_type
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_fresh_noise_in_ddim_leads_to_a_picture_too(spacing, prediction_type, eta):
    settings = SD15 | dict(timestep_spacing=spacing, prediction_type=prediction_type)
    for n in (1, 5):
        for strength in STRENGTHS:
            scheduler = DDIMScheduler(**settings, clip_sample=False)
            _, _, x = led_by_the_oracle(scheduler, pictures(n), 24, strength, eta=eta)
            assert (x - pictures(n)).abs().amax((1, 2, 3)).min() < 1e-4, (n, strength)


@pytest.mark.parametrize(
    ("kind", "settings", "steps", "strength"),
    [
        (DDPMScheduler, dict(variance_type="fixed_large", timestep_spacing="trailing"), 7, 1.0),
        (DDIMScheduler, dict(timestep_spacing="linspace"), 10, 1.0),
        (DDIMScheduler, dict(timestep_spacing="trailing"), 7, 1.0),
        (PNDMScheduler, dict(skip_prk_steps=True, timestep_spacing="linspace"), 10, 1.0),
        (PNDMScheduler, dict(skip_prk_steps=True), 20, 0.5),
        (PNDMScheduler, {}, 20, 0.5),
        (PNDMScheduler, dict(skip_prk_steps=True, prediction_type="v_prediction"), 20, 1.0),
        (DPMSolverMultistepScheduler, dict(use_karras_sigmas=True), 20, 1.0),
    ],
)
def test_the_oracle_sees_where_diffusers_is_wrong(kind, settings, steps, strength):
    """Without this setting each of these passes above: it is what the setting is for."""
    config = SD15 | settings | dict(match_diffusers=True)
    config |= {} if kind in (PNDMScheduler, DPMSolverMultistepScheduler) else {"clip_sample": False}
    scheduler, picture = kind(**config), pictures(1)
    oracle, noise, x = led_by_the_oracle(scheduler, picture, steps, strength)
    apart = [(x - add_noise(picture, noise, last_alpha_bar(scheduler))).abs().max()]
    if kind is not DDPMScheduler:
        apart += [
            (x_t - add_noise(picture, noise, oracle.alpha_bar(t))).abs().max()
            for x_t, t in oracle.calls
        ]
    assert max(apart) > 5e-3


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_pndm_takes_as_many_steps_as_the_strength_says(skip, steps):
    """Begun midway there is no extra call, and its first timestep is that of the step."""
    scheduler, evenly = PNDMScheduler(skip_prk_steps=skip), DDIMScheduler()
    scheduler.set_timesteps(steps)
    evenly.set_timesteps(steps)
    for k in range(steps):
        timesteps = last_timesteps(scheduler, steps, (steps - k) / steps)
        assert timesteps[0] == evenly.timesteps[k]
        extra = 0
        if skip:
            extra = int(k == 0)
        elif k < 3:
            extra = 3 * (3 - k)
        assert len(timesteps) == steps - k + extra


@each_spacing
@pytest.mark.parametrize("steps", [4, 7, 30])
def test_runge_kutta_looks_half_way(spacing, steps):
    scheduler, evenly = (kind(timestep_spacing=spacing) for kind in (PNDMScheduler, DDIMScheduler))
    scheduler.set_timesteps(steps)
    evenly.set_timesteps(steps)
    for k, (a, b) in enumerate(zip(evenly.timesteps[:3], evenly.timesteps[1:4], strict=True)):
        calls = scheduler.timesteps[4 * k : 4 * k + 4].tolist()
        assert calls == [a, (a + b) // 2, (a + b) // 2, b]


@each_kind
def test_sampling_may_begin_at_any_call(kind):
    """As diffusers' image to image cuts the list; within a step of PNDM or Heun, too."""
    picture = pictures(1)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))
    for settings in (dict(skip_prk_steps=True), {}) if kind is PNDMScheduler else ({},):
        scheduler = kind(**SD15, **settings)
        scheduler.set_timesteps(20)
        for begin in range(0, len(scheduler.timesteps), kind.order):
            scheduler.set_timesteps(20)
            scheduler.set_begin_index(begin)
            oracle = IdealDenoiser(picture, scheduler.alphas_cumprod)
            x = scheduler.add_noise(picture, noise, scheduler.timesteps[begin : begin + 1])
            for t in scheduler.timesteps[begin:]:
                prediction = oracle(scheduler.scale_model_input(x, t), t)
                x = scheduler.step(prediction, t, x).prev_sample
            expected = add_noise(picture, noise, last_alpha_bar(scheduler))
            assert torch.allclose(x, expected, atol=1e-4), begin


@each_kind
@pytest.mark.parametrize("begin", [-1, 50])
def test_a_beginning_beyond_the_end_raises(kind, begin):
    scheduler = kind(**({"skip_prk_steps": True} if kind is PNDMScheduler else {}))
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=f"begin_index must be between 0 and .*, got {begin}"):
        scheduler.set_begin_index(begin)


@pytest.mark.parametrize("match_diffusers", [False, True])
@pytest.mark.parametrize(
    ("steps", "strength"), [(60, 0.1), (100, 0.1), (150, 0.05), (200, 0.1), (200, 0.02), (400, 0.5)]
)
def test_karras_timesteps_may_crowd_where_sampling_begins(steps, strength, match_diffusers):
    """Rounded as in diffusers (#5687) the last ones are equal; real numbers differ."""
    config = SD15 | dict(use_karras_sigmas=True, match_diffusers=match_diffusers)
    scheduler = DPMSolverMultistepScheduler(**config)
    picture = pictures(1)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(1))
    network = IdealDenoiser(picture, scheduler.alphas_cumprod)
    network.forward = lambda x, t, context: noise
    *_, last = img2img(network, scheduler, picture, noise, steps, strength)
    assert torch.allclose(last.x, picture, atol=1e-4)
    assert (scheduler.timesteps.diff() == 0).any() == match_diffusers


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_ddpm_draws_from_the_posterior(variance_type, generator):
    """Mean and variance of many draws against equation 7 of Ho et al."""
    scheduler = DDPMScheduler(variance_type=variance_type)
    scheduler.set_timesteps(1000)
    t, n = 300, 100_000
    beta, alpha_bar, before = (
        x.item()
        for x in (
            scheduler.betas[t],
            scheduler.alphas_cumprod[t],
            scheduler.alphas_cumprod[t - 1],
        )
    )
    x_t, x_start = 0.7, 0.3
    noise = (x_t - math.sqrt(alpha_bar) * x_start) / math.sqrt(1 - alpha_bar)
    x = torch.full((n, 1, 1, 1), x_t)
    draws = scheduler.step(torch.full_like(x, noise), t, x, generator=generator).prev_sample
    mean = (math.sqrt(before) * beta * x_start + math.sqrt(1 - beta) * (1 - before) * x_t) / (
        1 - alpha_bar
    )
    variance = beta * ((1 - before) / (1 - alpha_bar) if variance_type == "fixed_small" else 1)
    assert draws.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert draws.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [2, 5, 20, 1000])
def test_ddim_with_eta_one_stays_finite_where_almost_no_signal_is_left(spacing, steps, generator):
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 1, 2, 2, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x, eta=1.0, generator=generator).prev_sample
        assert x.isfinite().all()


def test_ddim_with_eta_one_is_ddpm(generator):
    """Song et al. 2021, section 4.1: eta = 1 has DDPM's variance, and its mean."""
    ddpm, ddim = DDPMScheduler(clip_sample=False), DDIMScheduler(clip_sample=False)
    x, prediction = (torch.randn(2, 1, 4, 4, generator=generator) for _ in range(2))
    for scheduler in (ddpm, ddim):
        scheduler.set_timesteps(100)
    for t in (990, 500, 10):
        a = ddpm.step(prediction, t, x, torch.Generator().manual_seed(1)).prev_sample
        b = ddim.step(prediction, t, x, 1.0, torch.Generator().manual_seed(1)).prev_sample
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", STOCHASTIC)
def test_the_generator_is_the_only_source_of_chance(kind):
    scheduler = kind()
    scheduler.set_timesteps(10)
    x = torch.randn(1, 1, 4, 4)
    settings = dict(eta=1.0) if kind is DDIMScheduler else {}

    def step(seed):
        generator = torch.Generator().manual_seed(seed)
        t = scheduler.timesteps[1]
        return scheduler.step(x, t, x, generator=generator, **settings).prev_sample

    state = torch.get_rng_state()
    first = step(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(step(3), first)
    assert not torch.equal(step(4), first)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in STOCHASTIC] + [DDIMScheduler])
def test_deterministic_samplers_draw_nothing(kind):
    scheduler = kind()
    scheduler.set_timesteps(10)
    x = torch.randn(1, 1, 4, 4)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    for t in scheduler.timesteps[:4]:
        scheduler.step(x, t, x, generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("kind", STOCHASTIC)
@pytest.mark.parametrize("device", ELSEWHERE)
def test_noise_is_drawn_where_the_generator_is(kind, device):
    scheduler, generator = kind(), torch.Generator().manual_seed(3)
    scheduler.set_timesteps(10)
    x, t = torch.zeros(1, 1, 4, 4), scheduler.timesteps[1]
    settings = dict(generator=generator) | (dict(eta=1.0) if kind is DDIMScheduler else {})
    here = scheduler.step(x, t, x, **settings).prev_sample
    after = generator.get_state()
    generator.manual_seed(3)
    scheduler.set_timesteps(10)
    there = scheduler.step(x.to(device), t, x.to(device), **settings).prev_sample
    assert there.device.type == device and there.shape == x.shape
    assert torch.equal(generator.get_state(), after)  # the same noise was drawn
    if device != "meta":
        assert torch.allclose(there.cpu(), here, atol=1e-6)


@each_kind
def test_arguments_are_not_changed(kind):
    scheduler = kind()
    scheduler.set_timesteps(10)
    x, prediction = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    copies = x.clone(), prediction.clone()
    for t in scheduler.timesteps:
        scheduler.step(prediction, t, x)
        scaled = scheduler.scale_model_input(x, t)
        assert (scaled is x) == (kind not in SIGMA_SPACE)
    scheduler.add_noise(x, prediction, scheduler.timesteps[:2])
    assert torch.equal(x, copies[0]) and torch.equal(prediction, copies[1])


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_precision_of_the_images_is_kept(kind, dtype, generator):
    scheduler = kind()
    scheduler.set_timesteps(6)
    x = torch.randn(1, 1, 4, 4, generator=generator).to(dtype) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        out = scheduler.step(0.5 * scheduler.scale_model_input(x, t), t, x, generator=generator)
        x = out.prev_sample
        assert x.dtype == out.pred_original_sample.dtype == dtype and x.isfinite().all()
    assert scheduler.add_noise(x, x, scheduler.timesteps[:1]).dtype == dtype


HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, PNDMScheduler])
@pytest.mark.parametrize("t", [0, 1, 10, 999])
def test_in_half_precision_neither_noise_nor_picture_vanishes(kind, dtype, t):
    """v1.5's first levels have a noise of 0.03: in half precision 1 - alpha_bar rounds to 0."""
    scheduler = kind(**SD15)
    alpha_bar = (1 - make_betas("scaled_linear", 1000, 0.00085, 0.012).double()).cumprod(0)[t]
    zero, one = torch.zeros(1, 1, 1, 1, dtype=dtype), torch.ones(1, 1, 1, 1, dtype=dtype)
    level = torch.tensor([t])
    for x_start, noise in ((zero, one), (one, zero)):
        pairs = [(scheduler.add_noise(x_start, noise, level), add_noise(x_start, noise, alpha_bar))]
        velocity = alpha_bar.sqrt() * noise.double() - (1 - alpha_bar).sqrt() * x_start.double()
        pairs.append((scheduler.get_velocity(x_start, noise, level), velocity))
        scheduler.prediction_type = "v_prediction"
        pairs.append((scheduler.target(x_start, noise, level), velocity))
        for found, expected in pairs:
            assert found.dtype == dtype
            expected = expected.item()
            assert found.item() == pytest.approx(expected, rel=torch.finfo(dtype).eps)


@each_kind
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("settings", [{}, ZERO_SNR], ids=str)
def test_noise_is_added_in_half_precision_as_in_float32(kind, dtype, settings, generator):
    """With zero terminal SNR sigma is 4096, and its square beyond float16."""
    if not settings.keys() <= kind().config.keys():
        return
    scheduler = kind(
        **SD15, **settings, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(10)
    x_start, noise = (torch.randn(1, 1, 4, 4, generator=generator).to(dtype) for _ in range(2))
    for t in scheduler.timesteps.split(1):
        found = scheduler.add_noise(x_start, noise, t)
        expected = scheduler.add_noise(x_start.float(), noise.float(), t).to(dtype)
        assert found.dtype == dtype and torch.equal(found, expected)


@each_kind
@pytest.mark.parametrize("dtype", HALVES)
@each_prediction_type
def test_a_step_in_half_precision_only_rounds_its_result(kind, dtype, prediction_type, generator):
    """Inside it computes in float32: the cosine's first step divides by 5e-5."""
    settings = SD15 | dict(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type)
    if kind not in SIGMA_SPACE + (PNDMScheduler, DPMSolverMultistepScheduler):
        settings["clip_sample"] = False
    half, full = kind(**settings), kind(**settings)
    for scheduler in (half, full):
        scheduler.set_timesteps(10)
    for t in half.timesteps:
        x, prediction = torch.randn(2, 1, 1, 4, 4, generator=generator).to(dtype)
        seeds = [torch.Generator().manual_seed(4) for _ in range(2)]
        a = half.step(prediction, t, x, generator=seeds[0])
        b = full.step(prediction.float(), t, x.float(), generator=seeds[1])
        for found, expected in zip(a, b, strict=True):
            assert found.dtype == dtype and torch.equal(found, expected.to(dtype))


@each_kind
def test_steps_take_what_diffusers_pipelines_pass(kind):
    scheduler = kind()
    scheduler.set_timesteps(10)
    x = torch.zeros(1, 1, 2, 2)
    out = scheduler.step(x, scheduler.timesteps[0], x, return_dict=False)
    assert out[0] is out.prev_sample and isinstance(out, tuple)


@each_kind
def test_each_image_has_its_own_timestep(kind, generator):
    scheduler = kind(timestep_spacing="leading")
    scheduler.set_timesteps(10)
    x, noise = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    for function in (scheduler.add_noise, scheduler.get_velocity, scheduler.target):
        t = scheduler.timesteps[[0, 4, -1]]
        t = t if function == scheduler.add_noise else t.long()
        together = function(x, noise, t)
        for i in range(3):
            alone = function(x[i : i + 1], noise[i : i + 1], t[i : i + 1])
            assert torch.allclose(together[i : i + 1], alone)


@each_kind
@given(
    total=st.integers(5, 200),
    share=st.floats(0, 1),
    spacing=st.sampled_from(["leading", "linspace", "trailing"]),
    karras=st.booleans(),
)
def test_timesteps_fall_and_stay_in_range(kind, total, share, spacing, karras):
    steps = max(4, round(share * (total - 1)))
    settings = dict(use_karras_sigmas=karras) if kind in KARRAS else {}
    scheduler = kind(num_train_timesteps=total, timestep_spacing=spacing, **settings)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    calls = {HeunDiscreteScheduler: 2 * steps - 1, PNDMScheduler: steps + 9}.get(kind, steps)
    assert len(timesteps) == calls
    real = kind in SIGMA_SPACE or kind in KARRAS and karras
    assert timesteps.dtype == (torch.float32 if real else torch.int64)
    assert timesteps.min() >= 0 and timesteps.max() <= total - 1
    if spacing != "leading":
        assert timesteps[0] == total - 1
    if kind not in (HeunDiscreteScheduler, PNDMScheduler):
        assert (timesteps.diff() < 0).all()  # the others visit some twice
    elif kind is not PNDMScheduler:
        assert (timesteps.diff() <= 0).all()
    if hasattr(scheduler, "sigmas"):
        assert len(scheduler.sigmas) == calls + 1 and scheduler.sigmas[-1] == 0
        assert (scheduler.sigmas.diff() <= 0).all()


@pytest.mark.parametrize(("steps", "calls"), [(1, 1), (2, 3), (5, 6), (50, 51)])
def test_pndm_without_its_start_costs_one_extra_call(steps, calls):
    scheduler = PNDMScheduler(skip_prk_steps=True)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == calls
    assert len(set(scheduler.timesteps.tolist())) == steps


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_runge_kutta_start_needs_four_steps(steps):
    with pytest.raises(ValueError, match=f"at least 4 steps, got {steps}.*skip_prk_steps=True"):
        PNDMScheduler().set_timesteps(steps)


@each_kind
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_wrong_numbers_of_steps_raise(kind, steps):
    with pytest.raises(ValueError, match=f"between 1 and (1000|999), got {steps}"):
        kind().set_timesteps(steps)


@each_kind
@pytest.mark.parametrize("steps", [True, 10.0, 10.5, "10", None])
def test_a_number_of_steps_is_a_whole_number(kind, steps):
    scheduler = kind(**({"skip_prk_steps": True} if kind is PNDMScheduler else {}))
    with pytest.raises(ValueError, match=f"must be a whole number, got {steps!r}"):
        scheduler.set_timesteps(steps)
    scheduler.set_timesteps(np.int64(10))


def test_dpm_solver_has_no_room_for_a_thousand_steps():
    """It leaves out the last of steps + 1 timesteps; with `trailing` there is none to leave out."""
    with pytest.raises(ValueError, match="between 1 and 999, got 1000"):
        DPMSolverMultistepScheduler().set_timesteps(1000)
    DPMSolverMultistepScheduler(timestep_spacing="trailing").set_timesteps(1000)


@each_kind
def test_an_offset_beyond_the_last_timestep_raises(kind):
    scheduler = kind(timestep_spacing="leading", steps_offset=2)
    with pytest.raises(
        ValueError, match="steps_offset=2 moves the first of 999 steps to t=100[01]"
    ):
        scheduler.set_timesteps(999)


@each_kind
def test_step_before_set_timesteps_raises(kind):
    with pytest.raises(ValueError, match="call set_timesteps first"):
        kind().step(torch.zeros(1, 1, 2, 2), 5, torch.zeros(1, 1, 2, 2))


@each_kind
@pytest.mark.parametrize("t", [-1, 17, 1000])
def test_a_foreign_timestep_raises(kind, t):
    scheduler = kind()
    scheduler.set_timesteps(10)
    for form in (t, torch.tensor(t)):
        with pytest.raises(ValueError, match=f"t={t} is not one of the timesteps"):
            scheduler.step(torch.zeros(1, 1, 2, 2), form, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, DPMSolverMultistepScheduler])
def test_a_scheduler_with_a_memory_keeps_the_order(kind):
    scheduler = kind()
    scheduler.set_timesteps(10)
    x = torch.zeros(1, 1, 2, 2)
    first, last = scheduler.timesteps[[0, -1]]
    scheduler.step(x, first, x)
    for wrong in (first, last):
        with pytest.raises(ValueError, match="out of turn: call set_timesteps"):
            scheduler.step(x, wrong, x)
    scheduler.set_timesteps(10)  # forgets
    scheduler.step(x, first, x)
    scheduler.set_timesteps(10)
    middle = scheduler.timesteps[4 * kind.order]  # a walk may begin anywhere: image to image
    for t in scheduler.timesteps[4 * kind.order :]:
        scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="out of turn"):
        scheduler.step(x, middle, x)


@each_kind
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(prediction_type="eps"), "'eps'.*epsilon, sample, v_prediction"),
        (dict(timestep_spacing="even"), "'even'.*leading, linspace, trailing"),
        (dict(beta_schedule="cosine"), "'cosine'.*linear, scaled_linear, squaredcos_cap_v2"),
        (dict(num_train_timesteps=0), "num_train_timesteps.*got 0"),
        (dict(beta_start=0.5, beta_end=0.1), "0.5 and 0.1"),
    ],
)
def test_bad_settings_raise(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@each_kind
@pytest.mark.parametrize("wrong", ["x", [], {}, [1], None, True, 0.5, float("nan")], ids=str)
def test_settings_of_the_wrong_type_raise(kind, wrong, tmp_path):
    """In a constructor, and in a file of JSON, where the error names the file."""
    for field in fields(kind):
        if isinstance(wrong, bool) and field.type is bool:
            continue
        if wrong == 0.5 and field.type is float:
            continue
        with pytest.raises(ValueError, match=r"must be|unknown|need"):
            kind(**{field.name: wrong})
        if wrong is None:  # in a file: not set
            continue
        config = {"_class_name": kind.__name__, field.name: wrong}
        (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
        said = "NaN is no number" if wrong != wrong else "(must be|unknown|need)"
        with pytest.raises(ValueError, match=rf"scheduler_config\.json.*: .*{said}"):
            load_scheduler(tmp_path)


@each_kind
def test_whole_numbers_are_numbers(kind):
    assert kind(beta_start=1e-4, beta_end=0.5).beta_end == 0.5
    if "clip_sample_range" in kind().config:
        assert kind(clip_sample_range=2).clip_sample_range == 2


@each_kind
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(steps_offset=-1), "steps_offset must not be negative, got -1"),
        (dict(clip_sample_range=0.0), "clip_sample_range must be positive, got 0.0"),
    ],
)
def test_settings_out_of_range_raise(kind, settings, message):
    if settings.keys() <= {field.name for field in fields(kind)}:
        with pytest.raises(ValueError, match=message):
            kind(**settings)


@pytest.mark.parametrize("name", [[], {}, None, True, 3, "Scheduler", ["DDIMScheduler"]], ids=str)
def test_a_class_name_that_is_none_raises(name, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": name}))
    said = "unknown scheduler .* minisd has DDPMScheduler, |the name of a class must be text"
    with pytest.raises(ValueError, match=said):
        load_scheduler(tmp_path)


def test_unknown_variance_type_raises():
    with pytest.raises(ValueError, match="'learned'"):
        DDPMScheduler(variance_type="learned")


@each_kind
def test_settings_survive_a_folder(kind, tmp_path):
    scheduler = kind(num_train_timesteps=77, beta_end=0.3, prediction_type="v_prediction")
    scheduler.save_pretrained(tmp_path / "new")
    assert kind.from_pretrained(tmp_path / "new").config == scheduler.config
    assert read_json(tmp_path / "new" / "scheduler_config.json")["_class_name"] == kind.__name__


@each_kind
@pytest.mark.parametrize("origin", KINDS)
def test_one_kind_is_built_from_the_settings_of_another(kind, origin):
    settings = dict(beta_end=0.1, prediction_type="v_prediction", timestep_spacing="trailing")
    built = kind.from_config(origin(**settings, steps_offset=3).config)
    assert built.config.items() >= (settings | dict(steps_offset=3)).items()
    assert torch.equal(built.betas, origin.from_config(built.config).betas)
    if kind is not origin and kind is DDPMScheduler:
        assert built.variance_type == "fixed_small"


@each_kind
def test_every_kind_walks_with_the_bundled_settings(kind):
    scheduler = kind.from_pretrained("digits-ddpm")
    scheduler.set_timesteps(5)
    assert scheduler.beta_end == 0.02 and scheduler.timestep_spacing == "leading"
    assert scheduler.clip_sample == (kind in (DDPMScheduler, DDIMScheduler, HeunDiscreteScheduler))


V15_FILE = {  # v1.5's `scheduler/scheduler_config.json`
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


@each_kind
@pytest.mark.parametrize("other", KINDS)
def test_settings_that_only_another_kind_uses_are_kept_for_it(kind, other, tmp_path):
    built = kind.from_config(V15_FILE)
    built.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).config == built.config
    again = other.from_config(built.config)
    assert not again.clip_sample  # latents have no range to clip to
    assert again.config.items() >= dict(set_alpha_to_one=False, skip_prk_steps=True).items()
    clipping = kind.from_config(V15_FILE | {"clip_sample": True})
    if kind is PNDMScheduler:
        assert not clipping.clip_sample  # kept for others, without effect here
    assert DDIMScheduler.from_config(clipping.config).clip_sample


def test_what_others_use_is_listed():
    """All settings that not every kind has, but for those that say what noise and network are."""
    everywhere = set.intersection(*({field.name for field in fields(kind)} for kind in KINDS))
    anywhere = {field.name for kind in KINDS for field in fields(kind)}
    assert anywhere - everywhere - {"rescale_betas_zero_snr", "variance_type"} == STEP_SETTINGS


def test_a_scheduler_of_the_reader_s_changes_nothing_for_others(tmp_path):
    @dataclass(kw_only=True, eq=False)
    class Own(DDIMScheduler):
        own_setting: float = 0.0
        trained_betas: tuple = ()

    own = Own(own_setting=2.0)
    assert Own.from_config(own.config).own_setting == 2.0
    for name in ("own_setting", "trained_betas"):
        with pytest.raises(ValueError, match=f"DDIMScheduler does not implement.*{name}"):
            DDIMScheduler.from_config({name: 0.5})


@each_kind
@pytest.mark.parametrize("other", KINDS)
def test_match_diffusers_survives_files_and_other_kinds(kind, other, tmp_path):
    assert "match_diffusers" not in kind().config  # diffusers does not know it
    kind(match_diffusers=True).save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).match_diffusers
    assert other.from_config(load_scheduler(tmp_path).config).match_diffusers
    assert not other.from_config(kind().config).match_diffusers


@pytest.mark.parametrize("model", ["postcards", "postcards-maps"])
def test_no_scheduler_made_from_a_bundled_one_clips_latents(model):
    own = load_scheduler(model, "scheduler")
    for kind in KINDS:
        assert not kind.from_config(own.config).clip_sample
    assert own.config == POSTCARDS_SAMPLER.config


def test_stable_diffusion_s_own_settings_are_read():
    config = V15_FILE
    scheduler = PNDMScheduler.from_config(config)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[:4].tolist() == [981, 961, 961, 941]
    assert scheduler.timesteps[-1] == 1 and len(scheduler.timesteps) == 51
    euler = EulerDiscreteScheduler.from_config(config)
    assert euler.timestep_spacing == "linspace"  # its own default: the file does not say
    for kind in KINDS:
        assert kind.from_config(config).beta_end == 0.012


@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, PNDMScheduler])
def test_noise_without_an_end_is_not_ignored(kind):
    """What another scheduler does while it steps may be left out, the noise itself may not."""
    with pytest.raises(ValueError, match=f"{kind.__name__} does not implement.*rescale_betas"):
        kind.from_config(DDIMScheduler(rescale_betas_zero_snr=True).config)


def test_misspelt_settings_are_refused():
    with pytest.raises(ValueError, match="beta_strat"):
        DDIMScheduler.from_config({"beta_strat": 0.1})


def test_a_missing_scheduler_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"scheduler_config\.json does not exist"):
        DDIMScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, HeunDiscreteScheduler])
def test_clipping_bounds_the_estimate(kind):
    scheduler = kind(clip_sample=True, clip_sample_range=0.5)
    scheduler.set_timesteps(10)
    x = torch.full((1, 1, 2, 2), 3.0)
    out = scheduler.step(-x, scheduler.timesteps[0], x)
    assert out.pred_original_sample.abs().max() == 0.5


@pytest.mark.parametrize("order", [0, 4])
def test_unknown_solver_order_raises(order):
    with pytest.raises(ValueError, match=f"solver_order must be .*got {order}"):
        DPMSolverMultistepScheduler(solver_order=order)


# Relations between the samplers, by algebra.


def walk(scheduler, x, steps, seed=0, **settings):
    """Sample with a smooth stand-in for a network, from x at the scale of an image."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction = torch.sin(scheduler.scale_model_input(x, t) + t / 300)
        x = scheduler.step(prediction, t, x, generator=generator, **settings).prev_sample
    return x


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_three_names_of_one_step(prediction_type, generator):
    """DDIM is Euler's step in sigma, and DPM-Solver++'s of order 1; only the scale of x differs."""
    config = SD15 | dict(timestep_spacing="trailing", prediction_type=prediction_type)
    x = torch.randn(2, 1, 4, 4, generator=generator)
    ddim = DDIMScheduler(**config, clip_sample=False)
    dpm = DPMSolverMultistepScheduler(**config, solver_order=1)
    euler = EulerDiscreteScheduler(**config)
    expected = walk(ddim, x, 20)
    assert torch.allclose(walk(dpm, x, 20), expected, atol=1e-4)
    euler.set_timesteps(20)
    sigma = euler.init_noise_sigma  # where Euler starts from pure noise, DDIM adds no signal
    assert torch.allclose(walk(euler, x * (sigma**2 + 1) ** 0.5 / sigma, 20), expected, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_euler_ancestral_is_ddim_with_eta_one(prediction_type, generator):
    """So diffusers' missing `sample` is checked too, and DDPM's variance with it."""
    config = SD15 | dict(timestep_spacing="trailing", prediction_type=prediction_type)
    x = torch.randn(2, 1, 4, 4, generator=generator)
    ancestral = EulerAncestralDiscreteScheduler(**config)
    ancestral.set_timesteps(20)
    sigma = ancestral.init_noise_sigma
    ours = walk(ancestral, x * (sigma**2 + 1) ** 0.5 / sigma, 20)
    expected = walk(DDIMScheduler(**config, clip_sample=False), x, 20, eta=1.0)
    assert torch.allclose(ours, expected, atol=1e-4)


def test_karras_sigmas_are_even_in_their_seventh_root():
    sigmas = karras_sigmas(0.1, 10.0, 9)
    assert sigmas[0] == pytest.approx(10) and sigmas[-1] == pytest.approx(0.1)
    roots = torch.tensor(sigmas) ** (1 / 7)
    assert torch.allclose(roots.diff(), roots.diff()[0])


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_rescaling_leaves_no_signal_and_keeps_the_start(schedule):
    betas = make_betas(schedule)
    before = (1 - betas).cumprod(0).sqrt()
    after = (1 - rescale_zero_terminal_snr(betas)).cumprod(0).sqrt()
    assert after[-1] == 0
    assert after[0] == pytest.approx(before[0].item(), abs=1e-6)
    stretched = (before - before[-1]) * before[0] / (before[0] - before[-1])  # Lin et al., alg. 1
    assert torch.allclose(after, stretched, atol=1e-5)


def test_predicted_noise_says_nothing_where_no_signal_is():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="use prediction_type 'v_prediction' or 'sample'"):
        scheduler.set_timesteps(10)


# Orders of convergence, on data for which the solution is known: Gaussian pixels.

MEAN, STD = 0.3, 0.5


def error_after(scheduler, steps, stop=None):
    """Follow the ODE with the exact score; return how far it has strayed at its last sigma > 0.

    D(x; sigma) = mean + STD^2 / (STD^2 + sigma^2) (x - mean), and x - mean shrinks in proportion
    to sqrt(STD^2 + sigma^2). All in float64; `stop` ends the walk early, at that timestep.
    """
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(steps)
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps]
        sigmas = (1 / alpha_bar - 1).sqrt()
    last = len(scheduler.timesteps) - 1
    if stop is not None:
        last = scheduler.timesteps.tolist().index(stop)
    z = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(1, 1, 1, 5)

    def unit(sigma):  # sigma space to the scheduler's own
        return 1.0 if isinstance(scheduler, SIGMA_SPACE) else (sigma**2 + 1) ** -0.5

    def solution(sigma):
        return MEAN + z * (STD**2 + sigma**2) ** 0.5

    sigma = sigmas[0].item()
    x = unit(sigma) * solution(sigma)
    for t, sigma in zip(scheduler.timesteps[:last], sigmas.tolist(), strict=False):
        x_sigma = x / unit(sigma)
        x_start = MEAN + STD**2 / (STD**2 + sigma**2) * (x_sigma - MEAN)
        noise = (x_sigma - x_start) / sigma
        prediction = noise
        if scheduler.prediction_type == "v_prediction":
            prediction = (noise - sigma * x_start) / (sigma**2 + 1) ** 0.5
        x = scheduler.step(prediction, t, x).prev_sample
    sigma = sigmas[last].item()
    return (x / unit(sigma) - solution(sigma)).abs().max().item()


def order(scheduler, few, many, stop=None):
    """The slope of log error against log steps."""
    errors = [error_after(scheduler, steps, stop) for steps in (few, many)]
    assert errors[1] < errors[0] < 0.1
    return math.log(errors[0] / errors[1]) / math.log(many / few)


KARRAS_SD15 = SD15 | dict(use_karras_sigmas=True)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (EulerDiscreteScheduler(**KARRAS_SD15), 1),
        (HeunDiscreteScheduler(**KARRAS_SD15), 2),
        (DPMSolverMultistepScheduler(**KARRAS_SD15, solver_order=1), 1),
        (DPMSolverMultistepScheduler(**KARRAS_SD15, solver_order=2), 2),
        (DPMSolverMultistepScheduler(**KARRAS_SD15, solver_order=3), 3),
        (DPMSolverMultistepScheduler(**KARRAS_SD15, solver_order=3, match_diffusers=True), 2),
    ],
    ids=["Euler", "Heun", "DPM-Solver++ 1", "DPM-Solver++ 2", "DPM-Solver++ 3", "diffusers' 3"],
)
def test_order_of_convergence_in_sigma(scheduler, expected):
    assert order(scheduler, 50, 200) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (DDIMScheduler(**SD15, clip_sample=False), 1),
        (PNDMScheduler(**SD15), 2),
        (PNDMScheduler(**SD15, skip_prk_steps=True), 2),
        (PNDMScheduler(**SD15, prediction_type="v_prediction"), 2),
        (PNDMScheduler(**SD15, prediction_type="v_prediction", match_diffusers=True), 1),
    ],
    ids=["DDIM", "PNDM", "PNDM without its start", "PNDM from v", "PNDM averaging v"],
)
def test_order_of_convergence_in_t(scheduler, expected):
    """Down to t = 200: below, sigma is like the root of t, and no power series in t."""
    assert order(scheduler, 50, 250, stop=200) == pytest.approx(expected, abs=0.15)


def rk4(slope, x, start, end, steps):
    """Solve dx/dlambda = slope(x, lambda) with the classic Runge-Kutta method."""
    h = (end - start) / steps
    for k in range(steps):
        a = start + k * h
        k1 = slope(x, a)
        k2 = slope(x + h / 2 * k1, a + h / 2)
        k3 = slope(x + h / 2 * k2, a + h / 2)
        k4 = slope(x + h * k3, a + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(solver_order=1), 1),
        (dict(solver_order=2), 2),
        (dict(solver_order=3), 3),
        (dict(solver_order=3, match_diffusers=True), 2),
    ],
    ids=str,
)
def test_order_of_dpm_solver_between_many_pictures(settings, expected):
    """Half way along Karras' ramp, at sigma = 1.3, against a solution of many more steps."""
    config = KARRAS_SD15 | dict(prediction_type="sample") | settings
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    errors, counts = [], (101, 201)
    for steps in counts:
        scheduler = DPMSolverMultistepScheduler(**config)
        oracle = IdealDenoiser(pictures(5).double(), scheduler.alphas_cumprod)
        scheduler.set_timesteps(steps)
        sigmas = scheduler.sigmas[: steps // 2 + 1].tolist()
        x = noise * sigmas[0]  # x_0 + sigma * noise, in these coordinates
        for t, sigma, sigma_next in zip(scheduler.timesteps, sigmas, sigmas[1:], strict=False):
            x_start = oracle.x_start(x, 1, sigma)
            out = scheduler.step(x_start, t, x / (sigma**2 + 1) ** 0.5).prev_sample
            x = out * (sigma_next**2 + 1) ** 0.5

        def slope(x, log_sigma, oracle=oracle):
            return x - oracle.x_start(x, 1, math.exp(log_sigma))  # dx/dsigma times sigma

        ends = math.log(sigmas[0]), math.log(sigmas[-1])
        errors.append((x - rk4(slope, noise * sigmas[0], *ends, 400)).abs().max().item())
    order = math.log(errors[0] / errors[1]) / math.log((counts[1] - 1) / (counts[0] - 1))
    assert order == pytest.approx(expected, abs=0.35)


def test_orders_pay():
    """Each error, at equal cost in network calls, is a good part below that of the lower order."""
    euler = error_after(EulerDiscreteScheduler(**KARRAS_SD15), 40)
    heun = error_after(HeunDiscreteScheduler(**KARRAS_SD15), 20)  # 39 calls
    dpm = error_after(DPMSolverMultistepScheduler(**KARRAS_SD15), 40)
    assert heun < euler / 2 and dpm < heun / 2


@pytest.mark.parametrize("kind", [*KINDS, load_scheduler], ids=lambda kind: kind.__name__)
def test_whatever_a_file_says_loading_ends_in_a_scheduler_or_in_words(kind, tmp_path):
    """The files come with models of strangers; a scheduler of anything else is told in words."""
    load = kind if kind is load_scheduler else kind.from_pretrained
    (DDIMScheduler if kind is load_scheduler else kind)().save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    raw, refused = read_json(path), 0
    anything = [True, 0, -1, 1.5, 10**9, 10**400, float("inf"), "", "ab", [], [1], {}, {"a": 1}]
    for name in raw:
        for value in anything:
            path.write_text(json.dumps(raw | {name: value}))
            try:
                load(tmp_path)
            except ValueError:
                refused += 1
    assert refused > 3 * len(raw)
