"""Checkers for the exercises of chapter 7, CLIP."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.exercises.checking import Wrong, exercise, expect_close, seeded
from minisd.losses import contrastive_loss


@exercise("7.1")
def to_patches(answer: Callable) -> None:
    """Cut pictures that are not square, so that every mix-up of axes shows."""
    for shape, p in (((1, 1, 4, 4), 2), ((2, 3, 8, 12), 4), ((2, 3, 4, 6), 2), ((1, 2, 3, 5), 1)):
        images = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
        got, wanted = answer(images.clone(), p), F.unfold(images, p, stride=p).transpose(1, 2)
        told = f"For images {shape} and p = {p} the result"
        if isinstance(got, Tensor) and got.shape == wanted.shape and not torch.equal(got, wanted):
            rows, rows_wanted = (
                {tuple(sorted(row)) for row in rows[0].tolist()} for rows in (got, wanted)
            )
            if rows != rows_wanted:
                raise Wrong(
                    f"{told} has the right shape, but its rows are not patches. Split h into "
                    "(h/p, p) and w into (w/p, p) first, then bring the axes into order."
                )
            if sorted(got[0, 0].tolist()) != sorted(wanted[0, 0].tolist()) or not torch.equal(
                got.sum(dim=-1), wanted.sum(dim=-1)
            ):
                raise Wrong(f"{told} has the patches in another order: go row by row.")
            raise Wrong(
                f"{told} has the right patches, but another order within them: first the whole "
                "first channel, then the second."
            )
        hint = "One row for each patch, and in it one number for each pixel and channel."
        expect_close(got, wanted, told, hint)


@exercise("7.2")
def clip_loss_from(answer: Callable) -> None:
    """Compare with the loss of the package, and with what is easily forgotten."""
    for b, d, log_scale in ((4, 3, 1.5), (7, 5, 2.65), (5, 8, 6.0)):
        images, texts = torch.randn(2, b, d, generator=seeded(b))
        images = 3 * images
        u, v = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        scale = min(math.exp(log_scale), 100.0)
        got = answer(images.clone(), texts.clone(), torch.tensor(log_scale))
        wanted = contrastive_loss(scale * u @ v.T)
        own = torch.arange(b)
        one_way = F.cross_entropy(scale * u @ v.T, own)
        other_way = F.cross_entropy(scale * v @ u.T, own)
        mistakes = {
            "Bring the vectors to length one first.": contrastive_loss(scale * images @ texts.T),
            "That is one direction only: each text must find its image, too.": one_way,
            "That is one direction only: each image must find its text, too.": other_way,
            "The mean of the two directions, not their sum.": one_way + other_way,
            "Multiply the cosines by the scale.": contrastive_loss(u @ v.T),
            "logit_scale is a logarithm: take exp of it.": contrastive_loss(log_scale * u @ v.T),
            "The scale may not exceed 100.": contrastive_loss(math.exp(log_scale) * u @ v.T),
        }
        if isinstance(got, Tensor) and got.ndim == 0 and not torch.isclose(got, wanted, atol=1e-4):
            for hint, wrong in mistakes.items():
                if torch.isclose(got, wrong, atol=1e-4):
                    raise Wrong(hint)
        hint = "Cosines times the scale, then the cross-entropy of the rows and of the columns."
        expect_close(got, wanted, f"The loss of {b} pairs", hint)


@exercise("7.3")
def recall_at(answer: Callable) -> None:
    """Ask for several k; the matrix tells rows from columns."""
    scores = torch.randn(40, 40, generator=seeded(2)) + 1.5 * torch.eye(40)
    scores = scores + torch.linspace(0, 2, 40)  # some keys are liked by all
    for k in (1, 3, 10, 40):

        def share(matrix: Tensor, k: int = k) -> float:
            ahead = (matrix > matrix.diagonal()[:, None]).sum(dim=1)
            return (ahead < k).double().mean().item()

        got = answer(scores.clone(), k)
        if isinstance(got, Tensor) and got.ndim == 0:
            got = got.item()
        if not isinstance(got, int | float):
            raise Wrong(f"Return a number, not {type(got).__name__}.")
        if abs(got - share(scores)) < 1e-6:
            continue
        hint = "Of how many rows is the diagonal entry among the k highest of its row?"
        if abs(got - 40 * share(scores)) < 1e-6:
            hint = "That is how many; return their share."
        elif abs(got - share(scores.T)) < 1e-6:
            hint = "The queries are the rows; you have ranked each column."
        elif abs(got - share(scores, 1)) < 1e-6:
            hint = "Only the best was looked at; look at the k best."
        elif abs(got - share(-scores)) < 1e-6:
            hint = "High scores are good; you have taken the lowest."
        raise Wrong(f"With k = {k} the share is {share(scores):.3f}, not {got:.3f}. {hint}")


@exercise("7.4")
def sigmoid_loss(answer: Callable) -> None:
    """Compare with the sum over pairs, and with the usual slips."""
    for b, scale, bias in ((4, 1.0, 0.0), (6, 10.0, -10.0), (5, 3.0, -1.0)):
        cosines = 2 * torch.rand(b, b, generator=seeded(b)) - 1
        signs = 2 * torch.eye(b) - 1
        logits = scale * cosines + bias
        got, wanted = answer(cosines.clone(), scale, bias), -F.logsigmoid(signs * logits).sum() / b
        own = -F.logsigmoid(logits.diagonal()).sum() / b
        mistakes = {
            "Sum over all pairs and divide by b, not by b * b.": wanted / b,
            "Divide the sum by b.": wanted * b,
            "A loss is small when all is well: mind the sign.": -wanted,
            "Off the diagonal the label is -1, so the sign of the logit turns.": (
                -F.logsigmoid(logits).sum() / b
            ),
            "The label multiplies all of the logit, the bias too.": (
                -F.logsigmoid(signs * scale * cosines + bias).sum() / b
            ),
            "Where are the pairs that do not belong together? That would collapse.": own,
        }
        if isinstance(got, Tensor) and got.ndim == 0 and not torch.isclose(got, wanted, atol=1e-4):
            for hint, wrong in mistakes.items():
                if torch.isclose(got, wrong, atol=1e-4):
                    raise Wrong(hint)
        hint = "Labels 1 on the diagonal and -1 elsewhere, times the logits, through log sigmoid."
        expect_close(got, wanted, f"The loss of {b} pairs", hint)
