import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import skimage.metrics
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
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
from minisd.classifier import (
    Classifier,
    ClassifierConfig,
    classification_accuracies,
    classification_accuracy,
    random_warp,
)
from minisd.intervals import Accuracy, bootstrap_interval, wilson_interval
from minisd.lab.evaluation import score_digits
from minisd.losses import classifier_loss, segmenter_loss
from minisd.metrics import (
    class_embeddings,
    clip_scores,
    frechet_distance,
    frechet_interval,
    in_batches,
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
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6 * a.T.cov().trace().item())


def test_frechet_distance_of_a_single_feature():
    x = torch.tensor([-1.0, 0.0, 1.0])[:, None]  # mean 0, standard deviation 1
    assert frechet_distance(x, 3 * x + 2) == pytest.approx(2**2 + (3 - 1) ** 2)


@pytest.mark.parametrize(
    ("a", "b"), [((1, 3), (5, 3)), ((5, 3), (1, 3)), ((5, 3), (5, 4)), ((0, 3), (5, 3))]
)
def test_frechet_distance_needs_two_comparable_clouds(a, b):
    with pytest.raises(ValueError, match="at least 2 features of one width"):
        frechet_distance(torch.zeros(a), torch.zeros(b))


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (50, 100), (999, 1000), (20, 20)])
def test_wilson_interval_against_scipy(k, n):
    expected = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    ours = wilson_interval(k, n)
    assert ours == pytest.approx((expected.low, expected.high), rel=1e-4, abs=1e-12)  # z = 1.96


def test_wilson_interval_of_a_textbook():
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@given(n=st.integers(1, 10_000), share=st.floats(0, 1), z=st.floats(0.1, 5))
def test_wilson_interval_holds_the_share_and_stays_in_range(n, share, z):
    k = round(share * n)
    low, high = wilson_interval(k, n, z)
    assert 0 <= low <= k / n + 1e-12 and k / n - 1e-12 <= high <= 1
    assert wilson_interval(n - k, n, z) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(-1, 10), (11, 10), (0, 0), (0, -1)])
def test_impossible_counts_raise(k, n):
    with pytest.raises(ValueError, match=f"got {k} of {n}"):
        wilson_interval(k, n)


def test_bootstrap_covers_the_mean_about_95_times_in_100():
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(200):
        values = torch.randn(60, generator=generator) * 2 + 7
        low, high = bootstrap_interval(
            lambda rows: rows.mean().item(), values, resamples=100, generator=generator
        )
        hits += low <= 7 <= high
    assert 175 <= hits <= 199  # 0.93 expected of 60 values; 5 standard deviations to both sides


@pytest.mark.parametrize(
    "statistic", [torch.mean, torch.std, torch.amax], ids=["mean", "std", "amax"]
)
def test_bootstrap_interval_is_that_of_scipy(statistic, monkeypatch):
    """The percentile interval, of the same resamples: scipy draws the rows for both."""
    n, resamples = 40, 300
    values = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    theirs = scipy.stats.bootstrap(
        (values.numpy(),),
        lambda rows: statistic(torch.as_tensor(rows)).item(),
        n_resamples=resamples,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    rows = iter(torch.from_numpy(np.random.default_rng(5).integers(0, n, (resamples, n))))
    monkeypatch.setattr(torch, "randint", lambda *args, generator: next(rows))
    ours = bootstrap_interval(lambda rows: statistic(rows).item(), values, resamples)
    assert ours == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    assert next(rows, None) is None  # each resample was drawn once


def test_bootstrap_width_is_that_of_the_mean(generator):
    values = torch.randn(400, generator=generator)
    low, high = bootstrap_interval(
        lambda rows: rows.mean().item(), values, resamples=1000, generator=generator
    )
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 20, rel=0.15)


def test_bootstrap_is_a_function_of_its_generator(generator):
    values = torch.randn(50, 3, generator=generator)
    intervals = [
        bootstrap_interval(
            lambda rows: rows.sum().item(), values, 20, torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    ]
    assert intervals[0] == intervals[1] != intervals[2]


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


def test_in_batches_is_one_call():
    images = torch.arange(7.0)[:, None]
    sizes = []

    def function(batch):
        sizes.append(len(batch))
        return batch * 2

    assert torch.equal(in_batches(function, images, 3), images * 2)
    assert sizes == [3, 3, 1]


# Reconstructions


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


# The judge

SMALL = ClassifierConfig(channels=(8, 8), num_features=6)


def test_a_judge_answers_every_question():
    judge = Classifier(ClassifierConfig(3, (8, 16), 12, (("subject", 10), ("sky", 4))))
    images = torch.randn(5, 3, 16, 16)
    answers = judge(images)
    assert {name: tuple(logits.shape) for name, logits in answers.items()} == {
        "subject": (5, 10),
        "sky": (5, 4),
    }
    features = judge.features(images)
    assert features.shape == (5, 12)
    assert torch.equal(judge.heads["sky"](features), answers["sky"])


def test_the_activations_of_a_judge_lead_to_its_features():
    judge = Classifier(ClassifierConfig(3, (8, 16), 12, (("sky", 4),)))
    images = torch.randn(2, 3, 16, 16)
    large, small = judge.activations(images)
    assert (large.shape, small.shape) == ((2, 8, 8, 8), (2, 16, 4, 4))
    features = torch.nn.functional.silu(judge.project(small.amax(dim=(2, 3))))
    assert torch.equal(features, judge.features(images))


def test_the_judge_of_digits_has_the_size_of_its_card():
    judge = Classifier(ClassifierConfig())
    assert judge(torch.randn(2, 1, 28, 28))["digit"].shape == (2, 10)


def test_judge_loss_is_the_cross_entropy_after_a_warp(generator):
    judge = Classifier(SMALL)
    images, labels = torch.randn(6, 1, 28, 28), torch.tensor([0, 1, 2, 3, 4, 9])
    loss = classifier_loss(judge, [images, labels], torch.Generator().manual_seed(3))
    warped = random_warp(images, torch.Generator().manual_seed(3))
    logits = judge(warped)["digit"]
    target = torch.full((6, 10), 0.05 / 10)  # label smoothing
    target[torch.arange(6), labels] += 0.95
    assert loss.item() == pytest.approx(
        -(target * logits.log_softmax(-1)).sum(-1).mean().item(), rel=1e-5
    )


def test_judge_accuracy_counts():
    judge = Classifier(SMALL).eval()
    images = torch.randn(30, 1, 28, 28)
    with torch.no_grad():
        answers = judge(images)["digit"].argmax(-1)
    labels = answers.clone()
    labels[:12] = (labels[:12] + 1) % 10
    accuracy = classification_accuracy(judge, images, labels)
    assert accuracy == Accuracy(18, 30) and accuracy.value == 0.6
    assert accuracy.interval == wilson_interval(18, 30)


def test_judge_accuracies_count_question_by_question():
    judge = Classifier(ClassifierConfig(3, (8, 8), 6, (("subject", 10), ("sky", 4)))).eval()
    images = torch.randn(30, 3, 16, 16)
    with torch.no_grad():
        labels = torch.stack([logits.argmax(-1) for logits in judge(images).values()], dim=1)
    labels[:12, 0] = (labels[:12, 0] + 1) % 10
    labels[3:6, 1] = (labels[3:6, 1] + 1) % 4
    expected = {"subject": Accuracy(18, 30), "sky": Accuracy(27, 30)}
    assert classification_accuracies(judge, images, labels) == expected


def test_judge_loss_sums_over_questions(generator):
    judge = Classifier(ClassifierConfig(3, (8, 8), 6, (("subject", 10), ("sky", 4))))
    images, labels = (
        torch.randn(5, 3, 16, 16),
        torch.tensor([[0, 1], [9, 3], [4, 2], [5, 0], [1, 1]]),
    )
    loss = classifier_loss(judge, [images, labels], torch.Generator().manual_seed(3))
    answers = judge(random_warp(images, torch.Generator().manual_seed(3)))
    parts = [
        torch.nn.functional.cross_entropy(answers[name], labels[:, i], label_smoothing=0.05)
        for i, name in enumerate(("subject", "sky"))
    ]
    assert loss.item() == pytest.approx(sum(parts).item(), rel=1e-5)
    with pytest.raises(ValueError):  # a column for each question
        classifier_loss(judge, [images, labels[:, :1]], torch.Generator().manual_seed(3))


def test_a_judge_with_a_layout_sees_where():
    """One bright dot, left or right: the same to a global maximum, not to a grid of cells."""
    images = torch.zeros(2, 1, 32, 32)
    images[0, 0, 16, 8] = images[1, 0, 16, 24] = 5
    for layout in (1, 2, 4):
        torch.manual_seed(0)
        judge = Classifier(ClassifierConfig(1, (8, 8), 6, (("place", 2),), layout)).eval()
        assert judge.project.in_features == 8 * layout**2
        with torch.no_grad():
            left, right = judge.features(images)
        assert ((left - right).abs().max() < 0.02) == (layout == 1)  # padding is felt a little


@pytest.mark.parametrize("layout", [0, -1, 1.5])
def test_an_impossible_layout_raises(layout):
    with pytest.raises(ValueError, match="layout must be a positive integer"):
        ClassifierConfig(layout=layout)


def test_the_judge_of_digits_is_what_it_was():
    """Its config names no layout, and its features are those of a maximum over all places."""
    judge = Classifier.from_pretrained("digits-judge")
    assert judge.config == ClassifierConfig()
    images = torch.randn(4, 1, 28, 28)
    features = torch.nn.functional.silu(judge.project(judge.body(images).amax(dim=(2, 3))))
    assert torch.equal(judge.features(images), features)


# CLIP as a judge


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


def test_retrieval_stays_in_its_group():
    keys = torch.eye(4).repeat(2, 1)  # the second group repeats the first
    queries = keys[[0, 1, 3, 2, 4, 5, 6, 7]]
    assert retrieve(queries, keys, 4).tolist() == [0, 1, 3, 2, 4, 5, 6, 7]
    assert len(retrieve(queries, keys, 3)) == 6  # what is no whole group is left out
    with pytest.raises(ValueError, match="one group of 9, got 8"):
        retrieve(queries, keys, 9)


# The warp


@given(seed=st.integers(0, 2**31))
def test_a_warp_keeps_shape_and_range(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 2, 28, 28, generator=generator) * 2 - 1
    warped = random_warp(images, generator)
    assert warped.shape == images.shape
    assert warped.min() >= -1 - 1e-6 and warped.max() <= 1 + 1e-6


def test_a_warp_is_a_function_of_its_generator():
    images = torch.rand(3, 1, 28, 28)
    copy = images.clone()
    a, b, c = (random_warp(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(images, copy)
    assert not torch.equal(a[0] - images[0], a[1] - images[1])  # each image has its own


def test_a_warp_is_small():
    """The centre of a disc moves by at most 7 % of the width in each direction, and some by 4."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    disc = ((x - 13.5) ** 2 + (y - 13.5) ** 2 < 25).float().expand(200, 1, 28, 28)
    warped = random_warp(disc, torch.Generator().manual_seed(0))[:, 0]
    mass = warped.sum((1, 2))
    moved = torch.stack([(warped * x).sum((1, 2)), (warped * y).sum((1, 2))]) / mass - 13.5
    assert moved.abs().max() <= 0.07 * 28 * 1.1 + 0.2  # where it is also enlarged
    assert moved.abs().amax(1).min() > 0.04 * 28
    areas = mass / disc[0].sum()
    assert 0.75 < areas.min() < 0.9 and 1.1 < areas.max() < 1.3


# The scores of digits


def test_scores_of_real_digits_against_themselves(generator):
    judge = Classifier(SMALL).eval()
    real = torch.rand(80, 1, 28, 28, generator=generator) * 2 - 1
    scores = score_digits(judge, real, real, real, generator)
    assert scores.n == 80
    assert scores.fid == pytest.approx(0, abs=1e-6)
    assert scores.fid_real == pytest.approx(0, abs=1e-6)  # the same 80 in another order
    assert scores.confidence == pytest.approx(scores.confidence_real)
    low, high = scores.fid_interval
    assert 0 <= low <= high
    assert sum(scores.class_shares) == pytest.approx(1) and len(scores.class_shares) == 10


def test_noise_scores_worse_than_real_digits(generator):
    judge = Classifier(SMALL).eval()
    real = torch.zeros(120, 1, 28, 28)
    real[:, :, 8:20, 8:20] = torch.rand(120, 1, 12, 12, generator=generator)
    noise = torch.randn(60, 1, 28, 28, generator=generator)
    scores = score_digits(judge, noise, real[:60], real[60:], generator)
    assert scores.fid > 10 * scores.fid_real > 0
    assert scores.fid_interval[0] > scores.fid_real


def test_class_balance_is_an_entropy():
    class Fixed(Classifier):
        def features(self, images):
            return images.flatten(1)[:, :10]

    judge = Fixed(ClassifierConfig(channels=(8,), num_features=10)).eval()
    with torch.no_grad():
        judge.heads["digit"].weight.copy_(100 * torch.eye(10))
        judge.heads["digit"].bias.zero_()

    def images(labels):
        x = torch.zeros(len(labels), 1, 4, 4)
        x.flatten(1)[torch.arange(len(labels)), torch.tensor(labels)] = 1
        return x + 0.01 * torch.randn(x.shape)

    everything = images([*range(10)] * 4)
    even = score_digits(judge, everything, everything, everything)
    assert even.class_balance == pytest.approx(1)
    assert even.class_shares == pytest.approx((0.1,) * 10)
    assert even.confidence > 0.99
    halves = score_digits(judge, images([3, 7] * 20), everything, everything)
    assert halves.class_shares[3] == halves.class_shares[7] == 0.5
    assert halves.class_balance == pytest.approx(math.log(2) / math.log(10))
    one = score_digits(judge, images([5] * 40), everything, everything)
    assert one.class_balance == 0


def test_more_samples_than_real_digits_raise():
    real = torch.zeros(5, 1, 28, 28)
    with pytest.raises(ValueError, match="6 samples need as many real digits, got 5 and 9"):
        score_digits(Classifier(SMALL), torch.zeros(6, 1, 28, 28), real, torch.zeros(9, 1, 28, 28))


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
    images, maps = torch.randn(5, 3, 8, 8), torch.randint(4, (5, 8, 8))
    found = segment(unet, images)
    assert torch.equal(found, unet(images, 0).argmax(dim=1)) and found.shape == (5, 8, 8)
    loss = segmenter_loss(unet, [images, torch.zeros(5, 5), maps], torch.Generator())
    right = unet(images, 0).log_softmax(dim=1).gather(1, maps[:, None])
    assert torch.allclose(loss, -right.mean())
