"""Checkers for the exercises of chapter 6, tokens and transformers."""

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from minisd.clip import CLIPTextConfig, CLIPTextModel
from minisd.data.postcards import Postcards
from minisd.exercises.checking import Wrong, exercise, expect_close, seeded
from minisd.layers import Attention
from minisd.tokenizer import Tokenizer


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
        elif len(ids) < length - 2 and got[-1] != 99:
            hint = "Padding goes behind the end token, for nothing in front may depend on it."
        elif got[0] != 97:
            hint = "The start token comes first."
        else:
            hint = "First the start, then the ids, then the end, then padding."
        raise Wrong(f"{told} {hint}")


@exercise("6.3")
@torch.no_grad()
def is_the_same(answer: Callable) -> None:
    """Ask small transformers whether the last state knows the order of the words before it."""
    for positions, causal, num_layers in product((False, True), (False, True), (1, 2, 3)):
        config = CLIPTextConfig(8, 4, dim=8, num_layers=num_layers, num_heads=2, eos_token_id=7)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = CLIPTextModel(config)
        model.position_embedding.weight.mul_(100 if positions else 0)
        for parameter in model.blocks.parameters():  # large weights, so that a change is seen
            parameter.mul_(3)
        for layer in model.modules():
            if isinstance(layer, Attention):
                layer.causal = causal
        one, other = model(torch.tensor([[0, 1, 2], [1, 0, 2]]))[:, -1]
        wanted = torch.allclose(one, other, atol=1e-5)
        got = answer(positions, causal, num_layers)
        if not isinstance(got, bool):
            raise Wrong(f"Return True or False, not {got!r}.")
        if got == wanted:
            continue
        if positions:
            hint = "*red* has another position in the two texts, so it has another vector."
        elif not causal:
            hint = "Without positions and mask each word sees the same bag, in every block."
        elif num_layers == 1:
            hint = "The last word may see all. In one block it sees the bare words, a bag of them."
        else:
            hint = (
                "What has *red* seen when *house* asks it in the second block? In one text *a* "
                "and itself, in the other only itself."
            )
        told = f"positions={positions}, causal={causal}, num_layers={num_layers}"
        verdict = "the same in both texts" if wanted else "not the same"
        raise Wrong(f"With {told} the state of *house* is {verdict}. {hint}")


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


@exercise("6.6")
def tokens_per_caption(answer: Callable) -> None:
    """Learn from few captions and from more, and count on others, with the usual mistakes."""
    unseen = Postcards("test", 500, two=0.5).captions
    for n in (20, 300):
        captions = Postcards("train", n, two=0.5).captions
        tokenizer = Tokenizer.train(captions, 1000)
        wanted = mean_length(tokenizer, unseen)
        got = answer(n)
        if isinstance(got, Tensor):
            got = got.item()
        if not isinstance(got, int | float):
            raise Wrong(f"Return one number, not {type(got).__name__}.")
        if math.isclose(got, wanted, abs_tol=0.005):
            continue
        mistakes = {
            mean_length(tokenizer, captions): "That is the mean of the captions it learned from.",
            wanted + 2: "Do not count start and end: use `encode`.",
            float(tokenizer.config.model_max_length): "Do not count padding: use `encode`.",
            wanted * len(unseen): "That is the sum: divide by the number of captions.",
            sum(map(len, unseen)) / len(unseen): "Those are characters: count the ids.",
        }
        hint = "Train with 1000 places on n captions, count on the 500 of the test."
        for wrong, told in mistakes.items():
            if math.isclose(got, wrong, abs_tol=0.005):
                hint = told
        raise Wrong(f"For n={n} it should be {wanted:.2f}, not {got:.2f}. {hint}")


def mean_length(tokenizer: Tokenizer, captions: Sequence[str]) -> float:
    """Return how many tokens a caption has on average, without start, end and padding."""
    return sum(len(tokenizer.encode(caption)) for caption in captions) / len(captions)
