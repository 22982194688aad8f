"""The checkers of chapter 13 let the solution pass and name the usual mistakes."""

import pytest
import torch

import minisd
from minisd.exercises.ch13 import ORIGINAL


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


def upgraded(tensors, everywhere=False):
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    result = {}
    for key, tensor in tensors.items():
        for old, new in names.items():
            key = key.replace(f".{old}.", f".{new}.")
        flat = tensor.ndim == 4 and (everywhere or ".attentions." in key)
        result[key] = tensor.flatten(1) if flat else tensor
    return result


RIGHT = {"13.1": original, "13.2": sliced, "13.3": first_difference, "13.4": upgraded}
MISTAKES = [
    ("13.1", lambda key: original(key, first=0), "count from 1"),
    ("13.1", lambda key: original(key, ways=("down", "up")), "appendix"),
    ("13.1", lambda key: key, "The way is named"),
    ("13.2", whole, "Slice the queries before"),
    ("13.2", without_the_rest, "last slice may be shorter"),
    ("13.3", by_module_order, "ends last"),
    ("13.3", lambda *args: first_difference(*args, leave=True), "left behind"),
    ("13.3", lambda *args: None, "Note the name"),
    ("13.4", lambda tensors: tensors, "names are missing"),
    ("13.4", lambda tensors: upgraded(tensors, everywhere=True), "other convolutions stay"),
    ("13.4", lambda tensors: None, "Return a dictionary"),
]


@pytest.mark.parametrize("number", RIGHT)
def test_the_solution_passes(number):
    assert minisd.check(number, RIGHT[number]), minisd.check(number, RIGHT[number])


@pytest.mark.parametrize(("number", "answer", "hint"), MISTAKES)
def test_a_mistake_is_named(number, answer, hint):
    verdict = minisd.check(number, answer)
    assert not verdict and hint in verdict.message, verdict.message
