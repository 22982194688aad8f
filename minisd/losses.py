"""Chapters 4, 7 and 9: what is minimised, one function for each kind of model.

Each loss fits `minisd.training.train`. Every term is a mean over the numbers of an image, so that
a weight means the same at every size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from minisd.classifier import random_warp
from minisd.schedulers import Scheduler
from minisd.vae import DiagonalGaussian

LossFunction = Callable[[Any, Any, torch.Generator], Tensor]  # of a model, a batch, a generator
Prepare = Callable[[Any, torch.Generator], tuple[Tensor, Tensor | None]]
Features = Callable[[Tensor], Sequence[Tensor]]  # images (b,c,h,w) -> feature maps of some layers
Distance = Callable[[Tensor, Tensor], Tensor]


def only_images(batch: Any, generator: torch.Generator) -> tuple[Tensor, None]:
    """Return the first entry of a batch, and no context: nothing tells the model what to draw."""
    return batch[0], None


def diffusion_loss(
    scheduler: Scheduler, probabilities: Tensor | None = None, prepare: Prepare = only_images
) -> LossFunction:
    """Return the loss of DDPM's algorithm 1; `prepare` makes x_0 and the context of a batch.

    Timestep t is drawn with `probabilities` (T,), by default all alike. The draw is stratified: of
    b timesteps, one falls into each b-th part of the probability.
    """
    if probabilities is None:
        probabilities = torch.full_like(scheduler.betas, 1 / scheduler.num_train_timesteps)
    cumulative = probabilities.double().cumsum(0).float()

    def loss(model: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        x_start, context = prepare(batch, generator)
        b, device = len(x_start), x_start.device
        u = torch.rand(b, generator=generator, device=device)
        u = (torch.arange(b, device=device) + u) / b
        t = torch.searchsorted(cumulative.to(device), u).clamp(max=len(cumulative) - 1)
        noise = torch.randn(x_start.shape, generator=generator, device=device)
        prediction = model(scheduler.add_noise(x_start, noise, t), t, context)
        return F.mse_loss(prediction, scheduler.target(x_start, noise, t))  # DDPM eq. 14

    return loss


def clip_loss(model: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
    """Return the contrastive loss of a batch of images (b,c,h,w) and the ids of their texts (b,n).

    A third entry holds the ids (k,n) of texts that are true of none of them, and compete with the
    true ones: hard negatives, as in Yuksekgonul et al. 2023, section 4. The padding that all texts
    share is cut off: it comes last and no token looks ahead, so the loss stays the same. Nothing is
    drawn at random. Raises ValueError where several processes share a batch: each would compare its
    own pairs only.
    """
    dist = torch.distributed
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError("CLIP compares all pairs of a batch with each other: use one process")
    images, *texts = batch
    ids = torch.cat(texts)
    longest = int((ids != ids[:, -1:]).sum(dim=1).max()) + 1
    return contrastive_loss(model(images, ids[:, :longest]))


def contrastive_loss(logits: Tensor) -> Tensor:
    """Return the symmetric cross-entropy of logits (b,m), whose diagonal holds the true pairs.

    Each image must find its text among all m, and each of the first b texts its image. Radford et
    al. 2021, fig. 3. Raises ValueError for fewer texts than images.
    """
    if logits.ndim != 2 or logits.shape[0] > logits.shape[1]:
        raise ValueError(f"logits must be (b, m), m >= b texts, got {tuple(logits.shape)}")
    pairs = torch.arange(len(logits), device=logits.device)
    true = logits[:, : len(logits)]
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(true.T, pairs)) / 2


def classifier_loss(
    classifier: nn.Module, batch: list[Tensor], generator: torch.Generator
) -> Tensor:
    """Return the cross-entropy of (images (b,c,h,w), labels) after a small random warp.

    Labels are (b,) for one question, (b,questions) for several, whose losses are summed.
    """
    images, labels = batch
    answers = classifier(random_warp(images, generator)).values()
    columns = labels.view(len(labels), -1).unbind(1)
    terms = [
        F.cross_entropy(logits, column, label_smoothing=0.05)
        for logits, column in zip(answers, columns, strict=True)
    ]
    return torch.stack(terms).sum()


def segmenter_loss(unet: nn.Module, batch: list[Tensor], generator: torch.Generator) -> Tensor:
    """Return the mean cross-entropy of the pixels of a batch (images, ..., maps (b,h,w)).

    The U-Net classifies every pixel, as in Ronneberger et al. 2015; its t is always 0.
    """
    return F.cross_entropy(unet(batch[0], 0), batch[-1])


def perceptual_distance(features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> Tensor:
    """Return the distance between feature maps (b,c,h,w), each position's features normalised.

    Zhang et al. 2018, eq. 1, with all weights 1: from 0 for equal directions to 4 for opposite
    ones, per layer.
    """
    layers = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1).mean()
        for a, b in zip(features_a, features_b, strict=True)
    ]
    return torch.stack(layers).sum()


def autoencoder_loss(
    kl_weight: float = 1e-6,
    distance: Distance = F.l1_loss,
    features: Features | None = None,
    perceptual_weight: float = 0.1,
) -> LossFunction:
    """Return the loss of an AutoencoderKL for batches whose first entry is images (b,c,h,w).

    distance + kl_weight KL + perceptual_weight perceptual distance: Rombach et al. 2022, eq. 25,
    without its adversary. Freeze the network behind `features` before training.
    """

    def loss(model: nn.Module, batch: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        images = batch[0]
        reconstruction, posterior = model(images, generator)
        total = distance(reconstruction, images)
        total = total + kl_weight * posterior.kl().mean() / images[0].numel()
        if features is not None:
            perceptual = perceptual_distance(features(reconstruction), features(images))
            total = total + perceptual_weight * perceptual
        return total

    return loss


class PatchDiscriminator(nn.Module):
    """Tell real from reconstructed patches: images (b,c,h,w) -> logits (b,1,h/8,w/8), real high.

    Isola et al. 2017, section 3.2.2, with group norm. Raises ValueError unless every number of
    channels is a multiple of 8.
    """

    def __init__(self, in_channels: int = 3, channels: tuple[int, ...] = (32, 64, 128)):
        super().__init__()
        layers, width = [], in_channels
        for channel in channels:
            layers += [
                nn.Conv2d(width, channel, 4, stride=2, padding=1),
                nn.GroupNorm(8, channel),
                nn.LeakyReLU(0.2),
            ]
            width = channel
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss of its logits for real and fake images.

    Lim and Ye 2017.
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """Return the generator's hinge loss, of the discriminator's logits for fake images.

    Lim and Ye 2017.
    """
    return -fake.mean()


def adaptive_weight(rec_loss: Tensor, g_loss: Tensor, image: Tensor) -> Tensor:
    """Return the weight of `g_loss` at which both losses have gradients of one length at `image`.

    Esser et al. 2021, eq. 7, with the gradients at the decoder's output, not at its last weights.
    """
    (rec_grad,) = torch.autograd.grad(rec_loss, image, retain_graph=True)
    (g_grad,) = torch.autograd.grad(g_loss, image, retain_graph=True)
    return (rec_grad.norm() / (g_grad.norm() + 1e-6)).clamp(max=1e4).detach()


class AdversarialAutoencoder(nn.Module):
    """An autoencoder and its discriminator as one model, with one optimiser and one checkpoint.

    images (b,c,h,w) -> reconstruction, posterior, and the discriminator's logits: of the
    reconstruction, to train the autoencoder; of real images and of the reconstruction, to train the
    discriminator. Neither loss has a gradient for the other network.
    """

    def __init__(self, autoencoder: nn.Module, discriminator: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder
        self.discriminator = discriminator

    def forward(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, DiagonalGaussian, Tensor, Tensor, Tensor]:
        reconstruction, posterior = self.autoencoder(images, generator)
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        g_logits = functional_call(self.discriminator, frozen, reconstruction)
        real, fake = self.discriminator(images), self.discriminator(reconstruction.detach())
        return reconstruction, posterior, g_logits, real, fake


def adversarial_loss(loss_function: LossFunction, weight: float = 0.5) -> LossFunction:
    """Return the loss of an AdversarialAutoencoder whose autoencoder has `loss_function`.

    Both networks learn in every step; in Esser et al. 2021 they take turns.
    """

    def loss(model: nn.Module, batch: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        reconstruction, posterior, g_logits, real, fake = model(batch[0], generator)
        rec_loss = loss_function(lambda *_: (reconstruction, posterior), batch, generator)
        g_loss = generator_loss(g_logits)
        g_weight = weight * adaptive_weight(rec_loss, g_loss, reconstruction)
        return rec_loss + g_weight * g_loss + discriminator_loss(real, fake)

    return loss
