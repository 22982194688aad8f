"""Chapters 4, 8 and 10: from noise to images. The denoising loop is a generator: watch any step."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from minisd.clip import CLIPTextModel
from minisd.files import read_json, writable_folder, write_json
from minisd.pretrained import locate
from minisd.schedulers import SCHEDULERS, Scheduler
from minisd.schedulers.base import CONFIG_FILE
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import AutoencoderKL

INDEX = "model_index.json"
OutputType = Literal["pil", "np", "pt", "latent"]


class DenoisingState(NamedTuple):
    """Where the loop stands after one step."""

    t: Tensor  # the timestep that was just left
    x: Tensor  # the images now, one step less noisy, (b,c,h,w)
    x_start: Tensor | None  # the clean images expected at t; None if the scheduler does not say


def denoise(
    unet: nn.Module,
    scheduler: Scheduler,
    x: Tensor,
    num_inference_steps: int,
    generator: torch.Generator | None = None,
    context: Tensor | None = None,
) -> Iterator[DenoisingState]:
    """Turn pure noise x (b,c,h,w) into samples, yielding the state after every network call.

    The scheduler may be one of diffusers', too. Raises ValueError for a number of steps that it
    does not allow.
    """
    draws = "generator" in signature(scheduler.step).parameters  # not all of diffusers' do
    settings = {"generator": generator} if draws else {}
    scheduler.set_timesteps(num_inference_steps, device=x.device)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        with torch.no_grad():
            prediction = unet(scheduler.scale_model_input(x, t), t, context)
        output = scheduler.step(prediction, t, x, **settings)
        x = output.prev_sample
        yield DenoisingState(t, x, getattr(output, "pred_original_sample", None))


def sample(
    unet: nn.Module,
    scheduler: Scheduler,
    n: int,
    num_inference_steps: int = 50,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
) -> Iterator[Tensor]:
    """Draw n images of the U-Net's own size, yielding batches (b,c,h,w) of at most `batch_size`.

    Raises ValueError if n or the number of steps is not positive.
    """
    if n < 1:
        raise ValueError(f"the number of images must be at least 1, got {n}")
    config, device = unet.config, next(unet.parameters()).device
    if generator is not None and generator.device.type != device.type:
        raise ValueError(f"the generator is on {generator.device}, the model on {device}")
    for start in range(0, n, batch_size):
        shape = (min(batch_size, n - start), config.in_channels, *[config.sample_size] * 2)
        x = torch.randn(shape, generator=generator, device=device)
        for state in denoise(unet, scheduler, x, num_inference_steps, generator):
            x = state.x
        yield x


class ClassifierFreeGuidance(nn.Module):
    """A U-Net that exaggerates what the context changes: eps_empty + s (eps - eps_empty).

    Ho and Salimans 2022, eq. 6, with s = 1 + w: 1 leaves the network as it is, more obeys more.
    It is called as the U-Net is, with a context (b,n,d); `empty` (1 or b,n,d) is what it says to
    say nothing, or what to keep away from.
    """

    def __init__(self, unet: nn.Module, empty: Tensor, guidance_scale: float):
        super().__init__()
        self.unet = unet
        self.empty = empty
        self.guidance_scale = guidance_scale

    def forward(self, x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        t = torch.as_tensor(t, device=x.device).expand(len(x))
        both = torch.cat([self.empty.expand_as(context), context])  # (2b,n,d): one call for both
        uncond, cond = self.unet(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return uncond + self.guidance_scale * (cond - uncond)


@dataclass
class PipelineOutput:
    """What a pipeline made: a list of PIL images, or an array or tensor of the type asked for."""

    images: list[Image.Image] | np.ndarray | Tensor


class StableDiffusionPipeline:
    """From words to pictures: tokenizer, text encoder, U-Net, scheduler and decoder in one.

    The folder of one holds `model_index.json`, and each part in a subfolder of its name. Rombach
    et al. 2022, fig. 3. Raises ValueError if the parts do not fit each other.
    """

    parts = {
        "tokenizer": Tokenizer, "text_encoder": CLIPTextModel, "unet": UNet, "vae": AutoencoderKL,
    }  # fmt: skip

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: CLIPTextModel,
        unet: UNet,
        vae: AutoencoderKL,
        scheduler: Scheduler,
    ):
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.unet = unet
        self.vae = vae
        self.scheduler = scheduler
        for what, a, b in (
            ("text", text_encoder.config.dim, unet.config.context_dim),
            ("vocabulary", tokenizer.vocab_size, text_encoder.config.vocab_size),
            ("latent", vae.config.latent_channels, unet.config.in_channels),
        ):
            if a != b:
                raise ValueError(f"the parts do not fit: {what} size {a} meets {b}")

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        torch_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
    ) -> Self:
        """Load a folder, a bundled checkpoint or a hub id; see `Pretrained.from_pretrained`.

        A safety checker in the folder is not loaded, with a notice. Raises ValueError for another
        kind of pipeline, and for anything that is missing or does not fit.
        """
        index = read_json(locate(name, "", (INDEX,)) / INDEX)
        if index.get("_class_name") != cls.__name__:
            raise ValueError(f"{name} holds a {index.get('_class_name')}, not a {cls.__name__}")
        for part, (_, kind) in ((k, v) for k, v in index.items() if isinstance(v, list)):
            if part not in (*cls.parts, "scheduler", "feature_extractor") and kind is not None:
                warnings.warn(f"{part} ({kind}) of {name} is not loaded", stacklevel=2)
        settings = {"torch_dtype": torch_dtype, "variant": variant}
        loaded = {
            part: kind.from_pretrained(name, part, **({} if kind is Tokenizer else settings))
            for part, kind in cls.parts.items()
        }
        return cls(**loaded, scheduler=load_scheduler(name, "scheduler"))

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, format: str = "minisd"
    ) -> None:
        """Write every part into its subfolder and then `model_index.json`.

        `dtype` and `format` as in `Pretrained.save_pretrained`.
        """
        folder = writable_folder(folder)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        for part in ("text_encoder", "unet", "vae"):
            getattr(self, part).save_pretrained(folder / part, dtype, format)
        self.scheduler.save_pretrained(folder / "scheduler")
        library = {"text_encoder": "transformers", "tokenizer": "transformers"}
        index: dict[str, Any] = {"_class_name": type(self).__name__}
        for part in (*self.parts, "scheduler"):
            kind = type(getattr(self, part)).__name__
            index[part] = [library.get(part, "diffusers"), FOREIGN.get(kind, kind)]
        write_json(folder / INDEX, index)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """In what the networks compute."""
        return next(self.unet.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the networks to a device, or to another precision, as torch's `to` does.

        Raises ValueError for float16 on a CPU, where it is slow and inexact.
        """
        for network in (self.text_encoder, self.unet, self.vae):
            network.to(*args, **kwargs)
        if self.device.type == "cpu" and self.dtype == torch.float16:
            raise ValueError("float16 needs a GPU: on a CPU use float32 or bfloat16")
        return self

    @torch.no_grad()
    def encode_prompt(self, prompts: str | Sequence[str]) -> Tensor:
        """Return one state per token, (b,n,d), of one prompt or several.

        What is too long for the text encoder is cut off, with a notice that shows it.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = self.tokenizer(prompts)
        room = ids.shape[1] - 2  # start and end
        for prompt in prompts:
            beyond = self.tokenizer.encode(prompt)[room:]
            if beyond:
                rest = self.tokenizer.decode(beyond)
                warnings.warn(f"only {room} tokens are read, not this: {rest!r}", stacklevel=2)
        return self.text_encoder(ids.to(self.device))

    def denoise(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
    ) -> Iterator[DenoisingState]:
        """Yield the state after every step: timestep, latents, and the expected clean latents.

        The arguments are those of a call. Raises ValueError for what does not fit.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be positive, got {num_images_per_prompt}")
        if len(negatives) not in (1, len(prompts)):
            raise ValueError(f"{len(prompts)} prompts have {len(negatives)} negative prompts")
        context = self.encode_prompt(prompts).repeat_interleave(num_images_per_prompt, dim=0)
        empty = self.encode_prompt(negatives)
        if len(empty) > 1:
            empty = empty.repeat_interleave(num_images_per_prompt, dim=0)
        if latents is None:
            shape = self.latent_shape(len(context), height, width)
            where = generator.device if generator is not None else self.device
            latents = torch.randn(shape, generator=generator, device=where)
        self.check_latents(latents, len(context))
        unet = self.unet
        if guidance_scale != 1:
            unet = ClassifierFreeGuidance(unet, empty, guidance_scale)
        latents = latents.to(self.device, self.dtype)
        yield from denoise(unet, self.scheduler, latents, num_inference_steps, generator, context)

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
    ) -> PipelineOutput:
        """Draw `num_images_per_prompt` pictures for each prompt.

        `height` and `width` are in pixels, by default those of training. `guidance_scale` 1 does
        without guidance; above it, the picture keeps away from `negative_prompt`. `latents`
        (b,c,h/8,w/8) are the noise to begin with, in place of a draw from `generator`. Images are
        PIL, or in [0,1] as `np` (b,h,w,3) or `pt` (b,3,h,w); `latent` stops before the decoder.
        Raises ValueError for what does not fit.
        """
        if output_type not in get_args(OutputType):
            known = ", ".join(get_args(OutputType))
            raise ValueError(f"unknown output_type {output_type!r}; choose from {known}")
        states = self.denoise(
            prompt, negative_prompt, height, width, num_inference_steps, guidance_scale,
            num_images_per_prompt, generator, latents,
        )  # fmt: skip
        for state in tqdm(states, total=num_inference_steps, unit="step", delay=2, leave=False):
            latents = state.x
        if output_type == "latent":
            return PipelineOutput(latents)
        return PipelineOutput(as_type(self.decode(latents), output_type))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (b,3,h,w) in [0,1] of latents (b,c,h/8,w/8)."""
        return (self.vae.decode(latents).float() / 2 + 0.5).clamp(0, 1)

    def latent_shape(self, b: int, height: int | None, width: int | None) -> tuple[int, ...]:
        """Return the shape of the latents of b pictures of that size in pixels."""
        default = self.unet.config.sample_size * self.vae.config.downscale
        height, width = height or default, width or default
        multiple = self.vae.config.downscale * self.unet.config.downscale
        if height % multiple or width % multiple or min(height, width) < 1:
            raise ValueError(
                f"height and width must be multiples of {multiple}, got {height} and {width}"
            )
        down = self.vae.config.downscale
        return b, self.unet.config.in_channels, height // down, width // down

    def check_latents(self, latents: Tensor, b: int) -> None:
        """Raise ValueError unless latents are (b,c,h/8,w/8) and finite."""
        c = self.unet.config.in_channels
        if latents.ndim != 4 or latents.shape[:2] != (b, c):
            raise ValueError(f"latents must be ({b}, {c}, h, w), got {tuple(latents.shape)}")
        if not latents.isfinite().all():
            raise ValueError("latents must be finite numbers, got NaN or infinity")


# what diffusers and transformers call our classes
FOREIGN = {"UNet": "UNet2DConditionModel", "Tokenizer": "CLIPTokenizer"}


def load_scheduler(name: str | Path, subfolder: str = "") -> Scheduler:
    """Load a scheduler of the kind that it was saved as; raises ValueError for an unknown kind."""
    kind = read_json(locate(name, subfolder, (CONFIG_FILE,)) / CONFIG_FILE).get("_class_name")
    if kind not in SCHEDULERS:
        raise ValueError(f"{name}: unknown scheduler {kind!r}; minisd has {', '.join(SCHEDULERS)}")
    return SCHEDULERS[kind].from_pretrained(name, subfolder)


def as_type(images: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    """Return images (b,c,h,w) in [0,1] as PIL images, as an array (b,h,w,c), or as they are."""
    if output_type == "pt":
        return images
    array = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return array
    return [Image.fromarray(picture) for picture in (array * 255).round().astype("uint8")]
