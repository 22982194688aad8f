import math

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from torch import nn

from minisd.layers import (
    GEGLU,
    Attention,
    Downsample,
    NoAttention,
    ResnetBlock,
    SelfAttention2d,
    SpatialTransformer,
    TimeEmbedding,
    TransformerBlock,
    Upsample,
    timestep_embedding,
)


def test_timestep_embedding_is_cosines_then_sines():
    dim, t = 8, 37
    embedding = timestep_embedding(torch.tensor([t]), dim)[0].tolist()
    for i in range(dim // 2):
        angle = t / 10_000 ** (i / (dim // 2))
        assert embedding[i] == pytest.approx(math.cos(angle), abs=1e-5)
        assert embedding[dim // 2 + i] == pytest.approx(math.sin(angle), abs=1e-5)


def test_timestep_embedding_tells_all_timesteps_apart():
    embeddings = timestep_embedding(torch.arange(1000), 32)
    assert embeddings.shape == (1000, 32)
    distances = torch.cdist(embeddings, embeddings) + 10 * torch.eye(1000)
    assert distances.min() > 0.1


def test_odd_embedding_dimension_raises():
    with pytest.raises(ValueError, match="even.*7"):
        timestep_embedding(torch.arange(3), 7)


def test_time_embedding_computes_in_the_precision_of_its_weights():
    layer = TimeEmbedding(8, 32).to(torch.bfloat16)
    assert layer(torch.arange(3)).dtype == torch.bfloat16


def slow_attention(layer, x, context):
    """Equation 1 of Vaswani et al., one head, one query and one image at a time."""
    out = torch.zeros_like(x)
    head_dim = x.shape[-1] // layer.num_heads
    for image in range(len(x)):
        q, k, v = (
            layer.to_q(x[image]),
            layer.to_k(context[image]),
            layer.to_v(context[image]),
        )
        for head in range(layer.num_heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            for i in range(x.shape[1]):
                weights = torch.softmax(k[:, part] @ q[i, part] / math.sqrt(head_dim), dim=0)
                out[image, i, part] = weights @ v[:, part]
    return layer.to_out(out)


@pytest.mark.parametrize("num_heads", [1, 2, 4])
@pytest.mark.parametrize("context_dim", [None, 5])
def test_attention_is_the_formula(num_heads, context_dim, generator):
    layer = Attention(8, num_heads, context_dim, qkv_bias=context_dim is None)
    x = torch.randn(2, 6, 8, generator=generator)
    context = torch.randn(2, 3, context_dim, generator=generator) if context_dim else None
    with torch.no_grad():
        expected = slow_attention(layer, x, x if context is None else context)
        assert torch.allclose(layer(x, context), expected, atol=1e-6)


def test_attention_needs_divisible_heads():
    with pytest.raises(ValueError, match="8 channels.*3 heads"):
        Attention(8, 3)


def test_geglu_gates_the_first_half_with_the_second(generator):
    layer = GEGLU(4, 3)
    x = torch.randn(2, 5, 4, generator=generator)
    both = layer.proj(x)
    gate = both[..., 3:]
    expected = both[..., :3] * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    assert torch.allclose(layer(x), expected, atol=1e-6)


@pytest.mark.parametrize("out_channels", [8, 12])
def test_resnet_block_adds_its_shortcut(out_channels, generator):
    block = ResnetBlock(8, out_channels, emb_dim=16, norm_num_groups=4)
    assert isinstance(block.shortcut, nn.Identity) == (out_channels == 8)
    x, emb = torch.randn(2, 8, 4, 6, generator=generator), torch.randn(2, 16, generator=generator)
    assert block(x, emb).shape == (2, out_channels, 4, 6)
    assert torch.equal(block(x, emb), block.shortcut(x))  # it starts as no more than that
    with torch.no_grad():
        change = randomise(block, generator)(x, emb) - block.shortcut(x)
    assert change.std() > 0.1


def test_resnet_block_hears_the_time(generator):
    block = randomise(ResnetBlock(8, 8, emb_dim=16, norm_num_groups=4), generator)
    x, emb = torch.randn(2, 8, 4, 4, generator=generator), torch.randn(2, 16, generator=generator)
    assert (block(x, emb) - block(x, -emb)).abs().max() > 1e-3


def test_a_block_without_time_is_one_whose_time_says_nothing(generator):
    timeless = randomise(ResnetBlock(8, 12, None, norm_num_groups=4, norm_eps=1e-6), generator)
    assert not any("time" in name for name in timeless.state_dict())
    block = ResnetBlock(8, 12, 16, norm_num_groups=4, norm_eps=1e-6)
    missing = block.load_state_dict(timeless.state_dict(), strict=False).missing_keys
    assert missing == ["time_proj.weight", "time_proj.bias"]
    torch.nn.init.zeros_(block.time_proj.bias)
    x = torch.randn(2, 8, 4, 4, generator=generator)
    assert torch.equal(timeless(x), block(x, torch.zeros(2, 16)))
    with pytest.raises(TypeError):
        timeless(x, torch.zeros(2, 16))


def test_no_attention_changes_nothing():
    x = torch.randn(2, 3, 4, 4)
    assert NoAttention()(x, torch.randn(2, 5, 6)) is x


def test_self_attention_does_not_care_where_a_pixel_stands(generator):
    """Without positions, shuffling the pixels before is shuffling them after."""
    layer = randomise(SelfAttention2d(8, num_heads=2, norm_num_groups=4), generator)
    x = torch.randn(2, 8, 3, 5, generator=generator)
    order = torch.randperm(15, generator=generator)

    def shuffle(x):
        return x.flatten(2)[:, :, order].reshape(x.shape)

    with torch.no_grad():
        assert torch.allclose(layer(shuffle(x)), shuffle(layer(x)), atol=1e-5)


@pytest.mark.parametrize("n", [1, 7])
def test_spatial_transformer_reads_the_context_of_its_own_image(n, generator):
    layer = SpatialTransformer(8, num_heads=2, context_dim=6, norm_num_groups=4)
    randomise(layer, generator)
    x = torch.randn(2, 8, 3, 5, generator=generator)
    context = torch.randn(2, n, 6, generator=generator)
    with torch.no_grad():
        out = layer(x, context)
        changed = layer(x, torch.stack([context[0], -context[1]]))
    assert out.shape == x.shape
    assert torch.allclose(out[0], changed[0], atol=1e-6)
    assert (out[1] - changed[1]).abs().max() > 1e-3


def test_attention_starts_as_no_change(generator):
    layer = SpatialTransformer(8, num_heads=2, context_dim=6, norm_num_groups=4)
    x = torch.randn(2, 8, 4, 4, generator=generator)
    assert torch.equal(layer(x, torch.randn(2, 3, 6, generator=generator)), x)
    assert torch.equal(SelfAttention2d(8, num_heads=2, norm_num_groups=4)(x), x)


def test_transformer_block_is_three_residual_steps(generator):
    block = TransformerBlock(8, num_heads=2, context_dim=6)
    x = torch.randn(2, 5, 8, generator=generator)
    context = torch.randn(2, 3, 6, generator=generator)
    with torch.no_grad():
        y = x + block.self_attention(block.norm_1(x))
        y = y + block.cross_attention(block.norm_2(y), context)
        y = y + block.feed_forward(block.norm_3(y))
        assert torch.allclose(block(x, context), y, atol=1e-6)


def test_downsample_and_upsample_change_the_size_by_two():
    x = torch.randn(2, 4, 6, 10)
    assert Downsample(4)(x).shape == (2, 4, 3, 5)
    assert Upsample(4)(x).shape == (2, 4, 12, 20)


def test_upsample_repeats_pixels_before_it_convolves(generator):
    layer = Upsample(3)
    x = torch.randn(1, 3, 4, 4, generator=generator)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(repeated, layer.conv.weight, layer.conv.bias, padding=1)
    assert torch.allclose(layer(x), expected, atol=1e-6)
