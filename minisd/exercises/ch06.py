"""Checkers for the exercises of chapter 6, tokens and transformers."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minisd.clip import CLIPTextConfig, CLIPTextModel
from minisd.exercises.checking import Wrong, exercise, expect_close, seeded


@exercise("6.1")
def one_round(answer: Callable) -> None:
    """Count with the counts of the words, and merge from left to right."""
    questions = (
        ([("sea", 3), ("set", 2), ("tea", 2)], ("s", "e"), ["se a", "se t", "t e a"]),
        ([("ab", 5), ("cdcd", 1), ("cd", 1)], ("a", "b"), ["ab", "c d c d", "c d"]),
        ([("aaa", 2), ("b", 9)], ("a", "a"), ["aa a", "b"]),
        ([("xyxyz", 2), ("yx", 1)], ("x", "y"), ["xy xy z", "y x"]),
    )
    for spelled, pair, merged in questions:
        words = [(list(word), count) for word, count in spelled]
        got = answer([(list(symbols), count) for symbols, count in words])
        if not isinstance(got, tuple) or len(got) != 2:
            raise Wrong("Return two things: the pair, and the list of words after the merge.")
        if not isinstance(got[0], tuple | list) or tuple(got[0]) != pair:
            hint = "A pair counts as often as its word occurs, and every time that it stands there."
            raise Wrong(f"For {spelled} the pair is {pair}, not {got[0]!r}. {hint}")
        wanted = [
            (symbols.split(), count) for symbols, (_, count) in zip(merged, spelled, strict=True)
        ]
        if [(list(symbols), count) for symbols, count in got[1]] != wanted:
            raise Wrong(
                f"After joining {pair} the words should be {wanted}, not {got[1]!r}. Go from left "
                "to right, do not use a symbol twice, and keep the counts."
            )


@exercise("6.2")
def lay_out(answer: Callable) -> None:
    """Try lists that are short, just long enough, and too long."""
    for ids, length in (([5, 6], 6), ([], 4), ([1, 2, 3, 4], 6), ([1, 2, 3, 4, 5], 6), ([7], 3)):
        got = answer(list(ids), length, 97, 98, 99)
        wanted = [97, *ids[: length - 2], 98]
        wanted += [99] * (length - len(wanted))
        if not isinstance(got, list):
            raise Wrong(f"Return a list of ids, not {type(got).__name__}.")
        if got == wanted:
            continue
        told = f"For ids {ids} and length {length} the row should be {wanted}, not {got}."
        if len(got) != length:
            hint = f"It is {len(got)} long."
        elif 98 not in got:
            hint = "The end token was cut away: leave room for it, and for the start."
        elif got[0] != 97:
            hint = "The start token comes first."
        else:
            hint = "First the start, then the ids, then the end, then padding."
        raise Wrong(f"{told} {hint}")


@exercise("6.3")
def causal_weights(answer: Callable) -> None:
    """Compare with the mask set before the softmax, and with the usual mistakes."""
    scores = 2 * torch.randn(2, 3, 5, 5, generator=seeded())
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    got = answer(scores.clone())
    right = scores.masked_fill(later, -math.inf).softmax(-1)
    mistakes = {
        "A word may look at itself: mask only what comes later (diagonal=1).": (
            scores.masked_fill(later | torch.eye(5, dtype=torch.bool), -math.inf).softmax(-1)
        ),
        "Nobody may look ahead; you have forbidden to look back.": (
            scores.masked_fill(later.T, -math.inf).softmax(-1)
        ),
        "Mask the scores before the softmax: these rows do not sum to 1.": (
            scores.softmax(-1).masked_fill(later, 0)
        ),
        "A score of 0 is no mask, exp(0) is 1: use -inf.": (
            scores.masked_fill(later, 0).softmax(-1)
        ),
        "The softmax goes over the keys, the last axis.": (
            scores.masked_fill(later, -math.inf).softmax(-2)
        ),
        "Everybody looks at everybody here: where is the mask?": scores.softmax(-1),
    }
    for hint, wrong in mistakes.items():
        if (
            isinstance(got, Tensor)
            and got.shape == wrong.shape
            and torch.allclose(got.nan_to_num(), wrong.nan_to_num(), atol=1e-4)
        ):
            raise Wrong(hint)
    hint = "Set the scores above the diagonal to -inf, then take the softmax of each row."
    expect_close(got, right, "The weights", hint)


@exercise("6.4")
def read_on(answer: Callable) -> None:
    """Read six words one by one, and compare with reading them all at once."""
    q, k, v = torch.randn(3, 6, 8, generator=seeded(1))
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    scores = q @ k.T
    wanted = (scores / math.sqrt(8)).masked_fill(later, -math.inf).softmax(-1) @ v
    unscaled = scores.masked_fill(later, -math.inf).softmax(-1) @ v
    keys, values = torch.empty(2, 0, 8)
    for i in range(6):
        got = answer(q[i], k[i], v[i], keys.clone(), values.clone())
        if not isinstance(got, tuple) or len(got) != 3:
            raise Wrong("Return three things: the answer, all keys, all values.")
        for what, grown, all_of in (("keys", got[1], k), ("values", got[2], v)):
            hint = "Put the new word's behind those so far."
            expect_close(grown, all_of[: i + 1], f"After {i + 1} words the {what}", hint)
        if isinstance(got[0], Tensor) and got[0].shape == wanted[i].shape:
            if i and torch.allclose(got[0], unscaled[i], atol=1e-4):
                raise Wrong("Divide the scores by sqrt(d) before the softmax.")
            blind = (q[i] @ keys.T / math.sqrt(8)).softmax(-1) @ values
            if torch.allclose(got[0], blind, atol=1e-4):
                raise Wrong("The new word may look at itself, too: add its key and value first.")
        hint = "The weights are the softmax over all keys, and sum to 1."
        expect_close(got[0], wanted[i], f"The answer of word {i + 1}", hint)
        keys, values = got[1:]


@exercise("6.5")
def count_parameters(answer: Callable) -> None:
    """Count those of models of four sizes, v1.5's among them."""
    sizes = ((10, 4, 6, 1), (10, 4, 6, 3), (1000, 32, 192, 3), (49_408, 77, 768, 12))
    for vocab_size, max_length, dim, num_layers in sizes:
        config = CLIPTextConfig(vocab_size, max_length, dim, num_layers, 2, eos_token_id=0)
        with torch.device("meta"):
            model = CLIPTextModel(config)
        wanted = sum(p.numel() for p in model.parameters())
        got = answer(vocab_size, max_length, dim, num_layers)
        if got == wanted:
            continue
        difference = {
            2 * dim: "The last norm is missing.",
            num_layers * 4 * dim: "Each block has two norms, and its attention has four biases.",
            num_layers * 9 * dim: "The linear layers of a block have biases.",
            max_length * dim: "The table of the positions is missing.",
        }
        hint = difference.get(wanted - got) if isinstance(got, int) else "It is a whole number."
        parts = "Print the parts of the smallest model: [p.shape for p in model.parameters()]."
        raise Wrong(
            f"With vocab_size={vocab_size}, max_length={max_length}, dim={dim} and "
            f"num_layers={num_layers} there are {wanted:,} parameters, not {got!r}. "
            f"{hint or parts}"
        )
