import pytest
import torch
from helpers import randomise

from minisd import DDPMScheduler
from minisd.conditioning import forget, label_context, labelled_images
from minisd.layers import Attention
from minisd.training import diffusion_loss


def batch(n):
    return [torch.randn(n, 1, 8, 8), torch.arange(n) % 3]


def test_a_label_is_a_prompt_of_one_token():
    context = label_context(torch.tensor([2, 0]), 3)
    assert context.tolist() == [[[0, 0, 1]], [[1, 0, 0]]] and context.dtype == torch.float32


def test_a_label_that_there_is_not_raises():
    with pytest.raises(RuntimeError, match="smaller than num_classes"):
        label_context(torch.tensor([3]), 3)


def test_attention_to_a_label_looks_up_a_table(generator):
    attention = randomise(Attention(4, 2, context_dim=3), generator)
    table = attention.to_out(attention.to_v.weight.T)  # (3,4), one row for each label
    labels = torch.tensor([1, 2])
    out = attention(torch.randn(2, 5, 4), label_context(labels, 3))  # whatever asks
    assert torch.allclose(out, table[labels][:, None].expand(2, 5, 4), atol=1e-6)
    nothing = attention(torch.randn(2, 5, 4), torch.zeros(2, 1, 3))
    assert torch.allclose(nothing, attention.to_out.bias.expand(2, 5, 4), atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_that_is_forgotten(share, generator):
    forgotten = forget(4000, share, generator)
    assert forgotten.shape == (4000, 1) and forgotten.dtype == torch.bool
    assert abs(forgotten.float().mean().item() - share) <= 4 * (share * (1 - share) / 4000) ** 0.5


def test_a_seed_gives_what_is_forgotten():
    first, again, other = (forget(50, 0.5, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_images_pass_and_forgotten_labels_are_zeros(generator):
    images, labels = batch(3000)
    x_start, context = labelled_images(3, drop=0.2)([images, labels], generator)
    assert x_start is images and context.shape == (3000, 1, 3)
    empty = (context == 0).all(dim=2)[:, 0]
    assert 0.16 < empty.float().mean() < 0.24
    assert torch.equal(context[~empty], label_context(labels, 3)[~empty])


def test_nothing_is_forgotten_unless_asked(generator):
    images, labels = batch(100)
    _, context = labelled_images(3, drop=0.0)([images, labels], generator)
    assert torch.equal(context, label_context(labels, 3))


def test_the_loss_shows_the_network_what_was_prepared(generator):
    seen = []

    def network(x, t, context):
        seen.append((x, t, context))
        return torch.zeros_like(x)

    scheduler = DDPMScheduler()
    images, labels = batch(64)
    loss = diffusion_loss(scheduler, prepare=labelled_images(3, drop=0.3))
    found = loss(network, [images, labels], torch.Generator().manual_seed(5))
    ((x, t, context),) = seen
    noise = (x - scheduler.alphas_cumprod[t].sqrt()[:, None, None, None] * images) / (
        1 - scheduler.alphas_cumprod[t]
    ).sqrt()[:, None, None, None]
    assert torch.allclose(found, noise.square().mean(), rtol=1e-3)
    empty = (context == 0).all(dim=2)[:, 0]
    assert 0 < empty.sum() < 64
    assert torch.equal(context[~empty], label_context(labels, 3)[~empty])
