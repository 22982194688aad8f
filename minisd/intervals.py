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
