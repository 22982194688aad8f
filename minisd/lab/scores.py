"""Chapters 4 to 12: scores as data, which become words only in a card or a table."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from minisd.intervals import Accuracy, bootstrap_interval

VERSION = 1  # of the form in which `training.json` keeps scores


@dataclass(frozen=True)
class Score:
    """A measured value with its 95 % interval, the number of samples, and that of their clusters.

    What was not measured is None. A share is kept as a number from 0 to 1, and its unit is "%".
    `digits` after the point are shown; `note` says how it was measured.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    clusters: int | None = None
    unit: str = ""
    digits: int = 4
    note: str = ""

    @property
    def figure(self) -> str:
        """The value in figures, with its unit."""
        return self._in_figures(self.value) + self.unit

    @property
    def interval(self) -> str:
        """The interval in figures, "" if there is none."""
        if self.low is None or self.high is None:
            return ""
        return f"{self._in_figures(self.low)} to {self._in_figures(self.high)}{self.unit}"

    def __str__(self) -> str:
        details = [f"95 % interval {self.interval}"] if self.interval else []
        details += [f"n = {self.n:,}"] if self.n is not None else []
        details += [f"{self.clusters:,} clusters"] if self.clusters is not None else []
        details += [self.note] if self.note else []
        return f"{self.figure} ({'; '.join(details)})" if details else self.figure

    def _in_figures(self, number: float) -> str:
        return f"{100 * number if self.unit == '%' else number:,.{self.digits}f}"


Scores = dict[str, Score | str]  # a plain fact is text


def share(accuracy: Accuracy) -> Score:
    """Return a share of right answers as a score, with Wilson's interval."""
    return Score(accuracy.value, *accuracy.interval, n=accuracy.n, unit="%", digits=2)


def share_of(right: Tensor) -> Score:
    """Return the share of right answers (n,) bool as a score."""
    return share(Accuracy(int(right.sum()), len(right)))


def bootstrapped(
    statistic: Callable[[Tensor], float],
    rows: Tensor,
    digits: int,
    unit: str = "",
    clusters: Tensor | None = None,
) -> Score:
    """Return a statistic of rows (n,...) as a score, with its bootstrap interval.

    `clusters` (n,) is explained at `bootstrap_interval`.
    """
    generator = torch.Generator().manual_seed(0)
    interval = bootstrap_interval(statistic, rows, generator=generator, clusters=clusters)
    count = None if clusters is None else len(clusters.unique())
    return Score(statistic(rows), *interval, len(rows), count, unit, digits)


def mean(values: Tensor, digits: int, unit: str = "", clusters: Tensor | None = None) -> Score:
    """Return the mean of values (n,) as a score, with its bootstrap interval."""
    return bootstrapped(lambda rows: float(rows.mean()), values, digits, unit, clusters)


def as_json(scores: Scores) -> dict[str, Any]:
    """Return scores as `training.json` keeps them, without the fields that are empty."""

    def entry(score: Score | str) -> Any:
        if isinstance(score, str):
            return score
        return {name: value for name, value in asdict(score).items() if value not in (None, "")}

    return {"version": VERSION, "entries": {name: entry(score) for name, score in scores.items()}}


def scores_of(training: dict[str, Any]) -> Scores:
    """Return the scores of a model from its `training.json`.

    Before version 1 every score was text, and is returned as such. Raises ValueError for scores
    that this minisd cannot read.
    """
    stored = training.get("scores", {})
    try:
        if stored.get("version", 0) > VERSION:
            raise ValueError(
                f"the scores have version {stored['version']}, and this minisd reads version "
                f"{VERSION} and earlier: update minisd"
            )
        return {
            name: Score(**entry) if isinstance(entry, dict) else str(entry)
            for name, entry in stored.get("entries", stored).items()
        }
    except (AttributeError, TypeError) as error:
        raise ValueError(f"the scores in training.json cannot be read: {error}") from None
