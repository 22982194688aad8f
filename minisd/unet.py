"""Chapter 3: one U-Net, from the 28x28 digits of Part I to Stable Diffusion v1.5."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.configs import check_fields
from minisd.layers import (
    Downsample,
    NoAttention,
    ResnetBlock,
    SelfAttention2d,
    SpatialTransformer,
    TimeEmbedding,
    Upsample,
)
from minisd.pretrained import Pretrained
from minisd.weights import UNET_FORMAT


@dataclass(frozen=True)
class UNetConfig:
    """The sizes of a U-Net.

    `channels` and `attention` have one entry per level, the highest resolution first. With a
    `context_dim` the attention also reads a context of that width (words); without one the
    positions of the image only look at each other. Raises ValueError for sizes that do not fit.
    """

    sample_size: int = 28
    in_channels: int = 1
    out_channels: int = 1
    channels: tuple[int, ...] = (32, 64, 128)
    attention: tuple[bool, ...] = (False, False, True)
    layers_per_block: int = 1
    num_heads: int = 2
    norm_num_groups: int = 8
    context_dim: int | None = None

    MNIST: ClassVar["UNetConfig"]
    MNIST_CLASSES: ClassVar["UNetConfig"]
    POSTCARDS: ClassVar["UNetConfig"]
    SD15: ClassVar["UNetConfig"]

    def __post_init__(self):
        check_fields(self)
        if not self.channels or len(self.channels) != len(self.attention):
            raise ValueError(
                "channels and attention need one entry per level, got "
                f"{len(self.channels)} and {len(self.attention)}"
            )
        for width in self.channels:
            if width % self.norm_num_groups or width % self.num_heads:
                raise ValueError(
                    f"every width must be a multiple of norm_num_groups ({self.norm_num_groups}) "
                    f"and of num_heads ({self.num_heads}), got {width}"
                )
        if self.channels[0] % 2:  # the time embedding has as many cosines as sines
            raise ValueError(f"the first width must be even, got {self.channels[0]}")
        if self.sample_size % self.downscale:
            raise ValueError(
                f"{len(self.channels)} levels halve the image {len(self.channels) - 1} times: "
                f"sample_size must be a multiple of {self.downscale}, got {self.sample_size}"
            )

    @property
    def downscale(self) -> int:
        """How many times smaller the lowest level is than the image."""
        return 2 ** (len(self.channels) - 1)


UNetConfig.MNIST = UNetConfig()
UNetConfig.MNIST_CLASSES = UNetConfig(context_dim=10)
UNetConfig.POSTCARDS = UNetConfig(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    channels=(64, 128),
    attention=(True, True),
    num_heads=4,
    context_dim=192,
)
UNetConfig.SD15 = UNetConfig(
    sample_size=64,
    in_channels=4,
    out_channels=4,
    channels=(320, 640, 1280, 1280),
    attention=(True, True, True, False),
    layers_per_block=2,
    num_heads=8,
    norm_num_groups=32,
    context_dim=768,
)


def make_attention(config: UNetConfig, width: int) -> nn.Module:
    """Return attention over `width` channels: with words if there is a context, else without."""
    if config.context_dim is None:
        return SelfAttention2d(width, config.num_heads, config.norm_num_groups)
    return SpatialTransformer(width, config.num_heads, config.context_dim, config.norm_num_groups)


class UNetBlock(nn.Module):
    """A residual block, attention, and at the end of an upward level a doubling of the size.

    x (b,c_in,h,w), emb (b,emb_dim), context (b,n,d) or None -> (b,c_out,h,w) or (b,c_out,2h,2w).
    """

    def __init__(self, resnet: ResnetBlock, attention: nn.Module, resample: nn.Module):
        super().__init__()
        self.resnet = resnet
        self.attention = attention
        self.resample = resample

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        return self.resample(self.attention(self.resnet(x, emb), context))


class MidBlock(nn.Module):
    """The bottom of the U: attention between two residual blocks, x (b,c,h,w) -> (b,c,h,w)."""

    def __init__(self, resnet_1: ResnetBlock, attention: nn.Module, resnet_2: ResnetBlock):
        super().__init__()
        self.resnet_1 = resnet_1
        self.attention = attention
        self.resnet_2 = resnet_2

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        return self.resnet_2(self.attention(self.resnet_1(x, emb), context), emb)


class UNet(Pretrained, nn.Module):
    """Predict, from a noisy image and its noise level, the noise in it (or x_0, or v).

    x (b,in_channels,h,w), t (b,) or a scalar, context (b,n,context_dim) or None ->
    (b,out_channels,h,w). Ho et al. 2020, app. B; Rombach et al. 2022, app. E.2.
    Raises ValueError for an image, time or context of the wrong shape.
    """

    config_class = UNetConfig
    config: UNetConfig
    diffusers_format = UNET_FORMAT

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        first, emb_dim = config.channels[0], 4 * config.channels[0]

        def resnet(in_channels: int, out_channels: int) -> ResnetBlock:
            return ResnetBlock(in_channels, out_channels, emb_dim, config.norm_num_groups)

        def attention(level: int) -> nn.Module:
            width = config.channels[level]
            return make_attention(config, width) if config.attention[level] else NoAttention()

        levels = range(len(config.channels))
        self.time_embedding = TimeEmbedding(first, emb_dim)
        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)

        skips, width = [first], first  # the widths that the way up will concatenate
        self.down = nn.ModuleList()
        for level in levels:
            for _ in range(config.layers_per_block):
                block = resnet(width, config.channels[level])
                self.down.append(UNetBlock(block, attention(level), nn.Identity()))
                width = config.channels[level]
                skips.append(width)
            if level != levels[-1]:
                self.down.append(Downsample(width))
                skips.append(width)

        self.mid = MidBlock(
            resnet(width, width), make_attention(config, width), resnet(width, width)
        )

        self.up = nn.ModuleList()
        for level in reversed(levels):
            for i in range(config.layers_per_block + 1):
                block = resnet(width + skips.pop(), config.channels[level])
                width = config.channels[level]
                upsample = i == config.layers_per_block and level != 0
                resample = Upsample(width) if upsample else nn.Identity()
                self.up.append(UNetBlock(block, attention(level), resample))

        self.norm_out = nn.GroupNorm(config.norm_num_groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor | int, context: Tensor | None = None) -> Tensor:
        t = self.check_inputs(x, t, context)
        emb = self.time_embedding(t)  # (b, emb_dim)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down:
            x = block(x, emb, context)
            skips.append(x)
        x = self.mid(x, emb, context)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, context)
        return self.conv_out(F.silu(self.norm_out(x)))

    def check_inputs(self, x: Tensor, t: Tensor | int, context: Tensor | None) -> Tensor:
        """Return t as (b,), or raise ValueError that says which input does not fit and why."""
        c = self.config
        if x.ndim != 4 or x.shape[1] != c.in_channels:
            raise ValueError(f"x must be (b, {c.in_channels}, h, w), got {tuple(x.shape)}")
        if x.shape[2] % c.downscale or x.shape[3] % c.downscale:
            raise ValueError(
                f"height and width must be multiples of {c.downscale}, got {tuple(x.shape[2:])}"
            )
        if (context is None) != (c.context_dim is None):
            need = f"a context (b, n, {c.context_dim})" if c.context_dim else "no context"
            raise ValueError(
                f"this U-Net takes {need}, got {context if context is None else 'one'}"
            )
        if context is not None and (
            context.ndim != 3 or (context.shape[0], context.shape[2]) != (x.shape[0], c.context_dim)
        ):
            raise ValueError(
                f"context must be ({x.shape[0]}, n, {c.context_dim}), got {tuple(context.shape)}"
            )
        t = torch.as_tensor(t, device=x.device)
        if t.shape not in ((), (1,), (x.shape[0],)):
            raise ValueError(f"t must be a scalar or ({x.shape[0]},), got {tuple(t.shape)}")
        return t.expand(x.shape[0])
