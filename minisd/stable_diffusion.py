"""Chapter 10: Stable Diffusion as one object: three networks, a tokenizer and a scheduler."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minisd.clip import CLIPTextModel
from minisd.data.images import OUTPUT_TYPES, OutputType, Picture, as_tensor, as_type
from minisd.device import Generators, check_precision, draw_noise
from minisd.editing import img2img, paste
from minisd.files import read_json, writable_folder, write_json
from minisd.pipeline import ClassifierFreeGuidance, DenoisingState, denoise
from minisd.pretrained import check_format, locate
from minisd.progress import progress
from minisd.request import Request
from minisd.schedulers import Scheduler, load_scheduler
from minisd.threads import threads_for
from minisd.tokenizer import Tokenizer, as_list
from minisd.unet import UNet
from minisd.vae import AutoencoderKL

INDEX = "model_index.json"
LORA = "pytorch_lora_weights.safetensors"
# what diffusers and transformers call our classes
FOREIGN = {"UNet": "UNet2DConditionModel", "Tokenizer": "CLIPTokenizer"}


@dataclass
class PipelineOutput:
    """What a pipeline made: a list of PIL images, or an array or tensor of the type asked for."""

    images: list[Image.Image] | np.ndarray | Tensor


class StableDiffusionPipeline:
    """From words to pictures: tokenizer, text encoder, U-Net, scheduler and decoder in one.

    The folder of one holds `model_index.json`, and each part in a subfolder of its name. Rombach
    et al. 2022, fig. 3. Raises ValueError if the parts do not fit each other.
    """

    request_class: ClassVar[type[Request]] = Request
    extra_channels = 0  # input channels of the U-Net beside those of the latents
    parts: ClassVar[dict[str, Any]] = {
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
        self.on_card: nn.Module | None = None  # the network that is there, of those offloaded
        for what, a, b in (
            ("text", text_encoder.config.dim, unet.config.context_dim),
            ("vocabulary", tokenizer.vocab_size, text_encoder.config.vocab_size),
            ("latent", vae.config.latent_channels, unet.config.in_channels - self.extra_channels),
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
        """The device that the networks compute on."""
        return self.offload_device or next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the networks compute in."""
        return next(self.unet.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the networks to a device, or to another precision, as torch's `to` does.

        Raises ValueError for float16 on a CPU, where it is slow and inexact.
        """
        number = torch.empty(1, 1, 1, 1, device=self.device, dtype=self.dtype).to(*args, **kwargs)
        check_precision(number.device, number.dtype)  # before a network moves
        for network in (self.text_encoder, self.unet, self.vae):
            network.to(*args, **kwargs)
        return self

    def enable_vae_slicing(self) -> None:
        """Decode pictures one by one, for cards on which a whole batch does not fit."""
        self.vae_slicing = True

    def enable_model_cpu_offload(self, device: torch.device | str = "cuda") -> None:
        """Keep the networks on the CPU, and bring each to `device` when it computes.

        It stays there until another network computes. The card then needs room for the U-Net alone,
        and each picture waits for the transfers.
        """
        self.offload_device = torch.device(device)
        for network in (self.text_encoder, self.vae.encoder, self.unet, self.vae.decoder):
            network.to("cpu").register_forward_pre_hook(self.bring)
        for layer in (self.vae.quant_conv, self.vae.post_quant_conv):  # 100 numbers: they stay
            layer.to(device)

    def bring(self, network: nn.Module, _: Any) -> None:
        """Move a network to the card, and the one that was there back to the CPU."""
        if network is not self.on_card:
            if self.on_card is not None:
                self.on_card.to("cpu")
            self.on_card = network.to(self.offload_device)

    @torch.no_grad()
    def encode_prompt(self, prompts: str | Sequence[str]) -> Tensor:
        """Return one state per token, (b,n,d), of one prompt or several.

        What is too long for the text encoder is cut off, with a notice that shows it.
        """
        prompts = as_list(prompts)
        ids = self.tokenizer(prompts)
        room = ids.shape[1] - 2  # start and end
        for prompt in prompts:
            beyond = self.tokenizer.encode(prompt)[room:]
            if beyond:
                rest = self.tokenizer.decode(beyond)
                warnings.warn(f"only {room} tokens are read, not this: {rest!r}", stacklevel=2)
        ids = ids.to(self.device)
        with threads_for(self.text_encoder, ids[:, None]):  # (b,1,n): a text has n places
            return self.text_encoder(ids)

    def denoise(self, *arguments: Any, **settings: Any) -> Iterator[DenoisingState]:
        """Yield the state after every step: timestep, latents, and the expected clean latents.

        The arguments are those of `Request`. Raises ValueError for what does not fit.
        """
        return self.run(self.request_class(*arguments, **settings))

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        image: Picture | None = None,
        strength: float = 0.8,
        mask: Picture | None = None,
        **more: Any,
    ) -> PipelineOutput:
        """Draw `num_images_per_prompt` pictures for each prompt.

        `height` and `width` are in pixels, by default those of training. `guidance_scale` 1 is no
        guidance; above 1, the picture keeps away from `negative_prompt`. `generator` draws the
        noise; of a list of generators, each draws that of one picture. `latents` (b,c,h/8,w/8) are
        used as the first noise instead. Images are PIL, or in [0,1] as `np` (b,h,w,3) or `pt`
        (b,3,h,w); `latent` stops before the decoder.

        With an `image` (PIL, or a tensor (3,h,w) in [0,1]) the pictures are variations of it in its
        size; the higher `strength`, up to 1, the less of it is left. With a `mask` (PIL, or (h,w)
        in [0,1]) only what is white in it is drawn anew, and what is black keeps its pixels (of
        `latent`, the places without a white pixel). Raises ValueError for what does not fit.
        """
        if output_type not in OUTPUT_TYPES:
            known = ", ".join(OUTPUT_TYPES)
            raise ValueError(f"unknown output_type {output_type!r}; choose from {known}")
        request = self.request_class(
            prompt, negative_prompt, height, width, num_inference_steps, guidance_scale,
            num_images_per_prompt, generator, latents, image, strength, mask, **more,
        )  # fmt: skip
        *_, last = progress(self.run(request), unit="step", delay=2, leave=False)
        if output_type == "latent":
            return PipelineOutput(last.x)
        return PipelineOutput(as_type(self.decode(last.x, image, mask), output_type))

    def run(self, request: Request) -> Iterator[DenoisingState]:
        """Begin what is asked for, and yield the state after every step."""
        check_precision(self.device, self.dtype)
        shape, generator = self.latent_shape_of(request), request.generator
        copies = request.num_images_per_prompt
        unet = self.denoiser(request)
        context = self.encode_prompt(request.prompts).repeat_interleave(copies, dim=0)
        if request.guidance_scale != 1:
            null_context = self.encode_prompt(request.negative_prompts)
            if len(null_context) > 1:
                null_context = null_context.repeat_interleave(copies, dim=0)
            unet = ClassifierFreeGuidance(unet, null_context, request.guidance_scale)
        steps, scheduler = request.num_inference_steps, self.scheduler
        if request.image is None:
            noise = self.make_noise(shape, generator, request.latents)
            return denoise(unet, scheduler, noise, steps, generator, context)
        x_start = self.encode_image(request.image, generator).expand(shape)
        mask = None if request.mask is None else self.latent_mask(request.mask, x_start)
        noise = self.make_noise(shape, generator, request.latents)
        return img2img(
            unet, scheduler, x_start, noise, steps, request.strength, generator, context, mask
        )

    def denoiser(self, request: Request) -> nn.Module:
        """Return the network that removes the noise: the U-Net, with what else it is to see."""
        return self.unet

    @torch.no_grad()
    def decode(
        self, latents: Tensor, image: Picture | None = None, mask: Picture | None = None
    ) -> Tensor:
        """Return the images (b,3,h,w) in [0,1] of latents (b,c,h/8,w/8).

        With a `mask`, what is black in it are the pixels of `image`: the decoder would change them.
        """
        parts = latents.split(1) if self.vae_slicing else [latents]
        images = torch.cat([self.decode_finite(part) for part in parts])
        images = (images / 2 + 0.5).clamp(0, 1)
        if image is None or mask is None:
            return images
        return paste(images, as_tensor(image, "RGB"), as_tensor(mask, "L"))

    def decode_finite(self, latents: Tensor) -> Tensor:
        """Decode to [-1,1] in float32; where half precision overflows, decode again without it.

        Raises FloatingPointError if the latents or the images are no finite numbers.
        """
        dtype = next(self.vae.parameters()).dtype
        if not latents.isfinite().all():
            raise FloatingPointError(
                f"the latents are not finite: {dtype} may be too narrow for this U-Net; load the "
                "pipeline with another torch_dtype"
            )
        with threads_for(self.vae, latents):
            images = self.vae.decode(latents).float()
        if not images.isfinite().all() and dtype != torch.float32:
            warnings.warn(f"the decoder overflows in {dtype}: it runs in float32", stacklevel=2)
            try:
                images = self.vae.float().decode(latents.float())
            finally:
                self.vae.to(dtype)
        if not images.isfinite().all():
            raise FloatingPointError("the decoder returned NaN or infinity: its weights are broken")
        return images

    def latent_shape(
        self, b: int, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int, int]:
        """Return the shape of the latents of b pictures of that size in pixels."""
        down = self.vae.config.downscale
        default, multiple = self.unet.config.sample_size * down, self.unet.config.downscale * down
        height = default if height is None else height
        width = default if width is None else width
        if height % multiple or width % multiple or min(height, width) < 1:
            raise ValueError(
                f"height and width must be multiples of {multiple}, got {height} and {width}"
            )
        return b, self.vae.config.latent_channels, height // down, width // down

    def latent_shape_of(self, request: Request) -> tuple[int, int, int, int]:
        """Return the shape of the latents that are asked for; an image or latents have a size.

        Raises ValueError if that is not the height and width of the request.
        """
        b, c = request.num_images, self.vae.config.latent_channels
        height, width, sizes = request.height, request.width, {}
        if request.image is not None:
            sizes["image"] = as_tensor(request.image, "RGB").shape[2:]
        if (latents := request.latents) is not None:
            if latents.ndim != 4 or latents.shape[:2] != (b, c):
                raise ValueError(f"latents must be ({b}, {c}, h, w), got {tuple(latents.shape)}")
            sizes["latents"] = [side * self.vae.config.downscale for side in latents.shape[2:]]
        for what, (h, w) in sizes.items():
            if height not in (None, h) or width not in (None, w):
                raise ValueError(
                    f"height and width are {height} and {width}, but the size of the {what} is "
                    f"{h} and {w} pixels: leave height and width out, or change one of them"
                )
            height, width = h, w
        return self.latent_shape(b, height, width)

    def make_noise(
        self, shape: tuple[int, ...], generator: Generators, latents: Tensor | None
    ) -> Tensor:
        """Return the latents that were given as noise, or draw noise of that shape."""
        if latents is None:
            return draw_noise(shape, generator, self.device, self.dtype)
        if not latents.isfinite().all():
            raise ValueError("latents must be finite numbers, got NaN or infinity")
        return latents.to(self.device, self.dtype)

    @torch.no_grad()
    def encode_image(self, image: Picture, generator: Generators = None) -> Tensor:
        """Return the latents (1,c,h/8,w/8) of an image; with a generator they are drawn.

        With a list of generators each draws its own, (b,c,h/8,w/8).
        """
        pixels = 2 * as_tensor(image, "RGB").to(self.device, self.dtype) - 1
        draws = generator if isinstance(generator, Sequence) else [generator]
        with threads_for(self.vae.encoder, pixels):
            return torch.cat([self.vae.encode(pixels, each) for each in draws])

    def latent_mask(self, mask: Picture, latents: Tensor) -> Tensor:
        """Return 1 for every place of the latents with a white pixel in the mask, (1,1,h/8,w/8).

        Raises ValueError for a mask of another size than the image, or one without white.
        """
        white = (as_tensor(mask, "L") >= 0.5).to(latents)
        size = [side * self.vae.config.downscale for side in latents.shape[2:]]
        if list(white.shape[2:]) != size:
            raise ValueError(f"the mask must be as large as the image, {size[1]} x {size[0]}")
        if not white.any():
            raise ValueError("the mask is empty: what is to be drawn must be white in it")
        return F.max_pool2d(white, self.vae.config.downscale)
