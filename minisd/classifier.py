"""Chapter 4: a small classifier, trained on real images only, that scores generated ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import check_fields
from minisd.device import in_batches
from minisd.intervals import Accuracy
from minisd.pretrained import Pretrained


@dataclass(frozen=True)
class ClassifierConfig:
    """The sizes of a classifier; `classes` names each question and the number of its answers.

    The last feature maps are max-pooled to `layout` by `layout` cells: 1 is enough to tell what is
    in an image, more also tell where it is. Raises ValueError unless `layout` is positive.
    """

    in_channels: int = 1
    channels: tuple[int, ...] = (32, 64, 128)
    num_features: int = 128
    classes: tuple[tuple[str, int], ...] = (("digit", 10),)
    layout: int = 1

    def __post_init__(self):
        check_fields(self)


class Classifier(Pretrained, nn.Module):
    """A small classifier, trained on real images only, that scores generated ones.

    Images (b,c,h,w) in [-1,1] -> {question: logits (b, answers)}.
    """

    config_class = ClassifierConfig
    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        layers, width = [], config.in_channels
        for channels in config.channels:
            for _ in range(2):
                layers += [
                    nn.Conv2d(width, channels, 3, padding=1),
                    nn.GroupNorm(8, channels),
                    nn.SiLU(),
                ]
                width = channels
            layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        self.pool = nn.AdaptiveMaxPool2d(config.layout)
        self.project = nn.Linear(width * config.layout**2, config.num_features)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.num_features, n) for name, n in config.classes}
        )

    def activations(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps after every level, the largest first: (b,channels,h/2,w/2)..."""
        maps, x, per_level = [], images, len(self.body) // len(self.config.channels)
        for i, layer in enumerate(self.body, start=1):
            x = layer(x)
            if i % per_level == 0:
                maps.append(x)
        return maps

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features (b, num_features), in which FID is measured."""
        return F.silu(self.project(self.pool(self.body(images)).flatten(1)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


def random_warp(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift each image (b,c,h,w) at random: 10 degrees, 10 %, 7 % of its width."""
    b, device = len(images), images.device
    draw = torch.rand((4, b), generator=generator, device=device) * 2 - 1
    angle, scale, shift = draw[0] * math.radians(10), 1 + 0.1 * draw[1], 0.14 * draw[2:]
    theta = torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * angle.sin(), shift[0]], dim=-1),
            torch.stack([scale * angle.sin(), scale * angle.cos(), shift[1]], dim=-1),
        ],
        dim=1,
    )  # (b,2,3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def classify(judge: Classifier, images: Tensor) -> Tensor:
    """Return the answers (n,questions) int64 of a judge to images (n,c,h,w) in [-1,1]."""
    return in_batches(
        lambda batch: torch.stack([logits.argmax(-1) for logits in judge(batch).values()], dim=1),
        images,
    )


def classification_accuracy(
    judge: Classifier, images: Tensor, labels: Tensor | Sequence[int]
) -> Accuracy:
    """Count the images (n,c,h,w) of which a judge with one question finds the label (n,)."""
    (accuracy,) = classification_accuracies(
        judge, images, torch.as_tensor(labels)[:, None]
    ).values()
    return accuracy


def classification_accuracies(
    judge: Classifier, images: Tensor, labels: Tensor
) -> dict[str, Accuracy]:
    """Count, question by question, the images (n,c,h,w) of which a judge finds the label.

    Labels are (n,questions), in the order of the judge's questions.
    """
    right = (classify(judge, images) == labels).sum(0).tolist()
    return {
        question: Accuracy(correct, len(images))
        for question, correct in zip(judge.heads, right, strict=True)
    }
