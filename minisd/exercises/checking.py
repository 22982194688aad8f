"""A checker asks the reader's answer questions, and says what is wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CHECKERS: dict[str, Callable[[Callable], None]] = {}


class Wrong(Exception):
    """What is wrong with an answer, and a hint that does not give the solution away."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check; true if the answer is right, and shown as one sentence."""

    number: str
    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        verdict = "right." if self.passed else "not yet."
        return " ".join(filter(None, [f"Exercise {self.number}: {verdict}", self.message]))


def exercise(number: str) -> Callable:
    """Register a checker: a function of the reader's answer that raises Wrong, or returns."""

    def register(checker: Callable[[Callable], None]) -> Callable[[Callable], None]:
        CHECKERS[number] = checker
        return checker

    return register


def check(number: str, answer: Callable) -> Verdict:
    """Check the answer to an exercise and say what is wrong with it, if anything.

    Raises ValueError for a number that no exercise has.
    """
    if number not in CHECKERS:
        raise ValueError(
            f"there is no exercise {number!r}; there are {', '.join(sorted(CHECKERS))}"
        )
    try:
        CHECKERS[number](answer)
    except Wrong as wrong:
        return Verdict(number, False, str(wrong))
    except NotImplementedError:
        return Verdict(number, False, "Replace the line that raises NotImplementedError.")
    except Exception as error:  # whatever the reader's code raises is told, not thrown
        return Verdict(number, False, f"Your code raised {type(error).__name__}: {error}")
    return Verdict(number, True, "")


def expect_close(
    got: object, wanted: Tensor, what: str, hint: str, tolerance: float = 1e-4
) -> None:
    """Raise Wrong unless `got` is a tensor with the shape and the values of `wanted`."""
    if not isinstance(got, Tensor):
        raise Wrong(f"{what} should be a tensor, but is {type(got).__name__}. {hint}")
    if got.shape != wanted.shape:
        raise Wrong(
            f"{what} should have the shape {tuple(wanted.shape)}, not {tuple(got.shape)}. {hint}"
        )
    difference = (got.double() - wanted.double()).abs().max().item()
    if not difference <= tolerance:  # also catches nan
        raise Wrong(f"{what} is off by up to {difference:.3g}. {hint}")


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator on the CPU with this seed."""
    return torch.Generator().manual_seed(seed)
