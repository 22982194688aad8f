import torch
from einops import rearrange
from helpers import randomise

from minisd import UNet, UNetConfig
from minisd.attention_maps import attention_weights, record_attention, word_maps
from minisd.layers import Attention

WORDS = UNetConfig(8, 2, 2, (8, 8), (True, True), 1, 2, 4, context_dim=6)


def test_the_weights_are_those_that_attention_uses():
    attention = randomise(Attention(8, 2, 6))
    x, context = torch.randn(3, 5, 8), torch.randn(3, 7, 6)
    weights = attention_weights(attention, x, context)
    assert weights.shape == (3, 2, 5, 7)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(3, 2, 5))
    v = rearrange(attention.to_v(context), "b n (h d) -> b h n d", h=2)
    out = attention.to_out(rearrange(weights @ v, "b h n d -> b n (h d)"))
    assert (out - attention(x, context)).abs().max() < 1e-5


def test_every_cross_attention_is_recorded_and_nothing_changes():
    unet = randomise(UNet(WORDS)).eval()
    x, context = torch.randn(2, 2, 8, 8), torch.randn(2, 4, 6)
    expected = unet(x, 3, context)
    with record_attention(unet) as maps:
        assert torch.equal(unet(x, 3, context), expected)
    assert [tuple(each.shape) for each in maps] == [
        (2, size, size, 4) for size in (8, 4, 4, 4, 4, 8, 8)
    ]
    assert not any(each.requires_grad for each in maps)
    unet(x, 3, context)
    assert len(maps) == 7  # and no more
    pictures = word_maps(maps, 16)
    assert pictures.shape == (2, 4, 16, 16)
    assert torch.allclose(pictures.sum(dim=1), torch.ones(2, 16, 16), atol=1e-5)
