"""What several test files share."""

import itertools
from dataclasses import replace

import torch

from minisd import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    Tokenizer,
    UNet,
    UNetConfig,
    VAEConfig,
)

KINDS = (
    DDPMScheduler,
    DDIMScheduler,
    PNDMScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    DPMSolverMultistepScheduler,
)
TINY_SD15 = {  # v1.5 with as many layers, a few channels wide
    "text_encoder": replace(CLIPTextConfig.SD15, dim=24, num_layers=2),
    "unet": replace(
        UNetConfig.SD15, sample_size=8, channels=(8, 8, 16, 16), norm_num_groups=4, num_heads=2,
        context_dim=24,
    ),
    "vae": replace(VAEConfig.SD15, channels=(8, 8, 8, 8), norm_num_groups=4),
}  # fmt: skip
SIGMA_SPACE = (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler)


def pairwise(combinations):
    """Keep so few of the combinations, tuples, that still every two values that meet there meet."""
    rows = {row: set(itertools.combinations(enumerate(row), 2)) for row in combinations}
    missing = set().union(*rows.values())
    while missing:
        row = max(rows, key=lambda row: len(rows[row] & missing))  # of several, the first
        missing -= rows[row]
        yield row


def randomise(model, generator=None):
    """Move every parameter off its start: no fault must hide behind a zero."""
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:  # weights: keep the size of what flows through
                p.copy_(noise / p[0].numel() ** 0.5)
            else:
                p.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
    return model


def tiny_pipeline(kind=StableDiffusionPipeline, extra_channels=0):
    """A pipeline of tiny random networks, 32x32 pixels, that reads the words of postcards.

    Its U-Net has so many more input channels than the latents; a map of four labels needs 64.
    """
    tokenizer = Tokenizer.from_pretrained("tokenizer-postcards")
    text = CLIPTextConfig(tokenizer.vocab_size, 33, 12, 1, 2, tokenizer.eos_token_id)
    parts = (
        CLIPTextModel(text),
        UNet(UNetConfig(8, 4 + extra_channels, 4, (8, 8), (True, False), 1, 2, 4, context_dim=12)),
        AutoencoderKL(VAEConfig(32, 3, 4, (8, 8), 1, 4, patch_size=2, scaling_factor=0.5)),
    )
    generator = torch.Generator().manual_seed(0)
    parts = [randomise(part, generator).eval() for part in parts]
    return kind(tokenizer, *parts, DPMSolverMultistepScheduler())
