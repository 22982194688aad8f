import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minisd import DDIMScheduler, DDPMScheduler
from minisd.files import read_json
from minisd.schedulers import Scheduler

KINDS = (DDPMScheduler, DDIMScheduler)
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_network_leads_back_to_the_picture(kind, prediction_type, generator):
    scheduler = kind(prediction_type=prediction_type)
    picture = torch.rand(2, 1, 4, 4, generator=generator) * 2 - 1
    scheduler.set_timesteps(50)
    x = torch.randn(picture.shape, generator=generator)
    for t in scheduler.timesteps:
        alpha_bar = scheduler.alphas_cumprod[t]
        noise = (x - alpha_bar.sqrt() * picture) / (1 - alpha_bar).sqrt()
        prediction = scheduler.target(picture, noise, t[None].expand(2))
        x = scheduler.step(prediction, t, x, generator=generator).prev_sample
    assert torch.allclose(x, picture, atol=1e-3)


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


@each_kind
def test_the_generator_is_the_only_source_of_chance(kind):
    scheduler = kind()
    scheduler.set_timesteps(10)
    x = torch.randn(1, 1, 4, 4)
    settings = {} if kind is DDPMScheduler else dict(eta=1.0)

    def step(seed):
        generator = torch.Generator().manual_seed(seed)
        return scheduler.step(x, 900, x, generator=generator, **settings).prev_sample

    state = torch.get_rng_state()
    first = step(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(step(3), first)
    assert not torch.equal(step(4), first)


def test_ddim_without_eta_draws_nothing():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    x = torch.randn(1, 1, 4, 4)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    scheduler.step(x, 900, x, generator=generator)
    assert torch.equal(generator.get_state(), before)


@each_kind
def test_arguments_are_not_changed(kind):
    scheduler = kind()
    scheduler.set_timesteps(10)
    x, prediction = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    copies = x.clone(), prediction.clone()
    scheduler.step(prediction, 900, x)
    scheduler.add_noise(x, prediction, torch.tensor([1, 2]))
    assert torch.equal(x, copies[0]) and torch.equal(prediction, copies[1])
    assert scheduler.scale_model_input(x, 900) is x


@each_kind
def test_each_image_has_its_own_timestep(kind, generator):
    scheduler = kind()
    x, noise = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    t = torch.tensor([0, 500, 999])
    for function in (scheduler.add_noise, scheduler.get_velocity, scheduler.target):
        together = function(x, noise, t)
        for i in range(3):
            alone = function(x[i : i + 1], noise[i : i + 1], t[i : i + 1])
            assert torch.allclose(together[i : i + 1], alone)


@each_kind
@given(
    total=st.integers(1, 200),
    share=st.floats(0, 1),
    spacing=st.sampled_from(["leading", "linspace", "trailing"]),
)
def test_timesteps_fall_and_stay_in_range(kind, total, share, spacing):
    steps = max(1, round(share * total))
    scheduler = kind(num_train_timesteps=total, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    assert len(timesteps) == steps and timesteps.dtype == torch.int64
    assert (timesteps.diff() < 0).all()
    assert timesteps[-1] >= 0 and timesteps[0] <= total - 1
    if spacing != "leading":
        assert timesteps[0] == total - 1


@each_kind
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_wrong_numbers_of_steps_raise(kind, steps):
    with pytest.raises(ValueError, match=f"between 1 and 1000, got {steps}"):
        kind().set_timesteps(steps)


@each_kind
def test_step_before_set_timesteps_raises(kind):
    with pytest.raises(ValueError, match="set_timesteps"):
        kind().step(torch.zeros(1, 1, 2, 2), 5, torch.zeros(1, 1, 2, 2))


@each_kind
@pytest.mark.parametrize("t", [-1, 1000])
def test_a_timestep_out_of_range_raises(kind, t):
    scheduler = kind()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=f"between 0 and 999, got {t}"):
        scheduler.step(torch.zeros(1, 1, 2, 2), t, torch.zeros(1, 1, 2, 2))


def test_ddpm_refuses_a_timestep_that_it_does_not_visit():
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="t=899 is not one of the timesteps"):
        scheduler.step(torch.zeros(1, 1, 2, 2), 899, torch.zeros(1, 1, 2, 2))


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


def test_unknown_variance_type_raises():
    with pytest.raises(ValueError, match="'learned'"):
        DDPMScheduler(variance_type="learned")


@each_kind
def test_settings_survive_a_folder(kind, tmp_path):
    scheduler = kind(num_train_timesteps=77, beta_end=0.3, prediction_type="v_prediction")
    scheduler.save_pretrained(tmp_path / "new")
    assert kind.from_pretrained(tmp_path / "new").config == scheduler.config
    assert read_json(tmp_path / "new" / "scheduler_config.json")["_class_name"] == kind.__name__


def test_one_kind_is_built_from_the_settings_of_another():
    ddpm = DDPMScheduler(beta_end=0.1, variance_type="fixed_large")
    ddim = DDIMScheduler.from_config(ddpm.config)
    assert ddim.beta_end == 0.1
    assert DDPMScheduler.from_config(ddim.config).variance_type == "fixed_small"


def test_misspelt_settings_are_refused():
    with pytest.raises(ValueError, match="beta_strat"):
        DDIMScheduler.from_config({"beta_strat": 0.1})


def test_a_missing_scheduler_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"scheduler_config\.json does not exist"):
        DDIMScheduler.from_pretrained(tmp_path)


def test_clipping_bounds_the_estimate():
    scheduler = DDIMScheduler(clip_sample_range=0.5)
    scheduler.set_timesteps(10)
    x = torch.full((1, 1, 2, 2), 3.0)
    out = scheduler.step(-x, 900, x)
    assert out.pred_original_sample.abs().max() == 0.5


def test_schedulers_never_import_networks():
    """DESIGN: schedulers never import networks; networks never import schedulers."""
    import subprocess
    import sys

    code = (
        "import sys, types; import torch\n"
        "for name in ('minisd.unet', 'minisd.layers'): sys.modules[name] = None\n"
        "package = types.ModuleType('minisd'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['minisd'] = package\n"
        "import minisd.schedulers; print('alone')"
    )
    import minisd

    result = subprocess.run(
        [sys.executable, "-c", code, minisd.__path__[0]], capture_output=True, text=True
    )
    assert result.stdout.strip() == "alone", result.stderr
    assert issubclass(DDPMScheduler, Scheduler)
