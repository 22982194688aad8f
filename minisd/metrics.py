"""Chapters 4, 7, 9, 11 and 12: how good are the pictures? Distances, cosines, overlaps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.clip import CLIP
from minisd.device import in_batches
from minisd.intervals import bootstrap_interval
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet

# Drawn pictures and real ones, as two distributions of features


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return the Frechet distance of two Gaussians fitted to features (n,d) and (m,d).

    |mu_a - mu_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), Heusel et al. 2017, eq. 6. It is never
    below 0, and 0 for equal clouds. It falls with n, so compare only at equal n. Raises ValueError
    for fewer than two rows or widths that differ.
    """
    if features_a.shape[1] != features_b.shape[1] or min(len(features_a), len(features_b)) < 2:
        raise ValueError(
            "need two sets of at least 2 features of one width, got "
            f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        )
    a, b = features_a.double(), features_b.double()
    root_a, root_b = (
        torch.linalg.qr((x - x.mean(dim=0)) / (len(x) - 1) ** 0.5, mode="r").R for x in (a, b)
    )  # R^T R is the covariance
    # Tr((C_a C_b)^(1/2)) is the sum of the square roots of the eigenvalues of C_a C_b, and these
    # are the squares of the singular values of R_a R_b^T.
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    mean_term = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    distance = mean_term + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return max(0.0, float(distance))  # rounding may leave a little less than 0


def frechet_interval(
    features: Tensor,
    real: Tensor,
    generator: torch.Generator | None = None,
    clusters: Tensor | None = None,
) -> tuple[float, float]:
    """Return the 95 % interval of `frechet_distance(features, real)` over samples like these.

    A resample holds some samples twice, which alone raises the distance, and the more so the fewer
    they are: hence `centred`. `clusters` (n,) is explained at `bootstrap_interval`.
    """
    low, high = bootstrap_interval(
        lambda rows: frechet_distance(rows, real),
        features,
        generator=generator,
        clusters=clusters,
        centred=True,
    )
    return max(0.0, low), high


def nearest(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance (n,) of each query (n,...) to the nearest key (m,...), and its index."""
    exact = "donot_use_mm_for_euclid_dist"  # the fast way is off by too much where nothing is far
    distances = torch.cdist(queries.flatten(1), keys.flatten(1), compute_mode=exact)
    found = distances.min(dim=1)
    return found.values, found.indices


# A picture and its reconstruction


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


# Pictures and words, as CLIP sees them


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


# Pictures and their maps


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
