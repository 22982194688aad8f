"""Chapter 3: the layers from which every network of this book is made."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Embed timesteps (b,) as cosines, then sines, of falling frequencies: (b, dim).

    The positional encoding of Vaswani et al. 2017, section 3.5, in the order of Stable Diffusion.
    Raises ValueError if `dim` is odd.
    """
    if dim % 2:
        raise ValueError(f"the embedding dimension must be even, got {dim}")
    half = dim // 2
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(exponents / half)  # (b, half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Tell the network which noise level it is looking at: t (b,) -> emb (b, emb_dim)."""

    def __init__(self, dim: int, emb_dim: int):
        super().__init__()
        self.dim = dim
        self.linear_1 = nn.Linear(dim, emb_dim)
        self.linear_2 = nn.Linear(emb_dim, emb_dim)

    def forward(self, t: Tensor) -> Tensor:
        emb = timestep_embedding(t, self.dim).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(emb)))


def zero(layer: nn.Module) -> nn.Module:
    """Start a layer (weight and bias) at zero, so that a residual branch begins as no change.

    Ho et al. 2020 do so in their code; Rombach et al. 2022 kept it.
    """
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResnetBlock(nn.Module):
    """Two convolutions, the time embedding added between them, and a shortcut around both.

    x (b, in_channels, h, w), emb (b, emb_dim) -> (b, out_channels, h, w). Ho et al. 2020, app. B.
    Without an `emb_dim` it takes no emb: the block of a network that knows no time.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int | None,
        norm_num_groups: int = 8,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        self.norm_1 = nn.GroupNorm(norm_num_groups, in_channels, norm_eps)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(emb_dim, out_channels) if emb_dim else None
        self.norm_2 = nn.GroupNorm(norm_num_groups, out_channels, norm_eps)
        self.conv_2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        if emb is not None:  # without a time_proj, a TypeError
            h = h + self.time_proj(F.silu(emb))[:, :, None, None]  # pyright: ignore[reportOptionalCall]
        h = self.conv_2(F.silu(self.norm_2(h)))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Multi-head attention: softmax(q k^T / sqrt(head_dim)) v. Vaswani et al. 2017, eq. 1.

    x (b,n,dim) asks; context (b,m,context_dim) answers; returns (b,n,dim). Without a context, x
    answers itself. If `causal`, no position sees a later one. Raises ValueError if `dim` is not
    divisible by `num_heads`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        context_dim: int | None = None,
        qkv_bias: bool = False,
        causal: bool = False,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be split evenly over {num_heads} heads")
        self.num_heads = num_heads
        self.causal = causal
        self.to_q = nn.Linear(dim, dim, bias=qkv_bias)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=qkv_bias)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=qkv_bias)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            rearrange(tokens, "b n (h d) -> b h n d", h=self.num_heads)
            for tokens in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # (b,h,n,d)
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class NoAttention(nn.Module):
    """Leave x (b,c,h,w) as it is; the level where attention would cost too much."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x


class SelfAttention2d(nn.Module):
    """Let every position of x (b,c,h,w) look at every other; without words, `context` is unused."""

    def __init__(
        self, channels: int, num_heads: int, norm_num_groups: int = 8, norm_eps: float = 1e-5
    ):
        super().__init__()
        self.norm = nn.GroupNorm(norm_num_groups, channels, norm_eps)
        self.attention = Attention(channels, num_heads, qkv_bias=True)
        zero(self.attention.to_out)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        tokens = self.attention(tokens)
        return x + rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])


class GEGLU(nn.Module):
    """A linear layer whose second half gates its first (Shazeer 2020): (b,n,dim) -> (b,n,out)."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward: x (b,n,dim) -> (b,n,dim)."""

    def __init__(self, dim: int, num_heads: int, context_dim: int):
        super().__init__()
        self.norm_1 = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, num_heads)
        self.norm_2 = nn.LayerNorm(dim)
        self.cross_attention = Attention(dim, num_heads, context_dim)
        self.norm_3 = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(GEGLU(dim, 4 * dim), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.self_attention(self.norm_1(x))
        x = x + self.cross_attention(self.norm_2(x), context)
        return x + self.feed_forward(self.norm_3(x))


class SpatialTransformer(nn.Module):
    """Let an image (b,c,h,w) read a context (b,n,context_dim). Rombach et al. 2022, app. E.2.1."""

    def __init__(self, channels: int, num_heads: int, context_dim: int, norm_num_groups: int = 8):
        super().__init__()
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.block = TransformerBlock(channels, num_heads, context_dim)
        self.proj_out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        tokens = self.block(tokens.contiguous(), context)  # copied once here, not in every layer
        return x + self.proj_out(rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Halve height and width with a strided convolution: (b,c,h,w) -> (b,c,h/2,w/2).

    Called like the blocks that it stands between; it needs neither the time nor the context.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(
        self, x: Tensor, emb: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width, nearest neighbour then convolution: (b,c,h,w) -> (b,c,2h,2w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
