"""minisd: Stable Diffusion, built, trained and measured on a laptop.

The package of the book. Where the code of each chapter lives:

    1  The big picture           stable_diffusion (used; chapter 10 builds it)
    2  Adding noise              schedules
    3  The U-Net                 layers, unet
    4  Training a DDPM           schedulers.base, .ddpm, losses, training, checkpoints, pipeline,
                                 device, threads
    5  Schedulers                schedulers
    6  Tokens and transformers   tokenizer, layers, clip
    7  CLIP                      clip, losses, data.postcards
    8  Guidance                  conditioning, pipeline
    9  The autoencoder           vae, losses, optim
    10 Latent diffusion          conditioning, request, stable_diffusion, attention_maps
    11 More than text            editing, maps
    12 Measuring                 classifier, metrics, intervals, quality
    13 Growing up                pretrained, tensors, weights, configs, full_size
    14 Stable Diffusion v1.5     full_size, book.stage

`minisd.lab` holds the experiments (recipes, evaluation, scoreboard), `minisd.book` the machinery of
the book (figures, numbers in the prose), `minisd.data` the data, `minisd.exercises` the checkers.
"""

from typing import TYPE_CHECKING, Any

from minisd import moved, threads  # noqa: F401, I001  first: it decides how threads wait
from minisd.clip import (
    CLIP,
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    VisionTransformer,
)
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

if TYPE_CHECKING:
    from minisd.exercises import check

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


def __getattr__(name: str) -> Any:
    """Load the checkers of the exercises when `minisd.check` is first asked for."""
    if name != "check":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from minisd.exercises import check

    return check
