"""minisd: Stable Diffusion, built, trained and measured on a laptop.

The package of the book. Each module's first line names the chapter that builds it.
"""

from minisd.compat import declare_torchvision_operators

declare_torchvision_operators()  # before anything imports torchvision

from minisd.clip import (  # noqa: E402
    CLIP,
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    VisionTransformer,
)
from minisd.exercises import check  # noqa: E402
from minisd.full_size import random_sd15  # noqa: E402
from minisd.schedulers import (  # noqa: E402
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from minisd.stable_diffusion import StableDiffusionPipeline  # noqa: E402
from minisd.tokenizer import Tokenizer, TokenizerConfig  # noqa: E402
from minisd.unet import UNet, UNetConfig  # noqa: E402
from minisd.vae import AutoencoderKL, VAEConfig  # noqa: E402

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
