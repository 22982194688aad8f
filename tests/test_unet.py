from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from helpers import randomise
from hypothesis import given
from hypothesis import strategies as st

from minisd import UNet, UNetConfig
from minisd.layers import NoAttention, ResnetBlock, SelfAttention2d, SpatialTransformer

PLAIN = UNetConfig(
    sample_size=8, channels=(8, 16), attention=(False, True), num_heads=2, norm_num_groups=4
)
WORDS = replace(PLAIN, in_channels=4, out_channels=4, context_dim=6)


def test_sd15_has_the_size_of_stable_diffusion():
    with torch.device("meta"):
        unet = UNet(UNetConfig.SD15)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert len(unet.state_dict()) == 686


def test_attention_is_chosen_by_the_config():
    plain, words = UNet(PLAIN), UNet(WORDS)
    assert [type(b.attention) for b in plain.up] == [SelfAttention2d] * 2 + [NoAttention] * 2
    assert [type(b.attention) for b in words.up] == [SpatialTransformer] * 2 + [NoAttention] * 2


@given(
    levels=st.integers(1, 4),
    layers=st.integers(1, 3),
    b=st.integers(1, 3),
    words=st.booleans(),
    height=st.integers(1, 2),
    width=st.integers(1, 2),
)
def test_the_output_has_the_size_of_the_image(levels, layers, b, words, height, width):
    config = UNetConfig(
        sample_size=8,
        in_channels=2,
        out_channels=3,
        channels=(4, 8, 4, 8)[:levels],
        attention=(False, True, False, True)[:levels],
        layers_per_block=layers,
        norm_num_groups=2,
        context_dim=5 if words else None,
    )
    unet = UNet(config)
    x = torch.randn(b, 2, height * config.downscale, width * config.downscale)
    context = torch.randn(b, 3, 5) if words else None
    with torch.no_grad():
        assert unet(x, torch.arange(b), context).shape == (b, 3, *x.shape[2:])


def test_time_may_be_a_number_or_a_tensor():
    unet = randomise(UNet(PLAIN))
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        expected = unet(x, torch.tensor([7, 7, 7]))
        for t in (7, torch.tensor(7), torch.tensor([7])):
            assert torch.equal(unet(x, t), expected)
        assert (unet(x, 8) - expected).abs().max() > 1e-6


def test_each_image_has_its_own_time_and_context():
    unet = randomise(UNet(WORDS))
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 6)
    with torch.no_grad():
        both = unet(x, torch.tensor([10, 900]), context)
        second = unet(x[1:], 900, context[1:])
        other_words = unet(x[1:], 900, context[:1])
    assert torch.allclose(both[1:], second, atol=1e-5)
    assert (second - other_words).abs().max() > 1e-5


def test_arguments_are_not_changed():
    unet = randomise(UNet(WORDS))
    arguments = torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), torch.randn(2, 3, 6)
    before = [a.clone() for a in arguments]
    unet(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))


def test_every_parameter_is_used():
    unet = randomise(UNet(WORDS))
    unet(torch.randn(2, 4, 8, 8), torch.tensor([1, 900]), torch.randn(2, 3, 6)).sum().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ((1, 1, 8, 8), r"x must be \(b, 4, h, w\), got \(1, 1, 8, 8\)"),
        ((4, 8, 8), "x must be"),
        ((1, 4, 7, 8), r"multiples of 2, got \(7, 8\)"),
        ((1, 4, 8, 9), "multiples of 2"),
    ],
)
def test_wrong_images_raise(x, message):
    with pytest.raises(ValueError, match=message):
        UNet(WORDS)(torch.randn(x), 0, torch.randn(1, 3, 6))


@pytest.mark.parametrize(
    ("config", "context", "message"),
    [
        (WORDS, None, r"takes a context \(b, n, 6\)"),
        (PLAIN, (2, 3, 6), "takes no context"),
        (WORDS, (2, 3, 7), r"\(2, n, 6\), got \(2, 3, 7\)"),
        (WORDS, (1, 3, 6), "context must be"),
        (WORDS, (2, 6), "context must be"),
    ],
)
def test_wrong_context_raises(config, context, message):
    x = torch.randn(2, config.in_channels, 8, 8)
    context = None if context is None else torch.randn(context)
    with pytest.raises(ValueError, match=message):
        UNet(config)(x, 0, context)


@pytest.mark.parametrize("t", [torch.arange(3), torch.zeros(2, 1)])
def test_wrong_time_raises(t):
    with pytest.raises(ValueError, match=r"scalar or \(2,\)"):
        UNet(PLAIN)(torch.randn(2, 1, 8, 8), t)


@pytest.mark.parametrize(
    "settings",
    [
        dict(channels=()),
        dict(channels=(8, 16, 16)),
        dict(attention=(True,)),
        dict(channels=(8, 18)),  # not a multiple of norm_num_groups
        dict(num_heads=3),
        dict(num_heads=0),
        dict(norm_num_groups=0),
        dict(channels=(0, 16)),
        dict(channels=(-8, 16)),
        dict(sample_size=7),
        dict(sample_size=0),
        dict(layers_per_block=0),
        dict(in_channels=0),
        dict(out_channels=-1),
        dict(context_dim=0),
        dict(channels=(5, 10), norm_num_groups=5, num_heads=1),  # no cosine for each sine
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_raise(settings):
    with pytest.raises(ValueError):
        replace(PLAIN, **settings)


def test_the_config_is_frozen_and_comparable():
    assert replace(PLAIN, channels=[8, 16]) == PLAIN  # JSON brings lists
    with pytest.raises(FrozenInstanceError):
        PLAIN.num_heads = 4


def test_every_block_of_the_digits_hears_the_time(generator):
    """A group of one channel would not: its normalisation subtracts what the time has added."""
    unet = randomise(UNet(UNetConfig.MNIST), generator)
    blocks = [m for m in unet.modules() if isinstance(m, ResnetBlock)]
    emb = torch.randn(1, unet.time_embedding.linear_2.out_features, generator=generator)
    with torch.no_grad():
        for block in blocks:
            x = torch.randn(1, block.conv_1.in_channels, 7, 7, generator=generator)
            assert (block(x, emb) - block(x, -emb)).std() > 0.01
    assert len(blocks) == 11
