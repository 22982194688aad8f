import math

import pytest
import skimage.metrics
import sklearn.metrics
import sklearn.neighbors
import torch
import torch.nn.functional as F

from minisd.data.postcards import Postcards
from minisd.intervals import Accuracy, bootstrap_interval
from minisd.metrics import psnr
from minisd.quality import (
    covered,
    edge_energy,
    edges_kept,
    half_of,
    precision_recall,
    psnr_inside,
    ratio_of_sums,
    two_sample_accuracy,
    two_sample_answers,
    with_details,
)


def blurred(images):
    return F.avg_pool2d(F.pad(images, (1,) * 4, mode="replicate"), 3, stride=1)


# Edges


def test_edge_energy_by_hand():
    image = torch.tensor([[0.0, 1, 3], [0, 1, 3]])[None, None]
    assert edge_energy(image).tolist() == pytest.approx([(1 + 4 + 1 + 4) / 7])
    assert edge_energy(image.mT).tolist() == edge_energy(image).tolist()
    masks = torch.tensor([[1, 1, 0], [1, 1, 0]])[None].bool()
    assert edge_energy(image, masks).tolist() == [(1 + 1) / 4]
    assert edge_energy(image.mT, masks.mT).tolist() == [(1 + 1) / 4]


def test_edge_energy_is_that_of_a_loop_over_all_pairs(generator):
    images = torch.randn(3, 2, 5, 4, generator=generator)
    masks = torch.rand(3, 5, 4, generator=generator) < 0.7
    for image, inside, energy in zip(images, masks, edge_energy(images, masks), strict=True):
        pixels = [(y, x) for y in range(5) for x in range(4) if inside[y, x]]
        squares = [
            ((image[:, y, x] - image[:, v, u]) ** 2).mean().item()
            for y, x in pixels
            for v, u in pixels
            if (v - y, u - x) in ((0, 1), (1, 0))
        ]
        assert energy.item() == pytest.approx(sum(squares) / len(squares))


def test_edge_energy_of_noise_is_twice_its_variance(generator):
    images = 0.3 * torch.randn(4, 3, 64, 64, generator=generator) + 0.5
    assert edge_energy(images).tolist() == pytest.approx([2 * 0.3**2] * 4, rel=0.03)


def test_a_mask_without_neighbours_has_no_edges():
    chessboard = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    assert edge_energy(torch.randn(1, 3, 4, 4), chessboard[None]).tolist() == [0]


def test_edges_kept_is_a_ratio_of_sums(generator):
    real = torch.randn(2, 3, 8, 8, generator=generator)
    real[0] *= 3
    a, b = edge_energy(real).tolist()
    ours = real.clone()
    ours[0] = 0  # the picture with most of the energy has lost all of it
    assert edges_kept(ours, real) == pytest.approx(b / (a + b))
    assert edges_kept(ours, real) < 0.2
    assert edges_kept(0.5 * real + 0.3, real) == pytest.approx(0.25, rel=1e-5)
    left = torch.zeros(2, 8, 8).bool()
    left[:, :, :4] = True
    ours = torch.where(left[:, None], real, torch.zeros(()))
    assert edges_kept(ours, real, left) == pytest.approx(1) != edges_kept(ours, real)


def test_blur_loses_edges_and_noise_adds_some(generator):
    real = Postcards("test", 4).images()
    assert 0.1 < edges_kept(blurred(real), real) < 0.7
    assert edges_kept(real + 0.05 * torch.randn(real.shape, generator=generator), real) > 1.05


def test_the_interval_of_the_edges_kept_knows_clusters(generator):
    theirs = torch.rand(20, generator=generator) + 1
    ours = theirs * torch.rand(20, generator=generator)
    rows = torch.stack([ours, theirs], dim=1).repeat_interleave(10, dim=0)
    clusters = torch.arange(20).repeat_interleave(10)

    def interval(clusters):
        generator = torch.Generator().manual_seed(0)
        return bootstrap_interval(ratio_of_sums, rows, generator=generator, clusters=clusters)

    (low, high), (wide_low, wide_high) = interval(None), interval(clusters)
    assert low < ratio_of_sums(rows) < high
    assert wide_high - wide_low > 2 * (high - low)


def test_psnr_inside_a_mask_is_that_of_its_pixels(generator):
    a, b = torch.rand(2, 3, 3, 16, 16, generator=generator) * 2 - 1
    masks = torch.rand(3, 16, 16, generator=generator) < 0.4
    for value, x, y, inside in zip(psnr_inside(a, b, masks), a, b, masks, strict=True):
        x, y = x[:, inside].numpy(), y[:, inside].numpy()
        expected = skimage.metrics.peak_signal_noise_ratio(x, y, data_range=2)
        assert value.item() == pytest.approx(expected, rel=1e-4)
    everything = torch.ones_like(masks)
    assert torch.allclose(psnr_inside(a, b, everything), psnr(a, b))


def test_psnr_inside_a_mask_sees_nothing_else():
    a, masks = torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8).bool()
    assert math.isnan(psnr_inside(a, a, masks))
    masks[:, 2:4, 2:5] = True
    b = torch.where(masks[:, None], a + 0.02, a + 1)
    assert psnr_inside(a, b, masks).item() == pytest.approx(40, rel=1e-5)
    assert psnr_inside(a, a, masks).item() == math.inf


@pytest.mark.parametrize(
    "masks", [torch.ones(2, 8, 8), torch.ones(2, 1, 8, 8).bool(), torch.ones(1, 8, 8).bool()]
)
def test_what_is_no_mask_raises(masks):
    images = torch.zeros(2, 3, 8, 8)
    for metric in (edge_energy, lambda x, m: psnr_inside(x, x, m)):
        with pytest.raises(ValueError, match=r"need masks \(2, 8, 8\) of bool, got"):
            metric(images, masks)


@pytest.mark.parametrize(
    "metric", [edges_kept, two_sample_accuracy, lambda a, b: psnr_inside(a, b, a[:, 0].bool())]
)
def test_what_is_no_pair_of_images_raises(metric):
    with pytest.raises(ValueError, match="of one shape"):
        metric(torch.zeros(2, 3, 8, 8), torch.zeros(3, 3, 8, 8))


# Precision and recall


def test_a_cloud_is_made_of_balls():
    """Of 0, 1, 3, 7 the nearest others are 1, 1, 2, 4 away, the second nearest 3, 2, 3, 6."""
    cloud = torch.tensor([0.0, 1, 3, 7])[:, None]
    queries = torch.tensor([-3.0, -1.1, -1, 0.5, 2, 11, 11.1, 13])[:, None]
    inside = covered(queries, cloud, k=1)
    assert inside.tolist() == [False, False, True, True, True, True, False, False]
    inside = covered(queries, cloud, k=2)
    assert inside.tolist() == [True] * 8
    assert covered(torch.tensor([[-3.1], [13.1]]), cloud, k=2).tolist() == [False, False]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_precision_and_recall_are_the_formula(k, generator):
    """Eq. 1 and 2, with the neighbours of scikit-learn, which counts a point as its own."""
    fake = torch.randn(150, 4, generator=generator, dtype=torch.float64) * 0.8 + 0.7
    real = torch.randn(180, 4, generator=generator, dtype=torch.float64)

    def share(queries, cloud):
        found = sklearn.neighbors.NearestNeighbors(n_neighbors=k + 1).fit(cloud.numpy())
        radii = found.kneighbors(cloud.numpy())[0][:, -1]
        distances = sklearn.metrics.pairwise_distances(queries.numpy(), cloud.numpy())
        return (distances <= radii).any(axis=1).mean()

    expected = share(fake, real), share(real, fake)
    assert precision_recall(fake, real, k) == pytest.approx(expected)
    assert 0.05 < expected[1] < expected[0] < 1


def test_precision_and_recall_of_equal_and_of_distant_clouds(generator):
    cloud = torch.randn(100, 8, generator=generator)
    assert precision_recall(cloud, cloud[torch.randperm(100)]) == (1, 1)
    assert precision_recall(cloud + 100, cloud) == (0, 0)


def test_a_mode_that_is_missing_costs_recall_alone(generator):
    modes = torch.tensor([[0.0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 100]]).repeat(100, 1)
    real, fake = (modes + torch.randn(400, 3, generator=generator) for _ in range(2))
    complete = precision_recall(fake, real)
    assert min(complete) > 0.9
    precision, recall = precision_recall(fake[modes.amax(dim=1) == 0], real)
    assert precision > 0.9 and 0.2 < recall <= 0.25


def test_a_cloud_that_shrank_keeps_precision_and_one_that_grew_keeps_recall(generator):
    real, other = torch.randn(2, 400, 6, generator=generator)
    precision, recall = precision_recall(0.2 * other, real)
    assert precision > 0.95 and recall < 0.1
    precision, recall = precision_recall(4 * other, real)
    assert precision < 0.1 and recall > 0.8


def test_never_are_all_distances_in_memory(generator, monkeypatch):
    cloud, cdist, rows = torch.randn(1200, 2, generator=generator), torch.cdist, []

    def counted(x, y, **options):
        rows.append(len(x))
        return cdist(x, y, **options)

    monkeypatch.setattr(torch, "cdist", counted)
    assert precision_recall(cloud, cloud) == (1, 1)
    assert max(rows) <= 500


@pytest.mark.parametrize(
    ("queries", "cloud", "k"),
    [((5, 2), (5, 3), 3), ((5, 2), (3, 2), 3), ((5, 2), (5, 2), 0), ((5, 2, 2), (5, 2, 2), 1)],
)
def test_what_has_no_neighbours_raises(queries, cloud, k):
    with pytest.raises(ValueError, match="with m > k >= 1"):
        covered(torch.zeros(queries), torch.zeros(cloud), k)


# The two-sample test


def postcards(n, size=32):
    data = Postcards("test", n, seed=7, size=size)
    clusters = data.labels[:, :3].unique(dim=0, return_inverse=True)[1]
    return data.images(), data.twins(), clusters


def test_twins_are_not_told_from_real_postcards_and_blurred_ones_are():
    real, twins, clusters = postcards(100)
    few = slice(20)
    alike = two_sample_accuracy(twins, real, clusters, torch.Generator().manual_seed(0))
    assert alike.interval[0] < 0.5 < alike.interval[1] and 80 < alike.n < 120
    told = two_sample_accuracy(blurred(twins), real, clusters, torch.Generator().manual_seed(0))
    assert told.interval[0] > 0.7, told
    same = two_sample_accuracy(real[few], real[few], clusters[few])
    assert same.value == 0.5  # of two equal pictures one is always taken for the other


@pytest.mark.slow
def test_a_blur_that_is_hardly_seen_is_found_among_a_thousand():
    real, twins, clusters = postcards(1000, size=64)
    ours = twins.lerp(blurred(twins), 0.3)
    told = two_sample_accuracy(ours, real, clusters, torch.Generator().manual_seed(0))
    assert told.interval[0] > 0.6, told


def test_details_are_what_a_blur_takes():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 9
    same, details = with_details(image).unbind(dim=1)
    assert torch.equal(same, image[:, 0])
    assert details[0, 2].tolist() == pytest.approx([0, -4, 4 * 8, -4, 0])
    flat = torch.full((2, 3, 8, 8), 0.7)
    assert with_details(flat)[:, 3:].abs().max() < 1e-5  # at the edge as inside


def test_a_cluster_is_never_split():
    clusters = torch.tensor([7, 7, 3, 9, 3, 9, 9, 1])
    images = torch.randn(2, 8, 1, 8, 8)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        right, rows = two_sample_answers(*images, clusters, generator)
        asked = set(rows.tolist())
        assert rows.tolist() == [*sorted(asked)] * 2 and len(right) == len(rows)
        names = {int(clusters[row]) for row in asked}
        assert len(names) == 2  # of four
        assert asked == {row for row in range(8) if int(clusters[row]) in names}


def test_the_halves_are_drawn():
    clusters = torch.tensor([7, 7, 3, 9])
    halves = {tuple(half_of(clusters).tolist()) for _ in range(60)}
    assert halves == {
        (True, True, False, False), (False, False, True, False), (False, False, False, True)
    }  # fmt: skip


def test_the_answers_are_counted():
    """About pictures that a constant tells apart, all answers are right."""
    dark = torch.rand(60, 1, 8, 8) - 1
    assert two_sample_accuracy(dark, -dark) == Accuracy(60, 60)


def test_a_two_sample_test_is_a_function_of_its_generator():
    images = torch.randn(2, 40, 1, 8, 8)
    before = torch.random.get_rng_state()
    runs = []
    for seed in (1, 1, 2):
        runs.append(two_sample_answers(*images, generator=torch.Generator().manual_seed(seed)))
        assert torch.equal(before, torch.random.get_rng_state())
        torch.rand(5)  # another state: the first two runs are equal all the same
        before = torch.random.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][1], runs[2][1])


def test_what_cannot_be_halved_or_seen_raises():
    images = torch.zeros(4, 3, 8, 8)
    with pytest.raises(ValueError, match="at least 2 clusters to halve, got 1"):
        two_sample_accuracy(images, images, torch.zeros(4))
    with pytest.raises(ValueError, match="4 images need as many clusters, got 3"):
        two_sample_accuracy(images, images, torch.arange(3))
    with pytest.raises(ValueError, match=r"at least 8 x 8, got \(8, 7\)"):
        two_sample_accuracy(images[..., 1:], images[..., 1:])
