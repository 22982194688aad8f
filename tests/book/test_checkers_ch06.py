"""The checkers of chapter 6 tell wrong answers what is wrong with them."""

import pytest

import minisd
from minisd.data.postcards import Postcards


def told(number, answer, message):
    verdict = minisd.check(number, answer)
    assert not verdict and message in verdict.message, verdict


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda i, n, s, e, p: ([s, *i, e] + [p] * n)[:n], "end token was cut away"),
        (lambda i, n, s, e, p: [s, *i[: n - 2]] + [p] * (n - 2 - len(i)) + [e], "behind the end"),
        (lambda i, n, s, e, p: [s, *i[: n - 2], e], "long"),
        (lambda i, n, s, e, p: (s, *i, e), "a list of ids"),
    ],
)
def test_lay_out(answer, message):
    told("6.2", answer, message)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda p, c, n: not p, "What has *red* seen"),
        (lambda p, c, n: not p and not c, "a bag of them"),
        (lambda p, c, n: p, "sees the same bag"),
        (lambda p, c, n: not c or n == 1, "another position"),
        (lambda p, c, n: 1, "True or False"),
    ],
)
def test_is_the_same(answer, message):
    told("6.3", answer, message)


def right(n):
    captions = Postcards("train", n, two=0.5).captions
    tokenizer = minisd.Tokenizer.train(captions, 1000)
    unseen = Postcards("test", 500, two=0.5).captions
    return tokenizer, captions, unseen


def mean(tokenizer, captions):
    return sum(len(tokenizer.encode(caption)) for caption in captions) / len(captions)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda t, learned, unseen: mean(t, learned), "it learned from"),
        (lambda t, learned, unseen: mean(t, unseen) + 2, "start and end"),
        (lambda t, learned, unseen: t(unseen).shape[1], "Do not count padding"),
        (lambda t, learned, unseen: mean(t, unseen) * len(unseen), "the sum"),
        (lambda t, learned, unseen: sum(map(len, unseen)) / 500, "characters"),
        (lambda t, learned, unseen: 3.0, "Train with 1000 places"),
        (lambda t, learned, unseen: "15", "one number"),
    ],
)
def test_tokens_per_caption(answer, message):
    assert minisd.check("6.6", lambda n: mean(*right(n)[::2]))
    told("6.6", lambda n: answer(*right(n)), message)
