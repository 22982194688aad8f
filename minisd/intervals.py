"""Chapters 4 and 12: how sure is a score? Intervals of shares and of other statistics."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the interval of a proportion (Wilson 1927), by default that of 95 %.

    Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
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
    clusters: Tensor | None = None,
    centred: bool = False,
) -> tuple[float, float]:
    """Return the 95 % interval of `statistic`, resampling the rows of `values` (n,...).

    Rows that belong together (several pictures of one combination, say) vary less than independent
    ones. `clusters` (n,) names the cluster of each row; then whole clusters are drawn.

    In a resample some rows are there twice. That leaves a mean as it is, but raises a distance
    between distributions, such as FID, and lowers a variance or any other measure of variety.
    `centred` removes that bias: it moves the draws until their mean is the statistic of `values`.
    Raises ValueError unless there is one cluster for each row.
    """
    rows_of = None
    if clusters is not None:
        if clusters.shape != (len(values),):
            raise ValueError(f"{len(values)} rows need as many clusters, got {len(clusters)}")
        rows_of = [(clusters == each).nonzero()[:, 0] for each in clusters.unique()]
    n, draws = len(values if rows_of is None else rows_of), []
    for _ in range(resamples):
        drawn = torch.randint(n, (n,), generator=generator)
        rows = drawn if rows_of is None else torch.cat([rows_of[i] for i in drawn.tolist()])
        draws.append(statistic(values[rows]))
    found = torch.tensor(draws, dtype=torch.float64)
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    bias = float(found.mean()) - statistic(values) if centred else 0.0
    return low - bias, high - bias
