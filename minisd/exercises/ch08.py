"""Checkers for the exercises of chapter 8, guidance."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minisd.exercises.checking import Wrong, exercise, expect_close, seeded
from minisd.layers import Attention
from minisd.pipeline import ClassifierFreeGuidance


@exercise("8.1")
def paper_weight(answer: Callable) -> None:
    """Compare with (1 + w) eps_y - w eps_empty, and with what else might be taken for it."""
    eps_empty, eps_prompt = torch.randn((2, 2, 1, 4, 4), generator=seeded())
    for w in (0.0, -1.0, 0.5, 6.5):
        got = answer(eps_empty, eps_prompt, w)
        if isinstance(got, torch.Tensor) and got.shape == eps_empty.shape and w not in (0, -1):
            if torch.allclose(got, eps_empty + w * (eps_prompt - eps_empty), atol=1e-4):
                raise Wrong("You took w for s. At w = 0 there is to be no guidance; s is then 1.")
            if torch.allclose(got, eps_prompt + (1 + w) * (eps_empty - eps_prompt), atol=1e-4):
                raise Wrong("You are walking away from the prompt. Which one comes first?")
        wanted = (1 + w) * eps_prompt - w * eps_empty
        expect_close(got, wanted, f"At w = {w:g} the guided noise", "Begin with w = 0.")


@exercise("8.2")
def one_token(answer: Callable) -> None:
    """Compare with the package's attention, whose queries must not matter."""
    for heads, positions in ((1, 3), (2, 7)):
        torch_state = torch.random.get_rng_state()
        torch.manual_seed(heads)  # the layer's weights are drawn by torch's global generator
        attention = Attention(6, heads, context_dim=4)
        torch.random.set_rng_state(torch_state)
        token = torch.randn(2, 1, 4, generator=seeded(heads))
        with torch.no_grad():
            got = answer(attention.to_v, attention.to_out, token, positions)
            wanted = attention(torch.randn(2, positions, 6, generator=seeded(9)), token)
        if isinstance(got, torch.Tensor) and got.shape == (2, 1, 6):
            raise Wrong(f"Every one of the {positions} positions gets an answer: expand yours.")
        hint = "All weight goes to the only token, so the answer is its value, sent through to_out."
        expect_close(got, wanted, "The answer", hint)


@exercise("8.3")
def towards_a_label(answer: Callable) -> None:
    """Ask with a classifier whose gradient is known: two classes, logits +-2 sum(x)."""
    calls = []

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        total = x.sum(dim=(1, 2, 3))
        return torch.stack([2 * total, -2 * total], dim=1)

    generator = seeded(3)
    x, eps_pred = 0.1 * torch.randn((2, 3, 1, 2, 2), generator=generator)
    labels, t = torch.tensor([0, 1, 1]), torch.tensor([5, 5, 5])
    for value, scale in ((0.3, 1.0), (0.9, 4.0)):
        alpha_bar = torch.tensor(value)
        with torch.no_grad():  # as in the sampling loop
            got = answer(classifier, x, t, labels, eps_pred, alpha_bar, scale)
        logits = classifier(x, t)
        sign = 1 - 2.0 * labels
        # d log p / dx: with two classes, (1 - p) times the difference of their slopes, 4
        slope = sign * 4 * (1 - logits.softmax(1)[torch.arange(3), labels])
        push = scale * (1 - alpha_bar).sqrt() * slope[:, None, None, None]
        if isinstance(got, torch.Tensor) and got.shape == x.shape:
            got = got.detach()
            if torch.allclose(got, eps_pred + push, atol=1e-4):
                raise Wrong("You push away from the label: noise points away from the data.")
            root = push / (1 - alpha_bar).sqrt()
            if torch.allclose(got, eps_pred - root, atol=1e-4):
                raise Wrong("The factor sqrt(1 - alpha_bar) is missing.")
            if torch.allclose(got, eps_pred - push / scale, atol=1e-4) and scale != 1:
                raise Wrong("The scale is missing.")
            if torch.allclose(got, eps_pred - push / 3, atol=1e-4):
                raise Wrong("Sum over the batch, do not average: each picture has its own arrow.")
        hint = "The gradient is that of the log-probability (log_softmax) of each picture's label."
        expect_close(got, eps_pred - push, "The guided noise", hint)
    if not calls:
        raise Wrong("Ask the classifier.")


class _Counted(nn.Module):
    """A stand-in for a U-Net that notes how many pictures it is given."""

    def __init__(self):
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.seen.append(len(x))
        return x * context.mean(dim=(1, 2))[:, None, None, None]


@exercise("8.4")
def guide_in_the_middle(answer: Callable) -> None:
    """Compare with guidance inside the interval, with the plain network outside; count pictures."""
    unet, empty = _Counted(), torch.zeros(1, 1, 3)
    generator = seeded(4)
    x = torch.randn(2, 1, 4, 4, generator=generator)
    context = torch.rand(2, 1, 3, generator=generator) + 0.5
    guided = ClassifierFreeGuidance(_Counted(), empty, 3.0)
    for t in (999, 800, 799, 500, 200, 199, 0):
        unet.seen.clear()
        got = answer(unet, empty, 3.0, 200, 800, x, torch.tensor(t), context)
        inside = 200 <= t <= 800
        wanted = (guided if inside else guided.unet)(x, torch.tensor(t), context)
        where = "inside" if inside else "outside"
        hint = "Both ends belong to the interval." if t in (200, 800) else ""
        expect_close(got, wanted, f"At t = {t}, {where} the interval, the prediction", hint)
        if not inside and sum(unet.seen) > len(x):
            raise Wrong("Outside the interval one prediction is enough: do not pay for two.")
