import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from minisd import (
    CLIP,
    AutoencoderKL,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNet,
    UNetConfig,
    VAEConfig,
)
from minisd.classifier import Classifier, ClassifierConfig, random_warp
from minisd.losses import (
    AdversarialAutoencoder,
    PatchDiscriminator,
    adaptive_weight,
    adversarial_loss,
    autoencoder_loss,
    classifier_loss,
    clip_loss,
    contrastive_loss,
    diffusion_loss,
    discriminator_loss,
    generator_loss,
    perceptual_distance,
    segmenter_loss,
)
from minisd.schedulers import DDPMScheduler
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


@pytest.fixture
def clip(generator):
    text = CLIPTextConfig(50, 8, 16, 2, 4, eos_token_id=49)
    return randomise(CLIP(CLIPConfig(text, CLIPVisionConfig(12, 4, 3, 16, 2, 4), 8)), generator)


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


# Diffusion


def test_the_diffusion_loss_of_a_perfect_and_of_an_ignorant_model(generator):
    scheduler = DDPMScheduler()
    x_start = torch.zeros(4000, 1, 2, 2)

    class Perfect(nn.Module):
        def forward(self, x, t, context):
            return x / (1 - scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)).sqrt()

    loss = diffusion_loss(scheduler)
    assert loss(Perfect(), [x_start], generator).item() < 1e-6
    ignorant = loss(lambda x, t, context: torch.zeros_like(x), [x_start], generator).item()
    assert ignorant == pytest.approx(1, abs=5 * math.sqrt(2 / 16_000))


def timesteps_drawn(b, probabilities=None, seed=0):
    """Return the timesteps (b,) that the loss draws for a batch, with ten to choose from."""
    seen = []

    def model(x, t, context):
        seen.append(t)
        return x

    loss = diffusion_loss(DDPMScheduler(num_train_timesteps=10), probabilities)
    loss(model, [torch.zeros(b, 1, 1, 1)], torch.Generator().manual_seed(seed))
    return seen[0]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_diffusion_loss_asks_for_what_the_scheduler_predicts(generator, kind):
    """A network that answers the right kind of question has no loss."""
    scheduler = DDPMScheduler(prediction_type=kind)
    x_start = torch.randn(8, 1, 2, 2, generator=generator)

    def perfect(x_t, t, context):
        alpha_bar = scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        noise = (x_t - alpha_bar.sqrt() * x_start) / (1 - alpha_bar).sqrt()
        velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_start
        return {"epsilon": noise, "sample": x_start, "v_prediction": velocity}[kind]

    assert diffusion_loss(scheduler)(perfect, [x_start], seeded()) < 1e-6


@pytest.mark.parametrize("probabilities", [None, torch.arange(10) / 45])
def test_the_diffusion_loss_draws_timesteps_by_their_probabilities(probabilities):
    expected = torch.full((10,), 0.1) if probabilities is None else probabilities
    counts = timesteps_drawn(1000, probabilities).bincount(minlength=10)
    assert (counts - 1000 * expected).abs().max() <= 2  # stratified: each share is met exactly


def test_small_batches_too_draw_every_timestep_equally_often():
    drawn = torch.cat([timesteps_drawn(3, seed=seed) for seed in range(400)])
    counts = drawn.bincount(minlength=10)
    assert len(counts) == 10 and (counts - 120).abs().max() < 5 * math.sqrt(120)


# Contrast


def test_the_contrastive_loss_is_two_cross_entropies_by_hand(generator):
    logits = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    by_hand = 0.0
    for i in range(6):
        by_hand -= math.log(logits[i, i].exp() / logits[i].exp().sum()) / 12
        by_hand -= math.log(logits[i, i].exp() / logits[:, i].exp().sum()) / 12
    assert contrastive_loss(logits).item() == pytest.approx(by_hand, abs=1e-12)


@given(b=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_the_contrastive_loss_does_not_care_which_tower_asks(b, seed):
    logits = 5 * torch.randn(b, b, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(contrastive_loss(logits), contrastive_loss(logits.T))
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(contrastive_loss(logits), contrastive_loss(logits[order][:, order]))


def test_the_contrastive_loss_of_perfect_of_chance_and_of_collapse():
    perfect = 100 * torch.eye(16)
    assert contrastive_loss(perfect) < 1e-6
    assert contrastive_loss(perfect.roll(1, 0)) > 50
    for constant in (0.0, 14.3, 100.0):  # all embeddings alike: no better than chance
        loss = contrastive_loss(torch.full((16, 16), constant))
        assert loss.item() == pytest.approx(math.log(16), abs=1e-4)


def test_texts_that_are_true_of_no_image_compete_for_the_images_alone(generator):
    logits = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    of_images = -logits.log_softmax(dim=1).diag().mean()
    of_texts = -logits[:, :4].log_softmax(dim=0).diag().mean()
    assert contrastive_loss(logits).item() == pytest.approx((of_images + of_texts).item() / 2)


@pytest.mark.parametrize("shape", [(4, 3), (4,), (2, 3, 3)])
def test_the_contrastive_loss_needs_a_text_for_each_image(shape):
    with pytest.raises(ValueError, match="m >= b texts"):
        contrastive_loss(torch.zeros(shape))


def test_the_loss_of_clip_cuts_off_the_padding_that_all_texts_share(clip, generator):
    """The text encoder reads as far as the longest text, and the loss is that of all ids."""
    ids = torch.full((3, 8), 49)
    ids[0, :5], ids[1, :2], ids[2, :3] = 7, 8, 9
    images, read = torch.randn(3, 3, 12, 12, generator=generator), []
    clip.text_model.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].shape))
    loss = clip_loss(clip, [images, ids], generator)
    whole = contrastive_loss(clip(images, ids))
    assert read == [(3, 6), (3, 8)]  # five words and an end
    assert loss.item() == pytest.approx(whole.item(), abs=1e-6)
    ids[1, :7] = 3  # no room is left
    clip_loss(clip, [images, ids], generator)
    assert read[-1] == (3, 8)


def test_clip_reads_the_wrong_texts_of_a_batch_as_well(clip, generator):
    images, ids = torch.randn(3, 3, 12, 12, generator=generator), torch.full((5, 8), 49)
    ids[:, :3] = torch.randint(1, 49, (5, 3), generator=generator)
    loss = clip_loss(clip, [images, ids[:3], ids[3:]], generator)
    assert loss.item() == pytest.approx(contrastive_loss(clip(images, ids)).item(), abs=1e-6)
    assert loss > clip_loss(clip, [images, ids[:3]], generator)


def test_clip_does_not_split_its_batch(clip, generator, tmp_path):
    """A process of two would compare its own pairs only; one alone, under a launcher, may learn."""
    batch = [torch.randn(2, 3, 12, 12, generator=generator), torch.full((2, 8), 49)]
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert clip_loss(clip, batch, generator).isfinite()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "get_world_size", lambda: 2)
            with pytest.raises(ValueError, match="use one process"):
                clip_loss(clip, batch, generator)
    finally:
        torch.distributed.destroy_process_group()


# Classifiers


def test_the_loss_of_a_classifier_is_the_cross_entropy_after_a_warp(generator):
    judge = Classifier(ClassifierConfig(channels=(8, 8), num_features=6))
    images, labels = torch.randn(6, 1, 28, 28), torch.tensor([0, 1, 2, 3, 4, 9])
    loss = classifier_loss(judge, [images, labels], torch.Generator().manual_seed(3))
    warped = random_warp(images, torch.Generator().manual_seed(3))
    logits = judge(warped)["digit"]
    target = torch.full((6, 10), 0.05 / 10)  # label smoothing
    target[torch.arange(6), labels] += 0.95
    assert loss.item() == pytest.approx(
        -(target * logits.log_softmax(-1)).sum(-1).mean().item(), rel=1e-5
    )


def test_the_loss_of_a_classifier_sums_over_questions(generator):
    judge = Classifier(ClassifierConfig(3, (8, 8), 6, (("subject", 10), ("sky", 4))))
    images, labels = (
        torch.randn(5, 3, 16, 16),
        torch.tensor([[0, 1], [9, 3], [4, 2], [5, 0], [1, 1]]),
    )
    loss = classifier_loss(judge, [images, labels], torch.Generator().manual_seed(3))
    answers = judge(random_warp(images, torch.Generator().manual_seed(3)))
    parts = [
        F.cross_entropy(answers[name], labels[:, i], label_smoothing=0.05)
        for i, name in enumerate(("subject", "sky"))
    ]
    assert loss.item() == pytest.approx(sum(parts).item(), rel=1e-5)
    with pytest.raises(ValueError):  # a column for each question
        classifier_loss(judge, [images, labels[:, :1]], torch.Generator().manual_seed(3))


def test_the_loss_of_a_segmenter_is_the_cross_entropy_of_its_pixels():
    unet = UNet(UNetConfig(8, 3, 4, (8, 8), (False, False), 1, 2, 4)).eval()
    images, maps = torch.randn(5, 3, 8, 8), torch.randint(4, (5, 8, 8))
    loss = segmenter_loss(unet, [images, torch.zeros(5, 5), maps], torch.Generator())
    right = unet(images, 0).log_softmax(dim=1).gather(1, maps[:, None])
    assert torch.allclose(loss, -right.mean())


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
    rec_loss, g_loss = image.square().sum(), 7 * image.sum()
    weight = adaptive_weight(rec_loss, g_loss, image)
    assert weight.item() == pytest.approx(2 * image.norm().item() / (7 * math.sqrt(96)), rel=1e-4)
    assert not weight.requires_grad


def test_the_adaptive_weight_of_an_adversary_that_says_nothing_is_bounded(generator):
    """Its gradient may vanish: Esser et al.'s code bounds the weight by 10,000."""
    image = torch.randn(2, 3, 4, 4, generator=generator, requires_grad=True)
    weights = [
        adaptive_weight(image.square().sum(), slope * image.sum(), image).item()
        for slope in (0.0, 1e-6, 1e-3)
    ]
    assert weights[:2] == [1e4, 1e4] and weights[2] == pytest.approx(
        2000 * image.norm().item() / math.sqrt(96), rel=1e-3
    )


def test_each_is_trained_by_its_own_loss(vae, images, generator):
    """The gradients are those of two models with two losses, as if they were trained apart."""
    discriminator = randomise(PatchDiscriminator(3, (8, 8)), generator)
    both = AdversarialAutoencoder(vae, discriminator)
    alone = autoencoder_loss()
    adversarial_loss(alone, weight=0.5)(both, [images], seeded()).backward()
    got = {name: p.grad.clone() for name, p in both.named_parameters()}

    reconstruction, _ = vae(images, seeded())
    rec_loss, g_loss = alone(vae, [images], seeded()), generator_loss(discriminator(reconstruction))
    pull = adaptive_weight(F.l1_loss(reconstruction, images), g_loss, reconstruction)
    wanted = torch.autograd.grad(rec_loss + 0.5 * pull * g_loss, list(vae.parameters()))
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
