import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minisd.schedules import (
    add_noise,
    get_velocity,
    make_betas,
    rescale_zero_terminal_snr,
    signal_to_noise_ratio,
    target,
    timestep_probabilities,
    to_noise,
    to_x_start,
)

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 10, 1000])
def test_betas_are_variances_and_the_signal_only_shrinks(schedule, total):
    betas = make_betas(schedule, total)
    assert betas.shape == (total,) and betas.dtype == torch.float32
    assert ((betas > 0) & (betas < 1)).all()
    alphas_cumprod = (1 - betas).cumprod(0)
    assert (alphas_cumprod.diff() < 0).all()
    assert 0 < alphas_cumprod[-1] and alphas_cumprod[0] < 1


def test_linear_and_scaled_linear_end_where_they_should():
    for schedule in ("linear", "scaled_linear"):
        betas = make_betas(schedule, 1000, 0.00085, 0.012).double()
        assert betas[0].item() == pytest.approx(0.00085, rel=1e-6)
        assert betas[-1].item() == pytest.approx(0.012, rel=1e-6)
        steps = (betas if schedule == "linear" else betas.sqrt()).diff()
        assert torch.allclose(steps, steps.mean().expand(999), rtol=1e-2)


def test_cosine_schedule_is_the_formula_of_the_paper():
    total = 1000

    def f(t):  # Nichol & Dhariwal 2021, eq. 17, with s = 0.008
        return math.cos((t / total + 0.008) / 1.008 * math.pi / 2) ** 2

    alphas_cumprod = (1 - make_betas("squaredcos_cap_v2", total).double()).cumprod(0)
    for t in (0, 1, 250, 500, 900, 998):
        # entry t holds the signal left after t + 1 steps
        assert alphas_cumprod[t].item() == pytest.approx(f(t + 1) / f(0), rel=1e-3)
    assert make_betas("squaredcos_cap_v2", total)[-1].item() == pytest.approx(0.999)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_jump_is_the_chain_of_small_steps(schedule):
    """The chain x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) eps is linear: follow its two factors."""
    betas = make_betas(schedule, 1000).double()
    alphas_cumprod = (1 - betas).cumprod(0)
    signal, variance = 1.0, 0.0
    for beta, alpha_bar in zip(betas.tolist(), alphas_cumprod, strict=True):
        signal = math.sqrt(1 - beta) * signal
        variance = (1 - beta) * variance + beta
        one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        assert add_noise(one, zero, alpha_bar).item() == pytest.approx(signal, abs=1e-12)
        assert add_noise(zero, one, alpha_bar).item() ** 2 == pytest.approx(variance, abs=1e-12)


def test_the_jump_keeps_unit_variance(generator):
    x, noise = (torch.randn(200_000, generator=generator) for _ in range(2))
    for alpha_bar in (0.01, 0.5, 0.99):
        variance = add_noise(x, noise, torch.tensor(alpha_bar)).var().item()
        assert variance == pytest.approx(1, abs=5 * math.sqrt(2 / 200_000))


def test_signal_to_noise_ratio():
    ratio = signal_to_noise_ratio(torch.tensor([0.5, 0.8, 0.2]))
    assert torch.allclose(ratio, torch.tensor([1.0, 4.0, 0.25]))


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@given(
    alpha_bar=st.floats(1e-4, 1 - 1e-4),
    seed=st.integers(0, 2**32),
    per_image=st.booleans(),
)
def test_prediction_types_convert_into_each_other(kind, alpha_bar, seed, per_image):
    """The perfect prediction of any kind gives back exactly the image and the noise."""
    generator = torch.Generator().manual_seed(seed)
    x_start, noise = (
        torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    alpha_bar = torch.tensor(alpha_bar, dtype=torch.float64)
    if per_image:
        alpha_bar = alpha_bar * torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
        alpha_bar = alpha_bar.reshape(3, 1, 1, 1)
    x_t = add_noise(x_start, noise, alpha_bar)
    prediction = target(kind, x_start, noise, alpha_bar)
    assert torch.allclose(to_x_start(kind, prediction, x_t, alpha_bar), x_start, atol=1e-9)
    assert torch.allclose(to_noise(kind, prediction, x_t, alpha_bar), noise, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (2.0, 0.7)])
def test_half_of_the_timesteps_have_a_normal_log_snr(schedule, mean, std):
    alpha_bar = (1 - make_betas(schedule)).cumprod(0)
    probabilities = timestep_probabilities(alpha_bar, mean, std).double()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
    normal = 2 * probabilities - 1 / 1000  # without the half that is uniform
    assert normal.min() > -1e-9
    log_snr = signal_to_noise_ratio(alpha_bar.double()).log()
    measured_mean = (normal * log_snr).sum().item()
    variance = (normal * (log_snr - measured_mean) ** 2).sum().item()
    assert measured_mean == pytest.approx(mean, abs=0.02)
    assert variance**0.5 == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_timestep_without_signal_has_its_uniform_share(schedule):
    """Zero terminal SNR: the last log SNR is -inf, and all others are as without it."""
    betas = rescale_zero_terminal_snr(make_betas(schedule))
    alpha_bar = (1 - betas).cumprod(0)
    assert alpha_bar[-1] == 0
    probabilities = timestep_probabilities(alpha_bar, -1.2, 1.2).double()
    assert probabilities.isfinite().all() and (probabilities > 0).all()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
    assert probabilities[-1].item() == pytest.approx(1 / 2000)
    others = timestep_probabilities(alpha_bar[:-1], -1.2, 1.2).double()
    assert torch.allclose(probabilities[:-1] - 1 / 2000, others - 1 / 1998, atol=1e-9)


@pytest.mark.parametrize(
    ("mean", "std"), [(1e4, 1.0), (-1e4, 1.0), (0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0)]
)
def test_a_normal_that_meets_no_timestep_raises(mean, std):
    with pytest.raises(ValueError, match="no timestep has a log SNR near mean="):
        timestep_probabilities((1 - make_betas()).cumprod(0), mean, std)


def test_a_single_step_cannot_lose_its_signal_and_keep_it():
    with pytest.raises(ValueError, match="at least 2 training timesteps"):
        rescale_zero_terminal_snr(make_betas("linear", 1))


@given(alpha_bar=st.floats(1e-3, 1 - 1e-3), angle=st.floats(0, 2 * math.pi))
def test_velocity_is_the_derivative_along_the_circle(alpha_bar, angle):
    """With sqrt(abar) = cos(phi), x_t = cos(phi) x_0 + sin(phi) eps and v = dx_t / dphi."""
    phi = math.acos(math.sqrt(alpha_bar))
    x_start, noise = (torch.tensor(f(angle), dtype=torch.float64) for f in (math.cos, math.sin))

    def x_at(phi):
        return add_noise(x_start, noise, torch.tensor(math.cos(phi) ** 2, dtype=torch.float64))

    h = 1e-6
    slope = (x_at(phi + h) - x_at(phi - h)) / (2 * h)
    velocity = get_velocity(x_start, noise, torch.tensor(alpha_bar, dtype=torch.float64))
    assert velocity.item() == pytest.approx(slope.item(), abs=1e-6)


def test_unknown_names_raise_and_list_the_known_ones():
    with pytest.raises(ValueError, match="'quadratic'.*linear, scaled_linear, squaredcos_cap_v2"):
        make_betas("quadratic")
    x = torch.zeros(1)
    for function in (target, to_x_start, to_noise):
        with pytest.raises(ValueError, match="'velocity'.*epsilon, sample, v_prediction"):
            function("velocity", x, x, torch.tensor(0.5))


@pytest.mark.parametrize(
    "settings",
    [
        dict(num_train_timesteps=0),
        dict(num_train_timesteps=-5),
        dict(beta_start=0.0),
        dict(beta_start=0.03),  # above beta_end
        dict(beta_end=1.0),
        dict(beta_start=float("nan")),
    ],
)
def test_betas_out_of_range_raise(settings):
    with pytest.raises(ValueError):
        make_betas(**settings)
