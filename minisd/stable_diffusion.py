"""Chapter 10: Stable Diffusion as one object: three networks, a tokenizer and a scheduler."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from minisd.clip import CLIPTextModel
from minisd.device import draw_noise
from minisd.editing import img2img, paste
from minisd.files import read_json, writable_folder, write_json
from minisd.pipeline import ClassifierFreeGuidance, DenoisingState, denoise
from minisd.pretrained import check_format, locate
from minisd.schedulers import Scheduler, load_scheduler
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from minisd.vae import AutoencoderKL

INDEX = "model_index.json"
LORA = "pytorch_lora_weights.safetensors"
Picture = Image.Image | Tensor
OutputType = Literal["pil", "np", "pt", "latent"]


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
        self.vae_slicing = False
        self.offload_device: torch.device | None = None
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

        A safety checker or a LoRA in the folder is not loaded, with a notice. Raises ValueError for
        another kind of pipeline, and for anything that is missing or does not fit.
        """
        folder = locate(name, "", (INDEX,))
        if (folder / LORA).is_file():
            if not (folder / INDEX).is_file():
                raise ValueError(f"{name} holds a LoRA ({LORA}) and no model: minisd loads none")
            warnings.warn(f"{LORA} of {name} is not loaded: minisd has no LoRA", stacklevel=2)
        index = read_json(folder / INDEX)
        if index.get("_class_name") != cls.__name__:
            raise ValueError(f"{name} holds a {index.get('_class_name')}, not a {cls.__name__}")
        for part, (_, kind) in ((k, v) for k, v in index.items() if isinstance(v, list)):
            if part not in (*cls.parts, "scheduler", "feature_extractor") and kind is not None:
                said = f"{part} ({kind}) of {name} is not loaded: minisd has none"
                warnings.warn(said, stacklevel=2)
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
        check_format(format)
        folder = writable_folder(folder)
        (folder / INDEX).unlink(missing_ok=True)  # until all is written, the folder is no pipeline
        self.tokenizer.save_pretrained(folder / "tokenizer", format)
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
        """Where the networks compute."""
        return self.offload_device or next(self.unet.parameters()).device

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

    def enable_vae_slicing(self) -> None:
        """Decode pictures one by one, for cards on which a whole batch does not fit."""
        self.vae_slicing = True

    def enable_model_cpu_offload(self, device: torch.device | str = "cuda") -> None:
        """Keep the networks on the CPU, each on `device` from when it computes until another does.

        The card then needs room for the U-Net alone; each picture waits for the transfers.
        """
        self.offload_device, self.on_card = torch.device(device), None
        for network in (self.text_encoder, self.vae.encoder, self.unet, self.vae.decoder):
            network.to("cpu").register_forward_pre_hook(self.bring)
        for layer in (self.vae.quant_conv, self.vae.post_quant_conv):  # 100 numbers: they stay
            layer.to(device)

    def bring(self, network: nn.Module, _: Any) -> None:
        """Move a network to the card, and back the one that was there; see offloading."""
        if network is not self.on_card:
            if self.on_card is not None:
                self.on_card.to("cpu")
            self.on_card = network.to(self.offload_device)

    @torch.no_grad()
    def encode_prompt(self, prompts: str | Sequence[str]) -> Tensor:
        """Return one state per token, (b,n,d), of one prompt or several.

        What is too long for the text encoder is cut off, with a notice that shows it.
        """
        prompts = prompts if isinstance(prompts, list | tuple) else [prompts]
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
        image: Picture | None = None,
        strength: float = 0.8,
        mask: Picture | None = None,
    ) -> Iterator[DenoisingState]:
        """Yield the state after every step: timestep, latents, and the expected clean latents.

        The arguments are those of a call. Raises ValueError for what does not fit.
        """
        prompts = prompt if isinstance(prompt, list | tuple) else [prompt]
        negatives = (
            negative_prompt if isinstance(negative_prompt, list | tuple) else [negative_prompt]
        )
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, got {guidance_scale}")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be positive, got {num_images_per_prompt}")
        if len(negatives) not in (1, len(prompts)):
            raise ValueError(f"{len(prompts)} prompts have {len(negatives)} negative prompts")
        context = self.encode_prompt(prompts).repeat_interleave(num_images_per_prompt, dim=0)
        empty = self.encode_prompt(negatives)
        if len(empty) > 1:
            empty = empty.repeat_interleave(num_images_per_prompt, dim=0)
        unet = self.unet
        if guidance_scale != 1:
            unet = ClassifierFreeGuidance(unet, empty, guidance_scale)
        if image is None:
            if mask is not None:
                raise ValueError("a mask needs an image, of which it says what to draw anew")
            shape = self.latent_shape(len(context), height, width)
            noise = self.make_noise(shape, generator, latents)
            yield from denoise(unet, self.scheduler, noise, num_inference_steps, generator, context)
            return
        x_start = self.encode_image(image, generator).expand(len(context), -1, -1, -1)
        if mask is not None:
            mask = self.latent_mask(mask, x_start)
        noise = self.make_noise(x_start.shape, generator, latents)
        yield from img2img(
            unet, self.scheduler, x_start, noise, num_inference_steps, strength, generator,
            context, mask,
        )  # fmt: skip

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
        image: Picture | None = None,
        strength: float = 0.8,
        mask: Picture | None = None,
    ) -> PipelineOutput:
        """Draw `num_images_per_prompt` pictures for each prompt.

        `height` and `width` are in pixels, by default those of training. `guidance_scale` 1 does
        without guidance; above it, the picture keeps away from `negative_prompt`. `latents`
        (b,c,h/8,w/8) are the noise to begin with, in place of a draw from `generator`. Images are
        PIL, or in [0,1] as `np` (b,h,w,3) or `pt` (b,3,h,w); `latent` stops before the decoder.

        With an `image` (PIL, or a tensor (3,h,w) in [0,1]) the pictures are variations of it, in
        its size, and the wilder the higher `strength`; with a `mask` (PIL, or (h,w) in [0,1]) only
        what is white in it is drawn anew, and what is black keeps its pixels (among `latent`, the
        places of which no pixel is white). Raises ValueError for what does not fit.
        """
        if output_type not in get_args(OutputType):
            known = ", ".join(get_args(OutputType))
            raise ValueError(f"unknown output_type {output_type!r}; choose from {known}")
        states = self.denoise(
            prompt, negative_prompt, height, width, num_inference_steps, guidance_scale,
            num_images_per_prompt, generator, latents, image, strength, mask,
        )  # fmt: skip
        for state in tqdm(states, unit="step", delay=2, leave=False):
            latents = state.x
        if output_type == "latent":
            return PipelineOutput(latents)
        return PipelineOutput(as_type(self.decode(latents, image, mask), output_type))

    @torch.no_grad()
    def decode(
        self, latents: Tensor, image: Picture | None = None, mask: Picture | None = None
    ) -> Tensor:
        """Return the images (b,3,h,w) in [0,1] of latents (b,c,h/8,w/8).

        With a `mask`, what is black in it are the pixels of `image`: the decoder would change them.
        """
        parts = latents.split(1) if self.vae_slicing else [latents]
        images = torch.cat([self.vae.decode(part).float() for part in parts])
        images = (images / 2 + 0.5).clamp(0, 1)
        if mask is None:
            return images
        return paste(images, as_tensor(image, "RGB"), as_tensor(mask, "L"))

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
        return b, self.vae.config.latent_channels, height // down, width // down

    def make_noise(
        self, shape: tuple[int, ...], generator: torch.Generator | None, latents: Tensor | None
    ) -> Tensor:
        """Draw noise, or check and take the latents that were given for it."""
        if latents is None:
            latents = draw_noise(shape, generator, self.device, self.dtype)
        if latents.ndim != 4 or latents.shape[:2] != shape[:2]:
            b, c = shape[:2]
            raise ValueError(f"latents must be ({b}, {c}, h, w), got {tuple(latents.shape)}")
        if not latents.isfinite().all():
            raise ValueError("latents must be finite numbers, got NaN or infinity")
        return latents.to(self.device, self.dtype)

    @torch.no_grad()
    def encode_image(self, image: Picture, generator: torch.Generator | None = None) -> Tensor:
        """Return the latents (1,c,h/8,w/8) of an image; with a generator they are drawn."""
        pixels = as_tensor(image, "RGB").to(self.device, self.dtype)
        self.latent_shape(1, *pixels.shape[2:])  # raises ValueError for a size that does not fit
        return self.vae.encode(2 * pixels - 1, generator)

    def latent_mask(self, mask: Picture, latents: Tensor) -> Tensor:
        """Return 1 for every place of the latents of which a pixel is to be drawn, (1,1,h/8,w/8).

        Raises ValueError for a mask of another size than the image, or one that is empty.
        """
        white = (as_tensor(mask, "L") >= 0.5).to(latents)
        size = [side * self.vae.config.downscale for side in latents.shape[2:]]
        if list(white.shape[2:]) != size:
            raise ValueError(f"the mask must be as large as the image, {size[1]} x {size[0]}")
        if not white.any():
            raise ValueError("the mask is empty: what is to be drawn must be white in it")
        return F.max_pool2d(white, self.vae.config.downscale)


# what diffusers and transformers call our classes
FOREIGN = {"UNet": "UNet2DConditionModel", "Tokenizer": "CLIPTokenizer"}


def as_tensor(picture: Picture, mode: str) -> Tensor:
    """Return a picture as (1,c,h,w) in [0,1]; PIL's are converted to `mode`, "RGB" or "L".

    A tensor may be (c,h,w), (1,c,h,w), or (h,w) if there is one channel. Raises ValueError for any
    other, for numbers outside [0,1], and for pictures of PIL with more than 8 bits a channel.
    """
    channels = len(mode)
    if isinstance(picture, Image.Image):
        if picture.mode[0] in "IF":  # PIL would cut off what is above 255
            raise ValueError(f"a picture must have 8 bits a channel, this one is {picture.mode}")
        array = np.asarray(picture.convert(mode), dtype="float32") / 255
        return torch.from_numpy(array).view(1, *picture.size[::-1], channels).permute(0, 3, 1, 2)
    if not isinstance(picture, Tensor) or picture.ndim not in (2, 3, 4):
        raise ValueError(f"a picture must be a PIL image or a tensor, got {type(picture).__name__}")
    picture = picture.reshape(-1, *picture.shape[-2:])[None]
    if picture.shape[1] != channels or not (0 <= picture.min() and picture.max() <= 1):
        raise ValueError(
            f"a picture must have {channels} channels in [0,1], got {tuple(picture.shape[1:])} "
            f"from {picture.min():.2g} to {picture.max():.2g}"
        )
    return picture.float()


def as_type(images: Tensor, output_type: OutputType) -> list[Image.Image] | np.ndarray | Tensor:
    """Return images (b,c,h,w) in [0,1] as PIL images, as an array (b,h,w,c), or as they are."""
    if output_type == "pt":
        return images
    array = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return array
    return [Image.fromarray(picture) for picture in (array * 255).round().astype("uint8")]
