"""minisd: Stable Diffusion, built, trained and measured on a laptop.

The package of the book. Each module's first line names the chapter that builds it.
"""

from minisd.clip import (
    CLIP,
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    VisionTransformer,
)
from minisd.exercises import check
from minisd.full_size import random_sd15
from minisd.schedulers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from minisd.stable_diffusion import StableDiffusionPipeline
from minisd.tokenizer import Tokenizer, TokenizerConfig
from minisd.unet import UNet, UNetConfig
from minisd.vae import AutoencoderKL, VAEConfig

__all__ = [
    "AutoencoderKL",
    "CLIP",
    "CLIPConfig",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPVisionConfig",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "PNDMScheduler",
    "StableDiffusionPipeline",
    "Tokenizer",
    "TokenizerConfig",
    "UNet",
    "UNetConfig",
    "VAEConfig",
    "VisionTransformer",
    "check",
    "random_sd15",
]
