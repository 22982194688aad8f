"""Chapter 9: what an autoencoder is trained to do: to look alike, to be compact, to look real.

The functions return a loss for `minisd.training.train`. Every term is a mean over the numbers of
an image, so that a weight means the same at every image size.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from minisd.training import LossFunction
from minisd.vae import AutoencoderKL, DiagonalGaussian

Features = Callable[[Tensor], Sequence[Tensor]]  # images (b,c,h,w) -> feature maps of some layers
Distance = Callable[[Tensor, Tensor], Tensor]


def perceptual_distance(features_a: Sequence[Tensor], features_b: Sequence[Tensor]) -> Tensor:
    """Compare feature maps (b,c,h,w), layer by layer: the mean distance of their directions.

    Zhang et al. 2018, eq. 1, with all weights 1. Zero for equal features; at most 4 per layer.
    """
    layers = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(dim=1).mean()
        for a, b in zip(features_a, features_b, strict=True)
    ]
    return torch.stack(layers).sum()


def autoencoder_loss(
    kl_weight: float = 1e-6,
    features: Features | None = None,
    perceptual_weight: float = 0.1,
    distance: Distance = F.l1_loss,
) -> LossFunction:
    """Return distance + KL divergence + perceptual distance, for images (b,c,h,w) in [-1,1].

    The network behind `features` is not trained: freeze it. Rombach et al. 2022, eq. 25, without
    the discriminator.
    """

    def loss(model: nn.Module, batch: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        images = batch[0]
        reconstruction, posterior = model(images, generator)
        return terms(images, reconstruction, posterior)

    def terms(images: Tensor, reconstruction: Tensor, posterior: DiagonalGaussian) -> Tensor:
        total = distance(reconstruction, images)
        total = total + kl_weight * posterior.kl().mean() / images[0].numel()
        if features is not None:
            perceptual = perceptual_distance(features(reconstruction), features(images))
            total = total + perceptual_weight * perceptual
        return total

    return loss
