"""Chapter 10: attention maps: how much each place of the picture attends to each word."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.layers import Attention, TransformerBlock


def attention_weights(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(head_dim)) of x (b,n,dim) and context (b,m,d): (b,heads,n,m).

    `Attention` uses the same numbers, but never holds them in memory.
    """
    q, k = (
        rearrange(tokens, "b n (h d) -> b h n d", h=attention.num_heads)
        for tokens in (attention.to_q(x), attention.to_k(context))
    )
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)


@contextmanager
def record_attention(unet: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the cross-attention weights of a U-Net while the `with` block runs.

    At every call each cross-attention adds the mean of its weights over the heads, (b,h,w,m). The
    pictures must be square.
    """
    maps: list[Tensor] = []

    @torch.no_grad()
    def keep(attention: Attention, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        weights = attention_weights(attention, *inputs).mean(dim=1)
        maps.append(rearrange(weights, "b (h w) m -> b h w m", h=math.isqrt(weights.shape[1])))

    blocks = [module for module in unet.modules() if isinstance(module, TransformerBlock)]
    hooks = [block.cross_attention.register_forward_hook(keep) for block in blocks]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def word_maps(maps: list[Tensor], size: int) -> Tensor:
    """Average recorded maps (b,h,w,m) of any sizes into one picture per token, (b,m,size,size)."""
    resized = [
        F.interpolate(rearrange(each, "b h w m -> b m h w"), size, mode="bilinear") for each in maps
    ]
    return torch.stack(resized).mean(dim=0)
