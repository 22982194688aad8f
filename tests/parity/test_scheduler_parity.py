"""minisd's schedulers and diffusers' walk the same way, step by step."""

import warnings
from fractions import Fraction

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel
from helpers import randomise
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minisd import DDIMScheduler, DDPMScheduler, UNet, UNetConfig
from minisd.pipeline import sample

TOLERANCE = 1e-5  # largest absolute difference, float32
THEIRS = {DDPMScheduler: diffusers.DDPMScheduler, DDIMScheduler: diffusers.DDIMScheduler}

SD15 = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    steps_offset=1,
)
SCHEDULES = {
    "DDPM paper": {},
    "linear, not clipped": dict(clip_sample=False),
    "v1.5": SD15,
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
    "short and clipped at 2": dict(num_train_timesteps=100, beta_end=0.2, clip_sample_range=2.0),
}
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")


class StandIn:
    """A deterministic network: it knows a picture and sees it a little wrong, as networks do."""

    def __init__(self, scheduler, shape, generator):
        self.scheduler = scheduler
        self.picture = torch.rand(shape, generator=generator) * 2 - 1
        self.weights = torch.randn(shape[-1], shape[-1], generator=generator) / shape[-1] ** 0.5

    def __call__(self, x, t):
        t = torch.as_tensor(t).reshape(1)
        alpha_bar = self.scheduler.alphas_cumprod[t].reshape(1, 1, 1, 1)
        error = 0.1 * torch.sin(x @ self.weights + t / 100)
        if self.scheduler.prediction_type == "epsilon":
            noise = (x - alpha_bar.sqrt() * self.picture) / (1 - alpha_bar).sqrt()
            return noise + error * alpha_bar.sqrt()  # else the error, over sqrt(abar), explodes
        if self.scheduler.prediction_type == "sample":
            return self.picture + error
        noise = (x - alpha_bar.sqrt() * self.picture) / (1 - alpha_bar).sqrt()
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * self.picture + error


def compare(kind, config, steps, seed=0, fault=None, **step_settings):
    """Walk both schedulers from one noise; return the largest difference anywhere on the way."""
    ours, theirs = kind(**config), THEIRS[kind](**config)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    if fault:
        fault(ours)
    generators = [torch.Generator().manual_seed(seed + 1) for _ in range(2)]
    shape = (2, 1, 4, 4)
    network = StandIn(kind(**config), shape, torch.Generator().manual_seed(seed))
    x = y = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 2))
    assert len(ours.timesteps) == len(theirs.timesteps) == steps
    worst = 0.0
    for t, their_t in zip(ours.timesteps, theirs.timesteps, strict=True):
        a = ours.step(network(x, t), t, x, generator=generators[0], **step_settings)
        b = theirs.step(network(y, their_t), their_t, y, generator=generators[1], **step_settings)
        x, y = a.prev_sample, b.prev_sample
        assert x.dtype == torch.float32 and x.isfinite().all()
        apart = (x - y).abs().max(), (a.pred_original_sample - b.pred_original_sample).abs().max()
        worst = max(worst, *(d.item() for d in apart))
    assert 0.1 < y.std() < 3, "the walk should end in something like a picture"
    return worst


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_walks_as_diffusers(schedule, prediction_type, spacing):
    config = SCHEDULES[schedule] | dict(prediction_type=prediction_type, timestep_spacing=spacing)
    for steps in (5, 20, 50):
        for variance_type in ("fixed_small", "fixed_large"):
            found = compare(DDPMScheduler, config | dict(variance_type=variance_type), steps)
            assert found <= TOLERANCE, (steps, variance_type)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_walks_as_diffusers(schedule, prediction_type, spacing):
    config = SCHEDULES[schedule] | dict(
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        set_alpha_to_one=schedule != "v1.5",
    )
    for steps in (5, 20, 50):
        for eta in (0.0, 0.5, 1.0):
            assert compare(DDIMScheduler, config, steps, eta=eta) <= TOLERANCE, (steps, eta)


@pytest.mark.parametrize("kind", THEIRS)
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
    ), draw(st.integers(2, 19))


def same_timesteps(kind, config, steps):
    """False in the rare cases that `test_the_timesteps_are_the_same_but_for_ties` looks at."""
    ours, theirs = kind(**config), THEIRS[kind](**config)
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    return ours.timesteps.tolist() == theirs.timesteps.tolist()


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
    eta=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_ddim_agrees_for_any_settings(drawn, seed, set_alpha_to_one, eta):
    config, steps = drawn
    assume(same_timesteps(DDIMScheduler, config, steps))
    config = config | dict(set_alpha_to_one=set_alpha_to_one)
    assert compare(DDIMScheduler, config, steps, seed, eta=eta) <= TOLERANCE


@pytest.mark.parametrize("kind", THEIRS)
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


@pytest.mark.parametrize("kind", THEIRS)
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
    """DDIM finds the next timestep by its stride, DDPM by its list: both go too far."""
    scheduler.num_inference_steps = 19  # of 20
    if hasattr(scheduler, "previous_timestep"):
        right = scheduler.previous_timestep
        scheduler.previous_timestep = lambda t: max(-1, right(t) - 1)


def stop_one_early(scheduler):
    """The last step ends at the first noise level and not at the image."""
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    if hasattr(scheduler, "previous_timestep"):
        right = scheduler.previous_timestep
        scheduler.previous_timestep = lambda t: max(0, right(t))


def other_variance(scheduler):
    scheduler.variance_type = "fixed_large"


def no_clipping(scheduler):
    scheduler.clip_sample = False


def other_prediction(scheduler):
    scheduler.prediction_type = "sample"


FAULTS = {
    DDPMScheduler: (
        *(shift_alphas, shift_timesteps, stride_too_long, stop_one_early),
        *(other_variance, no_clipping, other_prediction),
    ),
    DDIMScheduler: (
        *(shift_alphas, shift_timesteps, stride_too_long, stop_one_early),
        *(no_clipping, other_prediction),
    ),
}


@pytest.mark.parametrize(
    ("kind", "fault"), [(kind, fault) for kind, faults in FAULTS.items() for fault in faults]
)
def test_a_planted_fault_is_seen(kind, fault):
    config = dict(num_train_timesteps=1000, beta_schedule="linear")
    assert compare(kind, config, 20) <= TOLERANCE
    assert compare(kind, config, 20, fault=fault) > TOLERANCE


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
    theirs = THEIRS[kind](**SCHEDULES[schedule], prediction_type="v_prediction")
    theirs.save_pretrained(tmp_path)
    ours = kind.from_pretrained(tmp_path)
    assert ours.config.items() <= theirs.config.items()
    assert kind.from_config(theirs.config).config == ours.config


@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_settings_saved_by_us_are_read_by_diffusers(kind, schedule, tmp_path):
    ours = kind(**SCHEDULES[schedule], prediction_type="sample", timestep_spacing="trailing")
    ours.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = THEIRS[kind].from_pretrained(tmp_path)
    assert ours.config.items() <= theirs.config.items()


@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.parametrize(
    "change",
    [
        dict(thresholding=True),
        dict(rescale_betas_zero_snr=True),
        dict(trained_betas=[0.1, 0.2]),
        dict(beta_schedule="sigmoid"),
    ],
    ids=str,
)
def test_what_minisd_does_not_implement_is_refused(kind, change):
    theirs = THEIRS[kind]()
    with pytest.raises(ValueError, match="|".join([*change, "sigmoid"])):
        kind.from_config(dict(theirs.config) | change)


def test_learned_variance_is_refused():
    theirs = diffusers.DDPMScheduler(variance_type="learned_range")
    with pytest.raises(ValueError, match="'learned_range'"):
        DDPMScheduler.from_config(theirs.config)


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


@pytest.mark.parametrize("kind", THEIRS)
def test_diffusers_schedulers_run_inside_our_loop(kind, unets):
    results = []
    for scheduler in (kind(), THEIRS[kind]()):
        generator = torch.Generator().manual_seed(5)
        results.append(torch.cat(list(sample(unets[0], scheduler, 2, 10, generator))))
    assert results[0].std() > 0.1
    assert (results[0] - results[1]).abs().max() <= TOLERANCE
