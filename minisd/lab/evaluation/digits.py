"""Chapters 4 and 8: the scores of digits, and of the judge that reads them."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minisd.classifier import Classifier, classification_accuracy, classify
from minisd.data.digits import digits
from minisd.device import in_batches
from minisd.lab.evaluation.settings import DIGITS_JUDGE, FID, EvaluationSettings, draw
from minisd.lab.scores import Score, Scores, share, share_of
from minisd.metrics import frechet_distance, frechet_interval


@dataclass(frozen=True)
class DigitScores:
    """The scores of unconditional digits, each with what real digits reach."""

    n: int
    fid: float
    fid_interval: tuple[float, float]
    fid_real: float  # real training digits against the same real test digits, equal n
    confidence: float  # mean probability of the judge's first choice
    confidence_real: float
    class_shares: tuple[float, ...]  # how often each digit was drawn
    class_balance: float  # entropy of the shares over that of a uniform draw: 1 is perfect


def score_digits(
    judge: Classifier,
    samples: Tensor,
    real_train: Tensor,
    real_test: Tensor,
    generator: torch.Generator | None = None,
) -> DigitScores:
    """Compare samples (n,1,28,28) with as many real digits, by the judge's features and answers.

    The interval tells how other samples of the same model would vary. Raises ValueError if there
    are fewer real digits.
    """
    n = len(samples)
    if min(len(real_train), len(real_test)) < n:
        raise ValueError(
            f"{n} samples need as many real digits, got {len(real_train)} and {len(real_test)}"
        )
    chosen = torch.randperm(len(real_train), generator=generator)[:n]
    features, train, test = (
        in_batches(judge.features, images)
        for images in (samples, real_train[chosen], real_test[:n])
    )
    head = judge.heads["digit"]
    with torch.no_grad():
        probabilities, real_probabilities = head(features).softmax(-1), head(test).softmax(-1)
    shares = probabilities.argmax(-1).bincount(minlength=probabilities.shape[1]) / n
    return DigitScores(
        n=n,
        fid=frechet_distance(features, test),
        fid_interval=frechet_interval(features, test, generator),
        fid_real=frechet_distance(train, test),
        confidence=float(probabilities.amax(-1).mean()),
        confidence_real=float(real_probabilities.amax(-1).mean()),
        class_shares=tuple(shares.tolist()),
        class_balance=float(torch.special.entr(shares).sum() / math.log(len(shares))),
    )


def evaluate_digits_judge(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Score a judge of digits on all unseen digits."""
    data = digits("test")
    accuracy = classification_accuracy(Classifier.from_pretrained(model), data.images, data.labels)
    return {"accuracy on unseen digits": share(accuracy), "digits": data.source}


def evaluate_digits(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Score a model that draws digits: FID, the judge's confidence, and class balance."""
    n, data = settings.n, digits("test")
    if n > len(data.images):
        raise ValueError(f"{n} samples need as many real digits; there are {len(data.images)}")
    name = settings.judge or DIGITS_JUDGE
    judge = Classifier.from_pretrained(name)  # before the long part
    samples, how = draw(model, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    found = score_digits(judge, samples, digits("train").images, data.images, generator)
    shares = ", ".join(f"{k}: {share:.1%}" for k, share in enumerate(found.class_shares))
    return {
        "samples": f"{n:,}, {how}; judge {name}; against {data.source}",
        FID: Score(found.fid, *found.fid_interval, n=n, digits=3),
        "FID of real training digits": Score(found.fid_real, n=n, digits=3),
        "FID ratio": Score(found.fid / found.fid_real, n=n, digits=2),
        "judge confidence": Score(found.confidence, n=n, unit="%", digits=2),
        "judge confidence, real digits": Score(found.confidence_real, n=n, unit="%", digits=2),
        "class balance": Score(found.class_balance, n=n, note=f"1 is even; {shares}"),
    }


def evaluate_digits_class(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Score a model that draws the digit it is asked for: all ten in turn, with guidance."""
    name = settings.judge or DIGITS_JUDGE
    judge = Classifier.from_pretrained(name)
    asked = torch.arange(settings.n) % 10
    samples, how = draw(model, settings, [str(digit) for digit in asked.tolist()])
    right = classify(judge, samples)[:, 0] == asked
    scores: Scores = {
        "samples": f"{settings.n:,}, {how}; judge {name}",
        "judged as asked": share_of(right),
    }
    for digit in asked.unique().tolist():
        scores[f"judged as asked, {digit}"] = share_of(right[asked == digit])
    return scores
