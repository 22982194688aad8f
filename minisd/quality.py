"""Chapter 12: how sharp, faithful and varied are pictures? Edges, neighbours, two samples."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from minisd.classifier import Classifier, ClassifierConfig
from minisd.device import in_batches
from minisd.intervals import Accuracy
from minisd.metrics import check_pairs
from minisd.optim import Muon

# Edges, and errors where it matters


def edge_energy(images: Tensor, masks: Tensor | None = None) -> Tensor:
    """Return the mean squared difference (b,) of neighbouring pixels in images (b,c,h,w).

    Neighbours are beside or above each other. With masks (b,h,w) bool only those pairs count of
    which both lie inside; where there is none, the energy is 0. Blur lowers it, noise raises it.
    Raises ValueError for masks that do not fit.
    """
    inside = torch.ones_like(images[:, 0], dtype=torch.bool) if masks is None else masks
    check_masks(images, inside)
    across = inside[:, :, 1:] & inside[:, :, :-1]  # (b,h,w-1)
    upwards = inside[:, 1:] & inside[:, :-1]  # (b,h-1,w)
    squares = (images.diff(dim=3).square().mean(dim=1) * across).sum(dim=(1, 2))
    squares += (images.diff(dim=2).square().mean(dim=1) * upwards).sum(dim=(1, 2))
    return squares / (across.sum(dim=(1, 2)) + upwards.sum(dim=(1, 2))).clamp(min=1)


def ratio_of_sums(rows: Tensor) -> float:
    """Return the sum of the first column of rows (n,2) over that of the second."""
    ours, theirs = rows.double().sum(dim=0)
    return float(ours / theirs)


def edges_kept(images: Tensor, real: Tensor, masks: Tensor | None = None) -> float:
    """Return how much of the edge energy of real images (b,c,h,w) the images (b,c,h,w) have.

    1 is as sharp as real, less is blurred, more is noisy. For an interval, give `ratio_of_sums` and
    the rows (b,2) of both energies to `bootstrap_interval`. Raises ValueError if shapes differ.
    """
    check_pairs(images, real)
    return ratio_of_sums(torch.stack([edge_energy(x, masks) for x in (images, real)], dim=1))


def psnr_inside(images_a: Tensor, images_b: Tensor, masks: Tensor) -> Tensor:
    """Return the `psnr` (b,) of images (b,c,h,w) in [-1,1] where masks (b,h,w) bool are true.

    In decibels; infinite where the images are equal, nan for an empty mask. Raises ValueError if
    the shapes do not fit.
    """
    check_pairs(images_a, images_b)
    check_masks(images_a, masks)
    errors = (images_a - images_b).square().mean(dim=1) * masks
    mse = errors.sum(dim=(1, 2)) / masks.sum(dim=(1, 2))
    return 10 * torch.log10(2**2 / mse)


def check_masks(images: Tensor, masks: Tensor) -> None:
    """Raise ValueError unless the masks are (b,h,w) bool, one for each of the images (b,c,h,w)."""
    if masks.dtype != torch.bool or masks.shape != images[:, 0].shape:
        raise ValueError(
            f"images {tuple(images.shape)} need masks {tuple(images[:, 0].shape)} of bool, got "
            f"{tuple(masks.shape)} of {masks.dtype}"
        )


# Drawn pictures and real ones, as two clouds of features


def covered(queries: Tensor, cloud: Tensor, k: int = 3) -> Tensor:
    """Return which queries (n,d) lie in a cloud (m,d): (n,) bool. Kynkäänniemi et al. 2019, eq. 1.

    The cloud is the union of balls around its points; each reaches to the k-th nearest of the
    others. Never more than 500 x m distances are in memory. Raises ValueError unless both have one
    width and 1 <= k < m.
    """
    if queries.ndim != 2 or queries.shape[1:] != cloud.shape[1:] or not 1 <= k < len(cloud):
        raise ValueError(
            f"need features (n,d) and (m,d) with m > k >= 1, got {tuple(queries.shape)}, "
            f"{tuple(cloud.shape)} and k={k}: take more samples, or a smaller k"
        )

    def distances(rows: Tensor) -> Tensor:
        exact = "donot_use_mm_for_euclid_dist"  # so that a point is at distance 0 of itself
        return torch.cdist(rows, cloud, compute_mode=exact)

    radii = in_batches(lambda rows: distances(rows).kthvalue(k + 1).values, cloud)  # 1 is itself
    return in_batches(lambda rows: (distances(rows) <= radii).any(dim=1), queries)


def precision_recall(fake: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Return precision and recall of features (n,d) against real ones (m,d), both in [0,1].

    Precision is the share of the drawn that lie among the real, recall that of the real that lie
    among the drawn: Kynkäänniemi et al. 2019, eq. 2. Both depend on n and m, so compare only at
    equal numbers. Raises ValueError unless both have one width and more than k rows.
    """
    precision, recall = covered(fake, real, k), covered(real, fake, k)
    return float(precision.double().mean()), float(recall.double().mean())


# Can they be told apart?

EPOCHS, BATCH, LEARNING_RATE = 12, 50, 5e-3


def two_sample_answers(
    fake: Tensor,
    real: Tensor,
    clusters: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Train a classifier to tell images (n,c,h,w) in [-1,1] from as many real ones, and ask it.

    It learns from one half and is asked about the other. Return which answers are right (2m,) bool,
    and the index (2m,) of the image or the real one that each is about. Row i of both, and all rows
    of one of the `clusters` (n,), are in the same half, so that no answer is known by heart; None
    makes each row a cluster of its own.

    It sees windows of half the height and width, which differ in every step: of whole images it
    learns what is in them by heart. They are `with_details`, and never turned or scaled, for that
    would blur the real ones too. Raises ValueError if the shapes differ, images are smaller than
    8 x 8, or there are not two clusters.
    """
    check_pairs(fake, real)
    if min(fake.shape[2:]) < 8:
        raise ValueError(f"images must be at least 8 x 8, got {tuple(fake.shape[2:])}")
    learnt = half_of(torch.arange(len(fake)) if clusters is None else clusters, generator)
    if learnt.shape != fake.shape[:1]:
        raise ValueError(f"{len(fake)} images need as many clusters, got {len(learnt)}")
    images, labels = with_details(torch.cat([fake[learnt], real[learnt]])), both(int(learnt.sum()))
    config = ClassifierConfig(images.shape[1], (32, 64), 32, (("real", 2),))
    with torch.random.fork_rng():  # initial weights are drawn by torch's global generator
        torch.random.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        classifier = Classifier(config)
    optimizer = Muon(classifier.parameters(), LEARNING_RATE)
    steps = EPOCHS * -(-len(images) // BATCH)
    rate = OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    h, w = fake.shape[2] // 2, fake.shape[3] // 2
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            y, x = (int(torch.randint(side + 1, (), generator=generator)) for side in (h, w))
            answers = classifier(images[rows, :, y : y + h, x : x + w])["real"]
            F.cross_entropy(answers, labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            rate.step()

    def answer(batch: Tensor) -> Tensor:
        quarters = rearrange(
            with_details(batch)[..., : 2 * h, : 2 * w], "b c (i h) (j w) -> (b i j) c h w", i=2, j=2
        )
        return classifier(quarters)["real"].unflatten(0, (-1, 4)).mean(dim=1).argmax(dim=1)

    answers = in_batches(answer, torch.cat([fake[~learnt], real[~learnt]]), batch_size=100)
    rows = (~learnt).nonzero()[:, 0]
    return answers == both(len(rows)), rows.repeat(2)


def two_sample_accuracy(
    fake: Tensor,
    real: Tensor,
    clusters: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Accuracy:
    """Count how often a classifier tells images (n,c,h,w) from real ones that it has not seen.

    The classifier two-sample test of Lopez-Paz and Oquab 2017: half of the answers are right where
    the two cannot be told apart. Arguments and errors are those of `two_sample_answers`.
    """
    right, _ = two_sample_answers(fake, real, clusters, generator)
    return Accuracy(int(right.sum()), len(right))


def with_details(images: Tensor) -> Tensor:
    """Return images (b,c,h,w) and, four times as strong, what a blur takes from them: (b,2c,h,w).

    The blur is the mean of 3 x 3 pixels.
    """
    smooth = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return torch.cat([images, 4 * (images - smooth)], dim=1)


def both(n: int) -> Tensor:
    """Return the labels (2n,) of n images, 0, and n real ones, 1."""
    return torch.arange(2).repeat_interleave(n)


def half_of(clusters: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return which rows (n,) bool belong to a random half of the clusters (n,).

    Raises ValueError unless there are at least two clusters.
    """
    names = clusters.unique()
    if len(names) < 2:
        raise ValueError(f"need at least 2 clusters to halve, got {len(names)}: take more samples")
    chosen = torch.randperm(len(names), generator=generator)[: len(names) // 2]
    return torch.isin(clusters, names[chosen])
