import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence
from torch.utils.data import TensorDataset

from minisd import AutoencoderKL, VAEConfig
from minisd.losses import autoencoder_loss
from minisd.training import TrainingSettings, train
from minisd.vae import DiagonalGaussian, measure_scaling_factor

SMALL = VAEConfig(16, 3, 4, (8, 16), 1, norm_num_groups=4, patch_size=2, scaling_factor=0.5)


@pytest.fixture
def vae(generator):
    return randomise(AutoencoderKL(SMALL), generator).eval()


@pytest.fixture
def images(generator):
    return torch.rand(3, 3, 16, 24, generator=generator) * 2 - 1


# Sizes


def test_the_postcards_autoencoder_is_small_and_makes_4x8x8():
    vae = AutoencoderKL(VAEConfig.POSTCARDS)
    assert sum(p.numel() for p in vae.parameters()) == 3_045_556
    with torch.no_grad():
        latents = vae.encode(torch.zeros(2, 3, 64, 64))
        assert latents.shape == (2, 4, 8, 8)
        assert vae.decode(latents).shape == (2, 3, 64, 64)


@given(
    levels=st.integers(1, 4),
    layers=st.integers(1, 3),
    patch_size=st.integers(1, 3),
    latent_channels=st.integers(1, 5),
    height=st.integers(1, 2),
    width=st.integers(1, 2),
)
def test_an_image_comes_back_with_its_size(
    levels, layers, patch_size, latent_channels, height, width
):
    config = VAEConfig(
        sample_size=patch_size * 8,
        in_channels=2,
        latent_channels=latent_channels,
        channels=(4, 8, 4, 8)[:levels],
        layers_per_block=layers,
        norm_num_groups=2,
        patch_size=patch_size,
    )
    vae = AutoencoderKL(config)
    image = torch.randn(2, 2, height * config.downscale, width * config.downscale)
    with torch.no_grad():
        latents = vae.encode(image)
        assert latents.shape == (2, latent_channels, height, width)
        assert vae.decode(latents).shape == image.shape


def test_patches_keep_what_is_where():
    """A pixel reaches only the patch that it lies in."""
    vae = AutoencoderKL(replace(SMALL, patch_size=4))
    image = torch.zeros(1, 3, 16, 16)
    image[0, 1, 6, 9] = 1
    patches = vae.encoder.to_patches(image)
    assert patches.shape == (1, 48, 4, 4)
    assert patches.sum() == patches[0, :, 1, 2].sum() == 1
    assert torch.equal(vae.decoder.to_pixels(patches), image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ()}, "one entry per level"),
        ({"channels": (8, 10)}, "multiple of norm_num_groups.*got 10"),
        ({"channels": (8, 0)}, r"each a positive integer\), got \(8, 0\)"),
        ({"sample_size": 18}, "multiple of 4, got 18"),
        ({"patch_size": 0}, "patch_size must be a positive integer, got 0"),
        ({"latent_channels": 1.5}, "latent_channels must be a positive integer, got 1.5"),
        ({"layers_per_block": -1}, "layers_per_block"),
        ({"scaling_factor": 0.0}, "scaling_factor must be a positive number, got 0.0"),
        ({"scaling_factor": float("nan")}, "scaling_factor"),
        ({"scaling_factor": float("inf")}, "scaling_factor"),
    ],
)
def test_sizes_that_do_not_fit_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_the_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        SMALL.patch_size = 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 18), "multiples of 4, got 16 x 18: resize or crop the image, to 16 x 16"),
        ((1, 3, 3, 16), "got 3 x 16: resize or crop the image, to 4 x 16"),
        ((1, 3, 0, 16), "got 0 x 16"),
        ((1, 1, 16, 16), r"image must be \(b, 3, h, w\), got \(1, 1, 16, 16\)"),
        ((3, 16, 16), r"got \(3, 16, 16\)"),
    ],
)
def test_images_that_do_not_fit_raise(vae, shape, message):
    for function in (vae.encode, vae.posterior, vae):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (4, 4, 4)])
def test_latents_that_do_not_fit_raise(vae, shape):
    with pytest.raises(ValueError, match=r"latents must be \(b, 4, h, w\)"):
        vae.decode(torch.zeros(shape))


# The posterior


def test_kl_is_that_of_torch(generator):
    moments = 3 * torch.randn(4, 6, 2, 5, generator=generator)
    posterior = DiagonalGaussian(moments)
    theirs = kl_divergence(
        Independent(Normal(posterior.mean, (0.5 * posterior.logvar).exp()), 3),
        Independent(Normal(torch.zeros(4, 3, 2, 5), torch.ones(4, 3, 2, 5)), 3),
    )
    assert torch.allclose(posterior.kl(), theirs, rtol=1e-5)
    assert DiagonalGaussian(torch.zeros(2, 6, 2, 5)).kl().tolist() == [0, 0]


def test_log_variances_are_clamped():
    posterior = DiagonalGaussian(torch.tensor([1.0, -100.0]).view(1, 2, 1, 1))
    assert (posterior.mean.item(), posterior.logvar.item()) == (1, -30)
    assert DiagonalGaussian(torch.full((1, 2, 1, 1), 100.0)).logvar.item() == 20


def test_samples_have_the_mean_and_the_variance(generator):
    mean, logvar = torch.tensor([0.5, -2.0]), torch.tensor([-1.0, 1.5])
    moments = torch.cat([mean, logvar]).view(1, 4, 1, 1).expand(20_000, 4, 1, 1)
    samples = DiagonalGaussian(moments).sample(generator).view(-1, 2)
    assert torch.allclose(samples.mean(0), mean, atol=0.06)
    assert torch.allclose(samples.var(0), logvar.exp(), rtol=0.05)


def test_gradients_reach_both_moments(generator):
    moments = torch.zeros(1, 4, 3, 3, requires_grad=True)
    DiagonalGaussian(moments).sample(generator).square().sum().backward()
    assert (moments.grad != 0).all()


def test_samples_are_drawn_where_the_generator_is(generator):
    moments, other = torch.zeros(2, 8, 3, 3), torch.Generator().manual_seed(0)
    DiagonalGaussian(moments).sample(other)
    there = DiagonalGaussian(moments.to("meta")).sample(generator)
    assert there.device.type == "meta" and there.shape == (2, 4, 3, 3)
    assert torch.equal(generator.get_state(), other.get_state())  # the same noise was drawn


def test_samples_are_drawn_in_the_precision_of_the_moments(generator):
    moments = torch.zeros(1, 4, 3, 3, dtype=torch.bfloat16)
    assert DiagonalGaussian(moments).sample(generator).dtype == torch.bfloat16


# encode and decode


@torch.no_grad()
def test_the_scaling_factor_is_applied_once_each_way(vae, images):
    posterior = vae.posterior(images)
    assert torch.equal(vae.encode(images), 0.5 * posterior.mean)
    a, b = (torch.Generator().manual_seed(3) for _ in range(2))
    assert torch.equal(vae.encode(images, a), 0.5 * posterior.sample(b))
    assert torch.equal(vae.decode(vae.encode(images)), vae.reconstruct(posterior.mean))


@torch.no_grad()
def test_the_picture_does_not_depend_on_the_scaling_factor(vae, images):
    before = vae.decode(vae.encode(images))
    vae.config = replace(vae.config, scaling_factor=0.25)
    assert torch.equal(vae.decode(vae.encode(images)), before)


@torch.no_grad()
def test_encoding_is_a_function_of_its_generator(vae, images):
    a, b, c = (vae.encode(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    torch.manual_seed(5)
    mean = vae.encode(images)
    torch.manual_seed(6)
    assert torch.equal(mean, vae.encode(images))


@torch.no_grad()
def test_training_begins_with_little_noise(images):
    posterior = AutoencoderKL(SMALL).posterior(images)
    assert -8 < posterior.logvar.min() and posterior.logvar.max() < -4
    assert posterior.mean.abs().max() < 3


@torch.no_grad()
def test_forward_is_a_sample_decoded(vae, images):
    a, b = (torch.Generator().manual_seed(3) for _ in range(2))
    reconstruction, posterior = vae(images, a)
    assert torch.equal(reconstruction, vae.reconstruct(vae.posterior(images).sample(b)))
    assert torch.equal(posterior.mean, vae.posterior(images).mean)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(vae, images):
    together = vae.decode(vae.encode(images))
    alone = torch.cat([vae.decode(vae.encode(image[None])) for image in images])
    assert torch.allclose(together, alone, atol=1e-5)


# The scaling factor


@torch.no_grad()
@pytest.mark.parametrize("logvar", [-10.0, 0.0], ids=["sure", "unsure"])
def test_scaled_latents_have_unit_variance(vae, logvar, generator, tmp_path):
    vae.quant_conv.bias[4:] += logvar
    images = torch.rand(150, 3, 16, 16, generator=generator) * 2 - 1
    factor = measure_scaling_factor(vae, images, batch_size=64)
    assert factor == pytest.approx(measure_scaling_factor(vae, images, batch_size=150), rel=1e-5)
    vae.config = replace(vae.config, scaling_factor=factor)
    assert vae.encode(images, generator).std().item() == pytest.approx(1, abs=0.02)

    vae.save_pretrained(tmp_path)  # it travels with the model
    assert json.loads((tmp_path / "config.json").read_text())["scaling_factor"] == factor
    again = AutoencoderKL.from_pretrained(tmp_path)
    assert again.config.scaling_factor == factor
    assert torch.equal(again.encode(images[:2]), vae.encode(images[:2]))


# Learning


def scenes(n, generator):
    """A sky that changes colour towards the ground, and a sun: (n,3,16,16) in [-1,1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 16), indexing="ij")
    top, bottom, sun = torch.rand(3, n, 3, 1, 1, generator=generator) * 2 - 1
    left, height = torch.rand(2, n, 1, 1, 1, generator=generator)
    inside = ((x - left) ** 2 + (y - height) ** 2 < 0.06).float()
    return (top + (bottom - top) * y) * (1 - inside) + sun * inside


@pytest.mark.slow
def test_a_tiny_autoencoder_learns(generator):
    data, unseen = scenes(512, generator), scenes(64, generator)
    vae = AutoencoderKL(replace(SMALL, channels=(32,), patch_size=4, scaling_factor=1.0))
    settings = TrainingSettings(
        steps=150, batch_size=16, learning_rate=1e-2, warmup_steps=10, ema_decay=0.95
    )
    *_, last = train(vae, autoencoder_loss(distance=F.mse_loss), TensorDataset(data), settings)
    with torch.no_grad():
        error = F.mse_loss(last.ema.decode(last.ema.encode(unseen)), unseen)
    assert error < 0.4 * F.mse_loss(data.mean(0).expand_as(unseen), unseen)
