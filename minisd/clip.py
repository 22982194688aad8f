"""Chapter 7: CLIP, two transformers that place words and pictures in one space.

Chapter 6 builds the one that reads; it is also what tells latent diffusion what to draw.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.configs import check_fields
from minisd.layers import Attention
from minisd.pretrained import Pretrained
from minisd.weights import CLIP_TEXT_FORMAT


def check_sizes(config: "CLIPTextConfig | CLIPVisionConfig", *any_integer: str) -> None:
    """Check the fields as `check_fields` does, and that the heads share the width evenly."""
    check_fields(config, *any_integer)
    if config.dim % config.num_heads:
        raise ValueError(
            f"dim must be a multiple of num_heads ({config.num_heads}), got {config.dim}"
        )


@dataclass(frozen=True)
class CLIPTextConfig:
    """The sizes of a text transformer; by default, a small one.

    `eos_token_id` is where a text ends and its meaning is read. Raises ValueError for sizes that do
    not fit.
    """

    vocab_size: int = 1000
    max_length: int = 32
    dim: int = 192
    num_layers: int = 3
    num_heads: int = 6
    eos_token_id: int = 999

    SD15: ClassVar["CLIPTextConfig"]

    def __post_init__(self):
        check_sizes(self, "eos_token_id")
        if self.eos_token_id not in range(self.vocab_size):
            raise ValueError(
                f"eos_token_id must be 0 to {self.vocab_size - 1}, got {self.eos_token_id!r}"
            )


CLIPTextConfig.SD15 = CLIPTextConfig(
    vocab_size=49_408, max_length=77, dim=768, num_layers=12, num_heads=12, eos_token_id=49_407
)


@dataclass(frozen=True)
class CLIPVisionConfig:
    """The sizes of a vision transformer; by default, a small one.

    With a `stem`, convolutions of these widths halve the image before it is cut into patches, once
    each. With a `layout`, what the patches say is also read field by field, on a grid of `layout`
    by `layout`. Raises ValueError for sizes that do not fit.
    """

    image_size: int = 64
    patch_size: int = 8
    in_channels: int = 3
    dim: int = 192
    num_layers: int = 3
    num_heads: int = 6
    stem: tuple[int, ...] = ()
    layout: int = 0

    def __post_init__(self):
        check_sizes(self, "layout")
        if self.patch_size % 2 ** len(self.stem) or any(width % 8 for width in self.stem):
            raise ValueError(
                f"a stem needs widths that are multiples of 8 and a patch_size that is a multiple "
                f"of {2 ** len(self.stem)}, got {self.stem} and {self.patch_size}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size ({self.patch_size}), "
                f"got {self.image_size}"
            )
        if not 0 <= self.layout <= self.image_size // self.patch_size:
            raise ValueError(
                f"layout must be 0 to the number of patches in a row "
                f"({self.image_size // self.patch_size}), got {self.layout}"
            )


@dataclass(frozen=True)
class CLIPConfig:
    """Both towers, and the width `embed_dim` of the space in which they meet."""

    text: CLIPTextConfig = CLIPTextConfig()
    vision: CLIPVisionConfig = CLIPVisionConfig()
    embed_dim: int = 128

    def __post_init__(self):
        check_fields(self)


class QuickGELU(nn.Module):
    """CLIP's activation: x sigmoid(1.702 x), nearly GELU. Hendrycks and Gimpel 2016, section 2."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class EncoderBlock(nn.Module):
    """Attention, then a feed-forward network, each normalised first and added: (b,n,dim) -> same.

    Radford et al. 2021, section 2.4; the order of GPT-2 and of the vision transformer.
    """

    def __init__(self, dim: int, num_heads: int, causal: bool):
        super().__init__()
        self.norm_1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads, qkv_bias=True, causal=causal)
        self.norm_2 = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), QuickGELU(), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class CLIPTextModel(Pretrained, nn.Module):
    """Read a text: ids (b,n) -> one state per token (b,n,dim), each knowing the tokens before it.

    This is the context of Stable Diffusion's U-Net. Radford et al. 2021, section 2.4. Raises
    ValueError for ids that are too many, no integers, or outside the vocabulary.
    """

    config_class = CLIPTextConfig
    config: CLIPTextConfig
    diffusers_format = CLIP_TEXT_FORMAT

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.dim)
        self.position_embedding = nn.Embedding(config.max_length, config.dim)
        self.blocks = nn.Sequential(
            *(EncoderBlock(config.dim, config.num_heads, True) for _ in range(config.num_layers))
        )
        self.norm_out = nn.LayerNorm(config.dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        self.check_inputs(ids)
        x = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]  # (b,n,d)
        return self.norm_out(self.blocks(x))

    def pool(self, states: Tensor, ids: Tensor) -> Tensor:
        """Return the state at the first end token, which has read all: (b,n,d), (b,n) -> (b,d).

        Raises ValueError if a text has no end token.
        """
        is_end = ids == self.config.eos_token_id
        if not is_end.any(dim=1).all():
            raise ValueError(f"every text must hold the end token {self.config.eos_token_id}")
        first = is_end.int().argmax(dim=1)
        return states[torch.arange(len(states), device=states.device), first]

    def check_inputs(self, ids: Tensor) -> None:
        """Raise ValueError that says what is wrong with ids (b,n)."""
        c = self.config
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= c.max_length:
            raise ValueError(f"ids must be (b, 1 to {c.max_length}), got {tuple(ids.shape)}")
        if ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"ids must be integers, got {ids.dtype}")
        if len(ids) and (ids.min() < 0 or ids.max() >= c.vocab_size):
            raise ValueError(
                f"ids must be 0 to {c.vocab_size - 1}, got {int(ids.min())} to {int(ids.max())}; "
                "were they made by the tokenizer of this model?"
            )


def make_patch_embedding(config: CLIPVisionConfig) -> nn.Sequential:
    """Return what turns an image into one vector per patch, (b,c,h,w) -> (b,dim,h/p,w/p).

    One linear map of the patch (Dosovitskiy et al. 2021, eq. 1), after a stem if there is one: it
    makes the transformer learn faster (Xiao et al. 2021).
    """
    layers, width = [], config.in_channels
    for channels in config.stem:
        halve = nn.Conv2d(width, channels, 3, stride=2, padding=1)
        layers += [halve, nn.GroupNorm(8, channels), nn.SiLU()]
        width = channels
    patch = config.patch_size // 2 ** len(config.stem)
    return nn.Sequential(*layers, nn.Conv2d(width, config.dim, patch, stride=patch, bias=False))


class VisionTransformer(nn.Module):
    """Look at an image as a row of patches: (b,c,h,w) in [-1,1] -> what it shows, (b,dim).

    A class token, put before the patches, gathers the answer. Dosovitskiy et al. 2021, section 3.1,
    with one more norm before the blocks (Radford et al. 2021, section 2.4). A layout adds what is
    where. Raises ValueError for an image of another size.
    """

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.config = config
        num_patches = (config.image_size // config.patch_size) ** 2
        self.patch_embedding = make_patch_embedding(config)
        self.class_embedding = nn.Parameter(config.dim**-0.5 * torch.randn(config.dim))
        self.position_embedding = nn.Embedding(num_patches + 1, config.dim)
        self.norm_in = nn.LayerNorm(config.dim)
        self.blocks = nn.Sequential(
            *(EncoderBlock(config.dim, config.num_heads, False) for _ in range(config.num_layers))
        )
        self.norm_out = nn.LayerNorm(config.dim)
        if config.layout:
            self.read_layout = nn.Linear(config.layout**2 * config.dim, config.dim, bias=False)
        nn.init.normal_(self.position_embedding.weight, std=config.dim**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        c = self.config
        if images.ndim != 4 or images.shape[1:] != (c.in_channels, c.image_size, c.image_size):
            raise ValueError(
                f"images must be (b, {c.in_channels}, {c.image_size}, {c.image_size}), "
                f"got {tuple(images.shape)}"
            )
        patches = rearrange(self.patch_embedding(images), "b d h w -> b (h w) d")
        first = self.class_embedding.expand(len(images), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.position_embedding.weight  # (b,1+hw,d)
        x = self.norm_out(self.blocks(self.norm_in(x)))
        if not c.layout:
            return x[:, 0]
        patches = rearrange(x[:, 1:], "b (h w) d -> b d h w", h=c.image_size // c.patch_size)
        fields = F.adaptive_avg_pool2d(patches, c.layout)
        return x[:, 0] + self.read_layout(fields.flatten(1))


class CLIP(Pretrained, nn.Module):
    """Compare images (b,c,h,w) with texts (m,n): logits (b,m), high where they belong together.

    Cosine similarities, times a learned scale of at most 100. Radford et al. 2021, section 2.3.
    """

    config_class = CLIPConfig
    config: CLIPConfig

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.text_model = CLIPTextModel(config.text)
        self.vision_model = VisionTransformer(config.vision)
        self.text_projection = nn.Linear(config.text.dim, config.embed_dim, bias=False)
        self.image_projection = nn.Linear(config.vision.dim, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # Wu et al. 2018

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        scale = self.logit_scale.clamp(max=math.log(100)).exp()
        return scale * self.encode_image(images) @ self.encode_text(ids).T

    def encode_image(self, images: Tensor) -> Tensor:
        """Return embeddings of length one: (b,c,h,w) in [-1,1] -> (b,embed_dim)."""
        return F.normalize(self.image_projection(self.vision_model(images)), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Return embeddings of length one: (b,n) -> (b,embed_dim)."""
        states = self.text_model.pool(self.text_model(ids), ids)
        return F.normalize(self.text_projection(states), dim=-1)
