import pytest
import torch
import torch.nn.functional as F
from helpers import randomise

from minisd import CLIPTextConfig, CLIPTextModel, DDPMScheduler, UNet, UNetConfig
from minisd.conditioning import (
    captioned_images,
    cond_drop_mask,
    label_context,
    labelled_images,
)
from minisd.data.postcards import LAYERS, Postcards
from minisd.layers import Attention
from minisd.losses import diffusion_loss
from minisd.maps import map_channels, widened, with_maps


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
    forgotten = cond_drop_mask(4000, share, generator)
    assert forgotten.shape == (4000, 1) and forgotten.dtype == torch.bool
    assert abs(forgotten.float().mean().item() - share) <= 4 * (share * (1 - share) / 4000) ** 0.5


def test_a_seed_gives_what_is_forgotten():
    first, again, other = (
        cond_drop_mask(50, 0.5, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
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


def test_dropped_texts_are_read_as_the_empty_text(generator):
    config = CLIPTextConfig(9, 4, 8, 1, 2, eos_token_id=8)
    text_encoder = randomise(CLIPTextModel(config), generator)
    images = torch.randn(2000, 4, 2, 2)
    ids = torch.tensor([[7, 1, 2, 8], [7, 3, 8, 8]]).repeat(1000, 1)
    empty_ids = torch.tensor([7, 8, 8, 8])
    x_start, context = captioned_images(text_encoder, empty_ids, drop=0.2)([images, ids], generator)
    assert x_start is images and context.shape == (2000, 4, 8) and not context.requires_grad
    with torch.no_grad():
        whole, empty = text_encoder(ids), text_encoder(empty_ids[None])
    dropped = torch.isclose(context, empty, atol=1e-6).all(dim=(1, 2))
    assert 0.16 < dropped.float().mean() < 0.24
    assert torch.allclose(context[~dropped], whole[~dropped], atol=1e-6)
    _, context = captioned_images(text_encoder, empty_ids, drop=0.0)([images, ids], generator)
    assert torch.allclose(context, whole, atol=1e-6)


# Maps


def test_no_pixel_of_a_map_is_lost():
    maps = Postcards("train", 5, size=32).masks()
    channels = map_channels(maps, len(LAYERS), 8)
    assert channels.shape == (5, 4 * 64, 4, 4) and channels.dtype == torch.float32
    assert torch.equal(F.pixel_shuffle(channels, 8).argmax(dim=1), maps)
    assert torch.equal(channels.sum(dim=1), torch.full((5, 4, 4), 64.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_a_cell_knows_the_pixels_in_it(dtype):
    maps = torch.zeros(1, 4, 4, dtype=dtype)
    maps[0, 1, 2] = 2  # in the cell at the top right: its second row, first column
    channels = map_channels(maps, 3, 2)
    assert channels[0, :, 0, 1].tolist() == [1, 1, 0, 1] + [0, 0, 0, 0] + [0, 0, 1, 0]
    assert channels[0, :, 1, 0].tolist() == [1, 1, 1, 1] + 8 * [0]


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.zeros(1, 8, 8), r"whole numbers, got torch.float32 \(8, 8\)"),
        (torch.zeros(1, 8, 8, dtype=torch.bool), "whole numbers, got torch.bool"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), r"must be \(h, w\)"),
        (torch.zeros(8, 8, dtype=torch.int64), r"must be \(h, w\)"),
        (torch.zeros(1, 0, 8, dtype=torch.int64), r"got torch.int64 \(0, 8\)"),
        (torch.full((1, 8, 8), 4), "labels 0 to 3, got 4 to 4"),
        (torch.full((1, 8, 8), -1), "got -1 to -1"),
        (torch.zeros(1, 12, 8, dtype=torch.int64), "multiples of 8, got a map of 12 x 8"),
    ],
)
def test_what_is_no_map(maps, message):
    with pytest.raises(ValueError, match=message):
        map_channels(maps, 4, 8)


def test_the_loss_is_the_same_for_a_network_that_also_sees_maps():
    seen = []

    def network(x, t, context):
        seen.append((x, context))
        return torch.zeros_like(x[:, :1])

    images, labels = batch(600)
    maps = torch.randint(3, (600, 16, 16))
    plain = diffusion_loss(DDPMScheduler(), prepare=labelled_images(3))
    loss = with_maps(plain, 3, 2, drop=0.3)
    got = loss(network, [images, labels, maps], torch.Generator().manual_seed(2))
    assert got.isfinite()
    ((x, context),) = seen
    assert x.shape == (600, 1 + 3 * 4, 8, 8) and context.shape == (600, 1, 3)
    empty = (x[:, 1:] == 0).flatten(1).all(dim=1)
    assert 0.24 < empty.float().mean() < 0.36
    assert torch.equal(x[~empty, 1:], map_channels(maps, 3, 2)[~empty])
    silent = (context == 0).flatten(1).all(dim=1)
    assert 0 < (silent & empty).sum() < silent.sum()  # words and maps are forgotten apart


def test_a_widened_network_begins_as_what_it_was(generator):
    unet = randomise(UNet(UNetConfig(8, 2, 2, (8, 8), (False, True), 1, 2, 4)), generator)
    wider = widened(unet, 6)
    x, beside = torch.randn(3, 2, 8, 8), torch.randn(3, 6, 8, 8)
    got = wider(torch.cat([x, beside], dim=1), 7)
    assert (got - unet(x, 7)).abs().max() < 1e-5
    got.square().mean().backward()
    assert wider.conv_in.weight.grad[:, 2:].abs().min() > 0  # and can learn to mind them
    assert unet.config.in_channels == 2 and unet.conv_in.weight.grad is None
