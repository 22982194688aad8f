import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from torch.utils.data import TensorDataset

from minisd import AutoencoderKL, VAEConfig
from minisd.classifier import Classifier, ClassifierConfig
from minisd.losses import (
    AdversarialAutoencoder,
    PatchDiscriminator,
    adaptive_weight,
    adversarial_loss,
    autoencoder_loss,
    discriminator_loss,
    generator_loss,
    perceptual_distance,
)
from minisd.training import TrainingSettings, train

SMALL = VAEConfig(16, 3, 4, (8,), 1, norm_num_groups=4, patch_size=4)


@pytest.fixture
def vae(generator):
    return randomise(AutoencoderKL(SMALL), generator)


@pytest.fixture
def judge(generator):
    judge = randomise(Classifier(ClassifierConfig(3, (8, 16), 8, (("sky", 3),))), generator)
    return judge.eval().requires_grad_(False)


@pytest.fixture
def images(generator):
    return torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


# Perceptual distance


def test_perceptual_distance_is_the_formula(generator):
    a, b = (torch.randn(2, 5, 3, 4, generator=generator) for _ in range(2))
    expected = 0.0
    for image in range(2):
        for y in range(3):
            for x in range(4):
                u, v = a[image, :, y, x], b[image, :, y, x]
                expected += float(((u / u.norm() - v / v.norm()) ** 2).sum()) / (2 * 3 * 4)
    assert perceptual_distance([a], [b]).item() == pytest.approx(expected, rel=1e-5)
    assert perceptual_distance([a, a], [b, b]).item() == pytest.approx(2 * expected, rel=1e-5)


def test_perceptual_distance_sees_directions_only(generator):
    a = torch.randn(2, 5, 3, 4, generator=generator)
    assert perceptual_distance([a], [3 * a]).item() == pytest.approx(0, abs=1e-6)
    assert perceptual_distance([a], [-a]).item() == pytest.approx(4, rel=1e-5)


def test_perceptual_distance_of_silent_features_has_a_gradient():
    a = torch.zeros(1, 5, 2, 2, requires_grad=True)
    perceptual_distance([a], [torch.ones(1, 5, 2, 2)]).backward()
    assert a.grad.isfinite().all()


def test_different_numbers_of_layers_raise():
    a = torch.ones(1, 2, 2, 2)
    with pytest.raises(ValueError):
        perceptual_distance([a, a], [a])


# The loss of an autoencoder


@pytest.mark.parametrize("distance", [F.l1_loss, F.mse_loss])
def test_the_loss_is_the_sum_of_its_terms(vae, judge, images, distance):
    reconstruction, posterior = vae(images, seeded())
    expected = (
        distance(reconstruction, images)
        + 0.3 * posterior.kl().mean() / (3 * 16 * 16)
        + 0.2 * perceptual_distance(judge.activations(reconstruction), judge.activations(images))
    )
    loss = autoencoder_loss(0.3, distance, judge.activations, perceptual_weight=0.2)
    assert loss(vae, [images], seeded()).item() == pytest.approx(expected.item(), rel=1e-5)
    plain = autoencoder_loss(kl_weight=0.0, distance=distance)(vae, [images], seeded())
    assert plain.item() == pytest.approx(distance(reconstruction, images).item(), rel=1e-5)


def test_the_feature_network_is_not_trained(vae, judge, images):
    autoencoder_loss(features=judge.activations)(vae, [images], seeded()).backward()
    assert all(p.grad is None for p in judge.parameters())
    assert all(p.grad is not None for p in vae.parameters())


# The adversary


def test_the_discriminator_judges_patches(images, generator):
    discriminator = randomise(PatchDiscriminator(3, (8, 16, 16)), generator)
    logits = discriminator(images)
    assert logits.shape == (4, 1, 2, 2)
    assert discriminator(images[:, :, :, :8]).shape == (4, 1, 2, 1)


def test_hinge_losses():
    sure, unsure = torch.tensor([2.0, 3.0]), torch.tensor([0.5, -0.5])
    assert discriminator_loss(sure, -sure) == 0  # right by more than the margin
    assert discriminator_loss(unsure, -unsure).item() == pytest.approx((0.5 + 1.5) / 2)
    assert discriminator_loss(-sure, sure).item() == pytest.approx(3.5)
    assert generator_loss(torch.tensor([1.0, -3.0])) == 1


def test_the_adaptive_weight_makes_both_gradients_equal(generator):
    image = torch.randn(2, 3, 4, 4, generator=generator, requires_grad=True)
    alike, fooling = image.square().sum(), 7 * image.sum()
    weight = adaptive_weight(alike, fooling, image)
    assert weight.item() == pytest.approx(2 * image.norm().item() / (7 * math.sqrt(96)), rel=1e-4)
    assert not weight.requires_grad


def test_each_is_trained_by_its_own_loss(vae, images, generator):
    """The gradients are those of two models with two losses, as if they were trained apart."""
    discriminator = randomise(PatchDiscriminator(3, (8, 8)), generator)
    both = AdversarialAutoencoder(vae, discriminator)
    alone = autoencoder_loss()
    adversarial_loss(alone, weight=0.5)(both, [images], seeded()).backward()
    got = {name: p.grad.clone() for name, p in both.named_parameters()}

    reconstruction, _ = vae(images, seeded())
    alike, fooling = alone(vae, [images], seeded()), generator_loss(discriminator(reconstruction))
    pull = adaptive_weight(F.l1_loss(reconstruction, images), fooling, reconstruction)
    wanted = torch.autograd.grad(alike + 0.5 * pull * fooling, list(vae.parameters()))
    for (name, _), gradient in zip(vae.named_parameters(), wanted, strict=True):
        assert torch.allclose(got[f"autoencoder.{name}"], gradient, rtol=1e-3, atol=1e-5), name

    own = discriminator_loss(discriminator(images), discriminator(reconstruction.detach()))
    wanted = torch.autograd.grad(own, list(discriminator.parameters()))
    for (name, _), gradient in zip(discriminator.named_parameters(), wanted, strict=True):
        assert torch.allclose(got[f"discriminator.{name}"], gradient, rtol=1e-3, atol=1e-6), name


def test_an_adversarial_run_resumes_bit_for_bit(images, tmp_path):
    """The adversary and its optimiser are in the checkpoint, because they are in the model."""
    data = TensorDataset(images.repeat(4, 1, 1, 1))
    settings = TrainingSettings(steps=6, batch_size=4, log_every=1, save_every=3, warmup_steps=1)

    def run(checkpoint, stop=None):
        torch.manual_seed(0)
        model = AdversarialAutoencoder(AutoencoderKL(SMALL), PatchDiscriminator(3, (8, 8)))
        loss = adversarial_loss(autoencoder_loss())
        for step in train(model, loss, data, settings, checkpoint):
            if step.step == stop:
                break
        return model.state_dict()

    whole = run(None)
    run(tmp_path / "half", stop=4)
    resumed = run(tmp_path / "half")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_adversary_learns_to_tell(images, generator):
    """With an autoencoder that stands still, its logits for real and made images part."""
    vae = AutoencoderKL(replace(SMALL, latent_channels=1)).requires_grad_(False)
    discriminator = PatchDiscriminator(3, (8, 8))
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    for _ in range(60):
        fake = vae(images, generator)[0]
        loss = discriminator_loss(discriminator(images), discriminator(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
