import copy

import pytest
import torch
from torch import nn

from minisd.optim import ADAM_SIZE, MOMENTUM, Muon, orthogonalise


@pytest.mark.parametrize("shape", [(32, 32), (40, 100), (100, 40)])
def test_orthogonalise_keeps_the_directions_and_evens_out_their_lengths(shape):
    torch.manual_seed(0)
    u, s, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(0, -1.5, len(s))) @ vh
    made = orthogonalise(matrix)
    assert made.shape == shape and made.dtype == torch.float32
    inside = u.T @ made @ vh.T  # diagonal where the directions are kept
    assert (inside - torch.diag(inside.diag())).abs().max() < 0.05
    assert 0.6 < inside.diag().min() and inside.diag().max() < 1.3


def test_the_length_of_the_gradient_does_not_matter():
    matrix = torch.randn(40, 60)
    torch.testing.assert_close(orthogonalise(1e4 * matrix), orthogonalise(matrix), rtol=0, atol=0.1)
    assert orthogonalise(torch.zeros(40, 60)).abs().max() == 0


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 48, 3), nn.GroupNorm(4, 48), nn.Conv2d(48, 2, 3))


def with_gradients(model):
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    model(x).square().mean().backward()
    return model


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_matrices_move_by_muon_and_all_else_by_adamw():
    model, twin = with_gradients(network()), with_gradients(network())
    before, gradient = model[0].weight.detach().clone(), model[0].weight.grad.clone()
    Muon(model.parameters(), lr=0.1, weight_decay=0.5).step()
    torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.5).step()
    for name, p in model.named_parameters():
        assert torch.equal(p, twin.get_parameter(name)) == (name != "0.weight"), name

    momentum = (1 - MOMENTUM) * gradient
    step = orthogonalise(((1 - MOMENTUM) * gradient + MOMENTUM * momentum).flatten(1))
    expected = 0.95 * before - 0.1 * ADAM_SIZE * 48**0.5 * step.view_as(before)
    torch.testing.assert_close(model[0].weight, expected)


def test_the_momentum_is_remembered():
    torch.manual_seed(0)
    first, second = torch.randn(2, 40, 60)
    p = nn.Parameter(torch.zeros(40, 60))
    optimizer = Muon([p], lr=1.0)
    p.grad = first.clone()
    optimizer.step()
    before = p.detach().clone()
    p.grad = second.clone()
    optimizer.step()
    momentum = (1 - MOMENTUM) * (MOMENTUM * first + second)
    step = orthogonalise((1 - MOMENTUM) * second + MOMENTUM * momentum)
    torch.testing.assert_close(p - before, -ADAM_SIZE * 60**0.5 * step, rtol=0, atol=0.05)


def test_a_step_has_the_usual_size_of_adamw():
    for shape in ((32, 32), (64, 576), (256, 64)):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = torch.randn(shape)
        Muon([p], lr=1.0).step()
        assert 0.13 < p.square().mean().sqrt() < 0.27


def test_weights_without_a_gradient_stay():
    model = network()
    before = copy.deepcopy(model)
    Muon(model.parameters(), lr=0.1).step()
    assert same(model, before)


def test_its_state_can_be_saved_and_loaded():
    straight, stopped = network(), network()
    optimizers = [Muon(m.parameters(), lr=0.1) for m in (straight, stopped)]
    for model, optimizer in zip((straight, stopped), optimizers, strict=True):
        with_gradients(model)
        optimizer.step()
    again = copy.deepcopy(stopped)
    loaded = Muon(again.parameters(), lr=0.1)
    loaded.load_state_dict(optimizers[1].state_dict())
    for model, optimizer in ((straight, optimizers[0]), (again, loaded)):
        optimizer.zero_grad()
        with_gradients(model)
        optimizer.step()
    assert same(straight, again)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon of its own")
@pytest.mark.parametrize("shape", [(48, 48), (40, 96), (96, 40)])
def test_the_steps_are_those_of_muon_in_torch(shape):
    """Up to rounding in bfloat16; AdamW's root mean square is torch's `match_rms_adamw`."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    settings = dict(lr=0.02, weight_decay=0.1)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = (
        Muon([ours], **settings),
        torch.optim.Muon([theirs], momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw", **settings),
    )
    for _ in range(5):
        gradient = torch.randn(shape)
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    moved = (theirs.detach() - start).square().mean().sqrt()
    difference = (ours.detach() - theirs.detach()).square().mean().sqrt()
    assert difference < 0.02 * moved, difference / moved
