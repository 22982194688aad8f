"""Chapters 4, 9, 11 and 12: how good are the pictures? Judges, distances, intervals."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.clip import CLIP
from minisd.configs import check_fields
from minisd.pretrained import Pretrained
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet


@dataclass(frozen=True)
class JudgeConfig:
    """The sizes of a judge; `classes` names each question and the number of its answers.

    What the last maps show is summed up on a grid of `layout` by `layout` cells: one where only
    what is there matters, more where it also matters at which place.
    """

    in_channels: int = 1
    channels: tuple[int, ...] = (32, 64, 128)
    num_features: int = 128
    classes: tuple[tuple[str, int], ...] = (("digit", 10),)
    layout: int = 1

    def __post_init__(self):
        check_fields(self)


class Judge(Pretrained, nn.Module):
    """A small classifier, trained on real images only, that scores generated ones.

    Images (b,c,h,w) in [-1,1] -> {question: logits (b, answers)}.
    """

    config_class = JudgeConfig

    def __init__(self, config: JudgeConfig):
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


def judge_loss(judge: nn.Module, batch: list[Tensor], generator: torch.Generator) -> Tensor:
    """Return the cross-entropy of (images (b,c,h,w), labels) after a small random warp.

    Labels are (b,) for one question, (b,questions) for several, whose losses are summed.
    """
    images, labels = batch
    answers = judge(random_warp(images, generator)).values()
    columns = labels.view(len(labels), -1).unbind(1)
    return sum(
        F.cross_entropy(logits, column, label_smoothing=0.05)
        for logits, column in zip(answers, columns, strict=True)
    )


def segmenter_loss(unet: nn.Module, batch: list[Tensor], generator: torch.Generator) -> Tensor:
    """Return the cross-entropy of every pixel; a batch begins with images and ends with maps.

    A U-Net that says for each pixel what it belongs to: Ronneberger et al. 2015, with t left at 0.
    """
    return F.cross_entropy(unet(batch[0], 0), batch[-1])


def segment(unet: UNet, images: Tensor) -> Tensor:
    """Return the maps (n,h,w) int64 that a segmenter sees in images (n,3,h,w) in [-1,1]."""
    return in_batches(lambda batch: unet(batch, 0).argmax(dim=1), images, batch_size=100)


def overlaps(maps_a: Tensor, maps_b: Tensor, num_labels: int) -> Tensor:
    """Count the pixels of each of k labels in both and in either of two maps (n,h,w): (n,k,2)."""
    a, b = (F.one_hot(maps, num_labels).bool() for maps in (maps_a, maps_b))  # (n,h,w,k)
    return torch.stack([(a & b).sum(dim=(1, 2)), (a | b).sum(dim=(1, 2))], dim=-1)


def mean_iou(counts: Tensor) -> float:
    """Return the mean over labels of intersection over union, from `overlaps` (n,k,2).

    Pixels of all n pictures count together, as in Everingham et al. 2010; a label that is nowhere
    does not count.
    """
    both, either = counts.sum(dim=0).double().unbind(dim=-1)
    return float((both / either).nanmean())


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


@torch.no_grad()
def in_batches(
    function: Callable[[Tensor], Tensor], images: Tensor, batch_size: int = 500
) -> Tensor:
    """Apply `function` to (n,...) batch by batch, without gradients, and join the results."""
    return torch.cat([function(batch) for batch in images.split(batch_size)])


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return the Frechet distance of two Gaussians fitted to features (n,d) and (m,d).

    |mu_a - mu_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Heusel et al. 2017, eq. 6. Zero for equal
    clouds; falls with n, so compare only at equal n. Raises ValueError for fewer than two rows or
    widths that differ.
    """
    if features_a.shape[1] != features_b.shape[1] or min(len(features_a), len(features_b)) < 2:
        raise ValueError(
            "need two sets of at least 2 features of one width, got "
            f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        )
    a, b = features_a.double(), features_b.double()
    cov_a, cov_b = (torch.atleast_2d(x.T.cov()) for x in (a, b))
    # Tr((C_a C_b)^(1/2)) is the sum of the square roots of the eigenvalues of C_a C_b; written
    # as S C_b S with S = C_a^(1/2), the matrix is symmetric and its eigenvalues are real.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    mean_term = (a.mean(0) - b.mean(0)).square().sum()
    return float(mean_term + cov_a.trace() + cov_b.trace() - 2 * cross)


def psnr(images_a: Tensor, images_b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio (b,) in decibels of images (b,c,h,w) in [-1,1].

    10 log10(range^2 / MSE) of each image, with range 2; infinite for equal images. Raises
    ValueError if the shapes differ.
    """
    check_pairs(images_a, images_b)
    mse = (images_a - images_b).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / mse)


def ssim(images_a: Tensor, images_b: Tensor) -> Tensor:
    """Return the structural similarity (b,) of images (b,c,h,w) in [-1,1]: 1 for equal images.

    Wang et al. 2004, eq. 13, in each channel, under Gaussian windows (11x11, sigma 1.5) that lie
    wholly inside. Raises ValueError if the shapes differ or the images are smaller than a window.
    """
    check_pairs(images_a, images_b)
    if min(images_a.shape[2:]) < 11:
        raise ValueError(f"images must be at least 11 x 11, got {tuple(images_a.shape[2:])}")
    a, b = (  # intensities in [0,1], as in the paper, whose range is then 1: (b c,1,h,w)
        (images.flatten(0, 1)[:, None] + 1) / 2 for images in (images_a, images_b)
    )
    gauss = torch.exp(-0.5 * (torch.arange(-5, 6, device=a.device, dtype=a.dtype) / 1.5) ** 2)
    gauss = gauss / gauss.sum()

    def window_mean(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, gauss.view(1, 1, 11, 1)), gauss.view(1, 1, 1, 11))

    mean_a, mean_b = window_mean(a), window_mean(b)
    var_a = window_mean(a * a) - mean_a**2
    var_b = window_mean(b * b) - mean_b**2
    covariance = window_mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2  # eq. 7 and the line after eq. 9
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).unflatten(0, images_a.shape[:2]).mean(dim=(1, 2, 3, 4))


def check_pairs(images_a: Tensor, images_b: Tensor) -> None:
    """Raise ValueError unless both are images (b,c,h,w) of one shape."""
    if images_a.ndim != 4 or images_a.shape != images_b.shape:
        raise ValueError(
            f"need images (b,c,h,w) of one shape, got {tuple(images_a.shape)} and "
            f"{tuple(images_b.shape)}"
        )


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a proportion (Wilson 1927); raises ValueError unless 0<=k<=n."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    p = successes / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_interval(
    statistic: Callable[[Tensor], float],
    values: Tensor,
    resamples: int = 200,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """Return the 95 % interval of `statistic`, resampling the rows of `values` (n,...)."""
    n = len(values)
    draws = [
        statistic(values[torch.randint(n, (n,), generator=generator)]) for _ in range(resamples)
    ]
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(
        torch.tensor([0.025, 0.975], dtype=torch.float64)
    )
    return float(low), float(high)


def frechet_interval(
    features: Tensor, real: Tensor, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """Return the 95 % interval of `frechet_distance(features, real)` over samples like these.

    In a bootstrap some samples count twice, which alone raises the distance, and the more so the
    fewer they are. Only the spread is of interest, so the draws are moved to lie around the value.
    """
    value, draws = frechet_distance(features, real), []

    def keep(rows: Tensor) -> float:
        draws.append(frechet_distance(rows, real))
        return draws[-1]

    low, high = bootstrap_interval(keep, features, generator=generator)
    bias = sum(draws) / len(draws) - value
    return low - bias, high - bias


@dataclass(frozen=True)
class DigitScores:
    """The scores of unconditional digits, each with what real digits reach."""

    n: int
    fid: float
    fid_interval: tuple[float, float]
    fid_real: float  # real training digits against the same real test digits, equal n
    confidence: float  # mean probability of the judge's first choice
    confidence_real: float
    class_shares: tuple[float, ...]  # how often each digit was drawn
    class_balance: float  # entropy of the shares over that of a uniform draw: 1 is perfect


def score_digits(
    judge: Judge,
    samples: Tensor,
    real_train: Tensor,
    real_test: Tensor,
    generator: torch.Generator | None = None,
) -> DigitScores:
    """Compare samples (n,1,28,28) with as many real digits, by the judge's features and answers.

    The interval is a bootstrap over samples. Raises ValueError if there are fewer real digits.
    """
    n = len(samples)
    if min(len(real_train), len(real_test)) < n:
        raise ValueError(
            f"{n} samples need as many real digits, got {len(real_train)} and {len(real_test)}"
        )
    chosen = torch.randperm(len(real_train), generator=generator)[:n]
    features, train, test = (
        in_batches(judge.features, images)
        for images in (samples, real_train[chosen], real_test[:n])
    )
    head = judge.heads["digit"]
    with torch.no_grad():
        probabilities, real_probabilities = head(features).softmax(-1), head(test).softmax(-1)
    shares = probabilities.argmax(-1).bincount(minlength=probabilities.shape[1]) / n
    return DigitScores(
        n=n,
        fid=frechet_distance(features, test),
        fid_interval=bootstrap_interval(
            lambda rows: frechet_distance(rows, test), features, generator=generator
        ),
        fid_real=frechet_distance(train, test),
        confidence=float(probabilities.amax(-1).mean()),
        confidence_real=float(real_probabilities.amax(-1).mean()),
        class_shares=tuple(shares.tolist()),
        class_balance=float(torch.special.entr(shares).sum() / math.log(len(shares))),
    )


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % interval."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval around it."""
        return wilson_interval(self.correct, self.n)


def judge_accuracy(judge: Judge, images: Tensor, labels: Iterable[int]) -> Accuracy:
    """Count how many images (n,c,h,w) a judge with one question answers with their label."""
    (accuracy,) = judge_accuracies(judge, images, torch.as_tensor(labels)[:, None]).values()
    return accuracy


def judge_answers(judge: Judge, images: Tensor) -> Tensor:
    """Return the judge's answers to all its questions, (n,c,h,w) -> (n,questions) int64."""
    return in_batches(
        lambda batch: torch.stack([logits.argmax(-1) for logits in judge(batch).values()], dim=1),
        images,
    )


def judge_accuracies(judge: Judge, images: Tensor, labels: Tensor) -> dict[str, Accuracy]:
    """Count, question by question, how many images (n,c,h,w) a judge answers right.

    Labels are (n,questions), in the order of the judge's questions.
    """
    right = (judge_answers(judge, images) == labels).sum(0).tolist()
    return {
        question: Accuracy(correct, len(images))
        for question, correct in zip(judge.heads, right, strict=True)
    }


@torch.no_grad()
def class_embeddings(clip: CLIP, tokenizer: Tokenizer, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Return one embedding of length one per class: the mean of its prompts', (classes,embed_dim).

    Radford et al. 2021, section 3.1.4.
    """
    means = [clip.encode_text(tokenizer(list(texts))).mean(dim=0) for texts in prompts]
    return F.normalize(torch.stack(means), dim=-1)


def zero_shot(images: Tensor, classes: Tensor) -> Tensor:
    """Return the class (n,) of the highest cosine, of embeddings (n,d) and (classes,d)."""
    return (images @ classes.T).argmax(dim=1)


def retrieve(queries: Tensor, keys: Tensor, group: int) -> Tensor:
    """Return the index (m,) of the key that each query finds among the keys of its group.

    Embeddings (n,d) are cut into whole groups, m = n - n mod `group`. Raises ValueError if there is
    not one group.
    """
    if len(queries) < group:
        raise ValueError(f"need at least one group of {group}, got {len(queries)}")
    starts = range(0, len(queries) - group + 1, group)
    return torch.cat([s + zero_shot(queries[s : s + group], keys[s : s + group]) for s in starts])


def clip_scores(
    clip: CLIP, tokenizer: Tokenizer, images: Tensor, captions: Sequence[str]
) -> Tensor:
    """Return the cosine (n,) of each image (n,c,h,w) in [-1,1] and its caption.

    Hessel et al. 2021, eq. 1, without the factor of 2.5 and the cut at 0. Raises ValueError unless
    there is one caption for each image.
    """
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images have {len(captions)} captions")
    texts = in_batches(clip.encode_text, tokenizer(list(captions)))
    return (in_batches(clip.encode_image, images) * texts).sum(dim=1)


def nearest(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance (n,) of each query (n,...) to the nearest key (m,...), and its index."""
    exact = "donot_use_mm_for_euclid_dist"  # the fast way is off by too much where nothing is far
    distances = torch.cdist(queries.flatten(1), keys.flatten(1), compute_mode=exact)
    return tuple(distances.min(dim=1))
