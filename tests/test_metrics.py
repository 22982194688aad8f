import math

import numpy as np
import pytest
import scipy.linalg
import skimage.metrics
import sklearn.metrics
import torch
from torchmetrics import JaccardIndex
from torchmetrics.functional import image as torchmetrics
from torchmetrics.image.fid import FrechetInceptionDistance

from minisd import (
    CLIP,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    Tokenizer,
    TokenizerConfig,
    UNet,
    UNetConfig,
)
from minisd.device import in_batches
from minisd.intervals import bootstrap_interval
from minisd.metrics import (
    class_embeddings,
    clip_scores,
    frechet_distance,
    frechet_interval,
    mean_iou,
    nearest,
    overlaps,
    psnr,
    retrieve,
    segment,
    ssim,
    zero_shot,
)


def cloud(n, d, seed, shift=0.0):
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(d, d))
    return torch.tensor(generator.normal(size=(n, d)) @ mixing + shift)


def frechet_by_sqrtm(a, b):
    """Heusel et al. 2017, eq. 6, as it stands there."""
    a, b = a.numpy(), b.numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)


@pytest.mark.parametrize("d", [2, 5, 30])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_frechet_distance_is_the_formula(d, shift):
    a, b = cloud(200, d, 1), cloud(150, d, 2, shift)
    expected = frechet_by_sqrtm(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_frechet_distance_is_that_of_torchmetrics(shift):
    """Given features in place of pictures, torchmetrics computes the distance alone."""
    features = torch.nn.Identity()
    features.num_features = 20
    theirs = FrechetInceptionDistance(features)
    a, b = cloud(300, 20, 1), cloud(250, 20, 2, shift)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert frechet_distance(a, b) == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_frechet_distance_of_known_gaussians():
    """Of N(m, s^2) and N(n, r^2) in each dimension: (m - n)^2 + (s - r)^2."""
    x = torch.randn(1000, 3, dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov()).T)  # now exactly N(0, 1)
    y = x * torch.tensor([2.0, 1.0, 3.0]) + torch.tensor([1.0, 0.0, -2.0])
    assert frechet_distance(x, y) == pytest.approx(1 + 4 + 1 + 0 + 4, rel=1e-9)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_fewer_rows_than_columns():
    """Singular covariances, as with few samples and wide features."""
    a, b = cloud(10, 30, 1), cloud(12, 30, 2)
    assert frechet_distance(a, b) == pytest.approx(frechet_by_sqrtm(a, b), rel=1e-3)


@pytest.mark.parametrize("rows", [2, 50, 500])
@pytest.mark.parametrize("scale", [1e-3, 1, 30, 1e3])
def test_frechet_distance_of_equal_clouds_is_0_and_never_less(rows, scale, generator):
    """Within rounding of the size of the features, also where there are fewer rows than columns."""
    x = scale * torch.randn(rows, 128, generator=generator)
    for same in (x, x.flip(0)):
        assert 0 <= frechet_distance(x, same) <= 1e-12 * x.double().square().sum().item()


def test_frechet_distance_of_a_single_feature():
    x = torch.tensor([-1.0, 0.0, 1.0])[:, None]  # mean 0, standard deviation 1
    assert frechet_distance(x, 3 * x + 2) == pytest.approx(2**2 + (3 - 1) ** 2)


@pytest.mark.parametrize(
    ("a", "b"), [((1, 3), (5, 3)), ((5, 3), (1, 3)), ((5, 3), (5, 4)), ((0, 3), (5, 3))]
)
def test_frechet_distance_needs_two_comparable_clouds(a, b):
    with pytest.raises(ValueError, match="at least 2 features of one width"):
        frechet_distance(torch.zeros(a), torch.zeros(b))


def test_the_interval_of_fid_lies_around_it():
    generator = torch.Generator().manual_seed(0)
    few, real = torch.randn(2, 60, 24, generator=generator)
    value = frechet_distance(few, real)
    plain = bootstrap_interval(
        lambda rows: frechet_distance(rows, real), few, generator=torch.Generator().manual_seed(1)
    )
    low, high = frechet_interval(few, real, torch.Generator().manual_seed(1))
    assert low < value < high
    assert plain[0] > value  # so few samples that the bias is larger than the spread
    assert high - low == pytest.approx(plain[1] - plain[0])


def test_the_interval_of_fid_has_no_negative_distance(generator):
    cloud = torch.randn(30, 4, generator=generator)
    low, high = frechet_interval(cloud, cloud, generator)
    assert low == 0 < high


def test_the_interval_of_fid_knows_clusters(generator):
    few, real = torch.randn(20, 4, generator=generator), torch.randn(200, 4, generator=generator)
    copies, clusters = few.repeat(10, 1), torch.arange(20).repeat(10)
    alone = frechet_interval(copies, real, torch.Generator().manual_seed(1))
    together = frechet_interval(copies, real, torch.Generator().manual_seed(1), clusters)
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_in_batches_is_one_call():
    images = torch.arange(7.0)[:, None]
    sizes = []

    def function(batch):
        sizes.append(len(batch))
        return batch * 2

    assert torch.equal(in_batches(function, images, 3), images * 2)
    assert sizes == [3, 3, 1]


def test_the_nearest_is_found_and_its_distance_is_exact(generator):
    keys = torch.randn(7, 2, 3, generator=generator)
    queries = keys[[4, 0, 6]] + torch.tensor([0.0, 1e-4, 0.5])[:, None, None]
    distances, indices = nearest(queries, keys)
    assert indices.tolist() == [4, 0, 6]
    assert distances.tolist() == pytest.approx([0, 1e-4 * 6**0.5, 0.5 * 6**0.5], rel=1e-2)


def test_the_nearest_is_that_of_scikit_learn(generator):
    queries, keys = (torch.randn(n, 3, 4, 4, generator=generator) for n in (30, 50))
    distances, indices = nearest(queries, keys)
    rows = [x.flatten(1).double().numpy() for x in (queries, keys)]
    expected_indices, expected = sklearn.metrics.pairwise_distances_argmin_min(*rows)
    assert indices.tolist() == expected_indices.tolist()
    assert distances.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


# A picture and its reconstruction


def pictures(noise, shape, seed=0):
    """Smooth pictures (b,c,h,w) in [-1,1], and the same with noise."""
    generator = torch.Generator().manual_seed(seed)
    b, c, h, w = shape
    coarse = torch.rand(b, c, 4, 4, generator=generator) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic").clamp(-1, 1)
    noisy = images + noise * torch.randn(shape, generator=generator)
    return images, noisy.clamp(-1, 1)


RECONSTRUCTIONS = pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])

SHAPES = pytest.mark.parametrize("shape", [(3, 3, 64, 64), (2, 1, 11, 30)], ids=str)


@RECONSTRUCTIONS
@SHAPES
def test_psnr_is_that_of_others(noise, shape):
    a, b = pictures(noise, shape)
    ours = psnr(a, b)
    assert ours.shape == shape[:1]
    expected = torchmetrics.peak_signal_noise_ratio(
        b, a, data_range=2.0, reduction="none", dim=(1, 2, 3)
    )
    assert torch.allclose(ours, expected, rtol=1e-4)
    for value, x, y in zip(ours, a.numpy(), b.numpy(), strict=True):
        expected = skimage.metrics.peak_signal_noise_ratio(x, y, data_range=2)
        assert value.item() == pytest.approx(expected, rel=1e-4)


@RECONSTRUCTIONS
@SHAPES
def test_ssim_is_that_of_others(noise, shape):
    a, b = pictures(noise, shape)
    ours = ssim(a, b)
    assert ours.shape == shape[:1]
    a, b = (a + 1) / 2, (b + 1) / 2
    everywhere = torchmetrics.structural_similarity_index_measure(
        b, a, data_range=1.0, sigma=1.5, return_full_image=True
    )[1]
    expected = everywhere[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))  # it also looks over the edge
    assert torch.allclose(ours, expected, rtol=1e-4)
    for value, x, y in zip(ours, a.numpy(), b.numpy(), strict=True):
        expected = skimage.metrics.structural_similarity(
            x,
            y,
            data_range=1,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert value.item() == pytest.approx(expected, rel=1e-4)


def test_psnr_of_a_known_error():
    """An error of 0.02 everywhere, a hundredth of the range, is 40 dB."""
    a = torch.zeros(2, 3, 8, 8)
    assert psnr(a, a + 0.02).tolist() == pytest.approx([40, 40], rel=1e-5)
    assert psnr(a, a).tolist() == [math.inf] * 2


def test_ssim_of_equal_and_of_inverted_pictures():
    a, noisy = pictures(0.3, (2, 3, 32, 32))
    assert torch.allclose(ssim(a, a), torch.ones(2))
    assert torch.allclose(ssim(a, noisy), ssim(noisy, a))
    assert (ssim(a, -a) < 0).all() and (ssim(a, noisy) > 0).all()
    flat = torch.full((1, 3, 16, 16), 0.7)  # no variance: only eq. 6's constants are left
    assert ssim(flat, flat).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("a", "b"), [((2, 3, 16, 16), (2, 3, 16, 17)), ((3, 16, 16),) * 2, ((1, 3, 16, 16), (16, 16))]
)
def test_what_is_no_pair_of_images_raises(metric, a, b):
    with pytest.raises(ValueError, match="of one shape"):
        metric(torch.zeros(a), torch.zeros(b))


def test_ssim_needs_room_for_a_window():
    with pytest.raises(ValueError, match=r"at least 11 x 11, got \(10, 20\)"):
        ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


# Pictures and words


def test_zero_shot_takes_the_highest_cosine():
    classes = torch.eye(3)
    images = torch.tensor([[0.9, 0.3, 0.0], [0.1, 0.2, 0.7], [0.0, 0.8, 0.6]])
    assert zero_shot(images, classes).tolist() == [0, 2, 1]


def tiny_clip():
    tokenizer = Tokenizer.train(["a red tent", "a tent"], 300, TokenizerConfig(model_max_length=9))
    text = CLIPTextConfig(tokenizer.vocab_size, 9, 8, 1, 1, tokenizer.eos_token_id)
    return CLIP(CLIPConfig(text, CLIPVisionConfig(16, 8, 3, 8, 1, 1), 4)).eval(), tokenizer


def test_a_class_is_the_mean_of_its_prompts():
    clip, tokenizer = tiny_clip()
    classes = class_embeddings(clip, tokenizer, [["a red tent", "a tent"], ["red"]])
    with torch.no_grad():
        a, b, c = clip.encode_text(tokenizer(["a red tent", "a tent", "red"]))
    assert torch.allclose(classes[0], (a + b) / (a + b).norm(), atol=1e-6)
    assert torch.allclose(classes[1], c, atol=1e-6)
    assert not classes.requires_grad


def test_a_clip_score_is_the_cosine_of_picture_and_caption(generator):
    clip, tokenizer = tiny_clip()
    images = torch.rand(3, 3, 16, 16, generator=generator) * 2 - 1
    captions = ["a red tent", "a tent", "red"]
    scores = clip_scores(clip, tokenizer, images, captions)
    with torch.no_grad():
        logits = clip(images, tokenizer(captions))
    cosines = logits.diagonal() / clip.logit_scale.clamp(max=math.log(100)).exp()
    assert scores.shape == (3,) and not scores.requires_grad
    assert torch.allclose(scores, cosines, atol=1e-5)
    with pytest.raises(ValueError, match="3 images have 2 captions"):
        clip_scores(clip, tokenizer, images, captions[:2])


def test_retrieval_stays_in_its_group():
    keys = torch.eye(4).repeat(2, 1)  # the second group repeats the first
    queries = keys[[0, 1, 3, 2, 4, 5, 6, 7]]
    assert retrieve(queries, keys, 4).tolist() == [0, 1, 3, 2, 4, 5, 6, 7]
    assert len(retrieve(queries, keys, 3)) == 6  # what is no whole group is left out
    with pytest.raises(ValueError, match="one group of 9, got 8"):
        retrieve(queries, keys, 9)


# Maps


def test_overlaps_and_their_mean_by_hand():
    a = torch.tensor([[[0, 0], [1, 2]], [[0, 0], [0, 0]]])
    b = torch.tensor([[[0, 1], [1, 2]], [[0, 0], [0, 2]]])
    counts = overlaps(a, b, 3)
    assert counts.tolist() == [[[1, 2], [1, 2], [1, 1]], [[3, 4], [0, 0], [0, 1]]]
    assert math.isclose(mean_iou(counts), (4 / 6 + 1 / 2 + 1 / 2) / 3)
    assert mean_iou(overlaps(a, a, 3)) == 1
    assert mean_iou(overlaps(a, (a + 1) % 3, 3)) == 0
    assert mean_iou(overlaps(a, a, 5)) == 1  # a label that is nowhere does not count


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_iou_is_that_of_others(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(4, (2, 5, 8, 8), generator=generator)
    b = torch.where(torch.rand(b.shape, generator=generator) < 0.6, a, b)
    ours = mean_iou(overlaps(a, b, 4))
    theirs = JaccardIndex("multiclass", num_classes=4)(a, b)
    assert ours == pytest.approx(theirs.item(), rel=1e-5)
    theirs = sklearn.metrics.jaccard_score(a.flatten(), b.flatten(), average="macro")
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_a_segmenter_names_every_pixel():
    unet = UNet(UNetConfig(8, 3, 4, (8, 8), (False, False), 1, 2, 4)).eval()
    images = torch.randn(5, 3, 8, 8)
    found = segment(unet, images)
    assert torch.equal(found, unet(images, 0).argmax(dim=1)) and found.shape == (5, 8, 8)
