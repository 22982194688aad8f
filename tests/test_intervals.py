import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from minisd.intervals import bootstrap_interval, wilson_interval


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


def test_duplicates_narrow_an_interval_unless_they_are_known_to_be_clusters(generator):
    """Ten copies of each value say no more than the values; only clusters tell the bootstrap."""
    values = torch.randn(40, generator=generator)

    def width(rows, clusters=None):
        low, high = bootstrap_interval(
            lambda rows: rows.mean().item(),
            rows,
            resamples=1000,
            generator=torch.Generator().manual_seed(1),
            clusters=clusters,
        )
        return high - low

    copies, clusters = values.repeat_interleave(10), torch.arange(40).repeat_interleave(10)
    assert width(copies) == pytest.approx(width(values) / 10**0.5, rel=0.1)
    assert width(copies, clusters) == pytest.approx(width(values))


def test_a_resample_holds_whole_clusters_of_any_size_and_name(generator):
    values, clusters = torch.arange(6.0), torch.tensor([7, 7, 3, 3, 3, 40])
    seen = []
    bootstrap_interval(
        lambda rows: seen.append(rows.tolist()) or 0.0, values, 50, generator, clusters
    )
    whole = {(0.0, 1.0), (2.0, 3.0, 4.0), (5.0,)}
    for rows in seen:
        parts = []
        while rows:
            part = next(each for each in whole if each[0] == rows[0])
            assert tuple(rows[: len(part)]) == part
            parts, rows = [*parts, part], rows[len(part) :]
        assert len(parts) == 3
    assert len({len(rows) for rows in seen}) > 1


def test_every_row_needs_a_cluster():
    with pytest.raises(ValueError, match="5 rows need as many clusters, got 4"):
        bootstrap_interval(torch.sum, torch.zeros(5), clusters=torch.zeros(4))


def variance(rows):
    return rows.var(correction=0).item()


def test_a_centred_interval_has_no_bias_by_duplicates(generator):
    """A resample of n has (n - 1) / n of the variance on average: at n = 5 four fifths."""
    values, resamples = torch.randn(5, generator=generator), 4000
    draws = []

    def keep(rows):
        draws.append(variance(rows))
        return draws[-1]

    plain = bootstrap_interval(keep, values, resamples, torch.Generator().manual_seed(1))
    mean = sum(draws) / resamples
    assert mean == pytest.approx(0.8 * variance(values), rel=0.05)
    low, high = bootstrap_interval(
        variance, values, resamples, torch.Generator().manual_seed(1), centred=True
    )
    assert (low - plain[0], high - plain[1]) == pytest.approx((variance(values) - mean,) * 2)
