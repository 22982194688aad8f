"""The checkers of chapter 13 let the solution pass and name the usual mistakes."""

import pytest
import torch

import minisd
from minisd.exercises.ch13 import ORIGINAL, QUESTIONS

# v1.5, and 256 numbers more in the rows of to_k and to_v: 5 blocks of 320, 5 of 640, 6 of 1280.
SD2 = 859_520_964 + 2 * 256 * (5 * 320 + 5 * 640 + 6 * 1280)


def original(key, first=1, ways=("input", "output")):
    way, number, _, layer, kind = key.split(".")
    down = way == "down"
    block = f"{ways[0 if down else 1]}_blocks.{int(number) + first * down}"
    return f"{block}.0.{ORIGINAL[layer]}.{kind}"


def sliced(q, k, v, rows):
    parts = []
    for part in q.split(rows, dim=2):
        weights = (part @ k.mT / part.shape[-1] ** 0.5).softmax(dim=-1)
        parts.append(weights @ v)
    return torch.cat(parts, dim=2)


def whole(q, k, v, rows):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v


def without_the_rest(q, k, v, rows):
    n = max(q.shape[2] // rows, 1) * rows
    return sliced(q[:, :, :n], k, v, rows)


def record(network, inputs, leave=False):
    seen, hooks = {}, []
    for name, module in network.named_modules():
        hooks.append(
            module.register_forward_hook(
                lambda _, i, output, name=name: seen.update({name: output})
            )
        )
    network(*inputs)
    for hook in () if leave else hooks:
        hook.remove()
    return seen


def first_difference(ours, theirs, *inputs, leave=False):
    a, b = record(ours, inputs, leave), record(theirs, inputs)
    return next((name for name in a if not torch.equal(a[name], b[name])), None)


def by_module_order(ours, theirs, *inputs):
    a, b = record(ours, inputs), record(theirs, inputs)
    names = [name for name, _ in ours.named_modules()]
    return next((name for name in names if name in a and not torch.equal(a[name], b[name])), None)


def over_queries(q, k, v, rows):
    parts = [(part @ k.mT / part.shape[-1] ** 0.5).softmax(dim=-2) for part in q.split(rows, dim=2)]
    return torch.cat([part @ v for part in parts], dim=2)


FACTORS = dict(zip(QUESTIONS, (4, 1, 4, 16), strict=True))


def predicted(**wrong):
    (question,) = [q for q in QUESTIONS if wrong["about"] in q]
    return lambda: FACTORS | {question: wrong["says"]}


RIGHT = {
    "13.1": original,
    "13.2": sliced,
    "13.3": first_difference,
    "13.4": lambda: FACTORS,
    "13.5": lambda: (SD2, 32),
}
MISTAKES = [
    ("13.1", lambda key: original(key, first=0), "count from 1"),
    ("13.1", lambda key: original(key, ways=("down", "up")), "appendix"),
    ("13.1", lambda key: key, "The way is named"),
    ("13.2", whole, "Slice the queries before"),
    ("13.2", without_the_rest, "last slice may be shorter"),
    ("13.3", by_module_order, "ends last"),
    ("13.3", lambda *args: first_difference(*args, leave=True), "left behind"),
    ("13.3", lambda *args: None, "Note the name"),
    ("13.2", over_queries, "sum to 1 over the queries"),
    ("13.4", lambda: None, "Return a dictionary"),
    ("13.4", predicted(about="width", says=2), "twice the outputs"),
    ("13.4", predicted(about="parameters, twice the side", says=4), "stored once"),
    ("13.4", predicted(about="convolution", says=2), "Both sides double"),
    ("13.4", predicted(about="attention", says=4), "queries and the keys"),
    ("13.4", predicted(about="attention", says=5), "a single layer"),
    ("13.5", lambda: SD2, "Return two numbers"),
    ("13.5", lambda: (859_520_964, 32), "That is v1.5"),
    ("13.5", lambda: (4 * SD2, 32), "bytes"),
    ("13.5", lambda: (32, SD2), "First the parameters"),
    ("13.5", lambda: (SD2, 16), "also the values"),
    ("13.5", lambda: (SD2, 80), "never touch the words"),
]


@pytest.mark.parametrize("number", RIGHT)
def test_the_solution_passes(number):
    assert minisd.check(number, RIGHT[number]), minisd.check(number, RIGHT[number])


@pytest.mark.parametrize(("number", "answer", "hint"), MISTAKES)
def test_a_mistake_is_named(number, answer, hint):
    verdict = minisd.check(number, answer)
    assert not verdict and hint in verdict.message, verdict.message
