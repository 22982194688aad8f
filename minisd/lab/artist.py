"""Chapters 4 to 11: one way to draw with any trained model of the book, by its name."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minisd.conditioning import label_context
from minisd.data.images import Picture
from minisd.device import check_precision, draw_noise
from minisd.files import read_json
from minisd.maps import MapPipeline
from minisd.pipeline import ClassifierFreeGuidance, DenoisingState, denoise
from minisd.pretrained import locate
from minisd.request import Request
from minisd.schedulers import SAMPLERS, load_scheduler
from minisd.stable_diffusion import INDEX, StableDiffusionPipeline
from minisd.unet import UNet

PIPELINES = {kind.__name__: kind for kind in (StableDiffusionPipeline, MapPipeline)}
MAX_BATCH = 256  # pictures
MAX_PIXELS = 2**20  # of a batch: 256 postcards, or 4 pictures of 512 x 512
LARGE = 256**2  # pixels of a picture from which on the decoder takes one at a time


class Artist:
    """A trained model and its scheduler: a U-Net without prompts, with labels, words, or maps.

    `sampler` is one of SAMPLERS, by default the model's own; `dtype` and `variant` are those of
    `from_pretrained`. Raises ValueError for a model that is not there or does not draw.
    """

    def __init__(
        self,
        model: str,
        sampler: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        variant: str | None = None,
    ):
        self.model, self.device = model, torch.device(device)
        check_precision(self.device, dtype)
        self.pipeline: StableDiffusionPipeline | None = None
        settings, subfolder = {"torch_dtype": dtype, "variant": variant}, ""
        index = locate(model, "", (INDEX,)) / INDEX
        if index.is_file():
            kind = PIPELINES.get(str(read_json(index).get("_class_name")), StableDiffusionPipeline)
            self.pipeline, subfolder = kind.from_pretrained(model, **settings), "scheduler"
            self.unet = self.pipeline.to(self.device).unet
        else:
            self.unet = UNet.from_pretrained(model, **settings).to(self.device)
        own = load_scheduler(model, subfolder)
        clip = {} if self.pipeline is None else {"clip_sample": False}  # latents have no range
        self.scheduler = SAMPLERS[sampler].from_config(own.config | clip) if sampler else own
        self.sampler = next(name for name, kind in SAMPLERS.items() if kind is type(self.scheduler))
        if self.pipeline is not None:
            self.pipeline.scheduler = self.scheduler
            if self.pixels >= LARGE:
                self.pipeline.enable_vae_slicing()

    def states(
        self,
        prompts: Sequence[str] | None,
        n: int,
        steps: int,
        generator: torch.Generator,
        guidance: float = 4.0,
        maps: Tensor | None = None,
        **settings: Any,
    ) -> Iterator[DenoisingState]:
        """Draw n pictures at once, one for each prompt, and yield the state after each step.

        `maps` are (n,h,w); `settings` are other fields of `Request`. Raises ValueError for what the
        model cannot read.
        """
        self.check_prompts(prompts, n, settings.get("negative_prompt", ""))
        if maps is not None:
            if not isinstance(self.pipeline, MapPipeline):
                raise ValueError(f"{self.model} does not read maps")
            if len(maps) != n:
                raise ValueError(f"{n} pictures have {len(maps)} maps")
            settings["semantic_map"] = maps
        settings |= dict(num_inference_steps=steps, guidance_scale=guidance, generator=generator)
        if self.pipeline is not None:
            return self.pipeline.denoise(prompts, **settings)
        if settings.get("image") is not None or settings.get("mask") is not None:
            raise ValueError(f"{self.model} does not draw from pictures")
        request = Request([""] * n if prompts is None else prompts, **settings)
        unet, context = (self.unet, None) if prompts is None else self.labelled(request)
        c, dtype = self.unet.config, next(self.unet.parameters()).dtype
        shape = (n, c.in_channels, c.sample_size, c.sample_size)
        x = draw_noise(shape, generator, self.device, dtype)
        return denoise(unet, self.scheduler, x, steps, generator, context)

    def labelled(self, request: Request) -> tuple[nn.Module, Tensor]:
        """Return the U-Net, with its guidance, and the context of a request for labels."""
        context = self.labels(request.prompts)
        if request.guidance_scale == 1:
            return self.unet, context
        if request.negative_prompt:
            null_context = self.labels(request.negative_prompts)
        else:
            null_context = torch.zeros_like(context[:1])
        return ClassifierFreeGuidance(self.unet, null_context, request.guidance_scale), context

    def decode(
        self, x: Tensor, image: Picture | None = None, mask: Picture | None = None
    ) -> Tensor:
        """Return what the model draws in (b,c,h,w) as images in [-1,1].

        With a `mask`, what is black in it keeps the pixels of `image`. Raises FloatingPointError
        for numbers that are not finite.
        """
        if self.pipeline is not None:
            return 2 * self.pipeline.decode(x, image, mask) - 1
        if not x.isfinite().all():
            raise FloatingPointError(f"{self.model} drew NaN or infinity: choose another dtype")
        return x.float()

    def draw(
        self,
        prompts: Sequence[str] | None,
        n: int,
        steps: int,
        generator: torch.Generator,
        guidance: float = 4.0,
        maps: Tensor | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> Iterator[Tensor]:
        """Yield batches (b,c,h,w) of the n pictures, in [-1,1] and on the CPU; see `states`.

        By default a batch has as many pictures as MAX_BATCH and MAX_PIXELS allow.
        """
        batch_size = batch_size or max(1, min(MAX_BATCH, MAX_PIXELS // self.pixels))
        for start in range(0, n, batch_size):
            rows = slice(start, min(start + batch_size, n))
            part = None if prompts is None else prompts[rows]
            layout = None if maps is None else maps[rows]
            *_, last = self.states(
                part, rows.stop - start, steps, generator, guidance, layout, **settings
            )
            yield self.decode(last.x, settings.get("image"), settings.get("mask")).cpu()

    def check_prompts(
        self, prompts: Sequence[str] | None, n: int, negative: str | Sequence[str]
    ) -> None:
        """Raise ValueError unless there are as many prompts as the model needs."""
        if self.unet.config.context_dim is None:
            if prompts is not None or negative:
                raise ValueError(f"{self.model} takes no prompt: leave it out")
        elif prompts is None:
            raise ValueError(f"{self.model} needs a prompt: what should it draw?")
        elif len(prompts) != n:
            raise ValueError(f"{n} pictures have {len(prompts)} prompts")

    @property
    def pixels(self) -> int:
        """How many pixels a picture has."""
        down = 1 if self.pipeline is None else self.pipeline.vae.config.downscale
        return (self.unet.config.sample_size * down) ** 2

    @property
    def example(self) -> str | None:
        """A prompt that the model can read, None if it takes none."""
        if self.unet.config.context_dim is None:
            return None
        return "0" if self.pipeline is None else "a temple at sunset"

    def labels(self, prompts: Sequence[str]) -> Tensor:
        """Read prompts that are labels, (b,1,classes); raises ValueError for anything else."""
        n = self.unet.config.context_dim or 0  # at 0, no label is known
        for prompt in prompts:
            if not prompt.isdecimal() or int(prompt) >= n:
                raise ValueError(f"{self.model} draws the labels 0 to {n - 1}, not {prompt!r}")
        labels = torch.tensor([*map(int, prompts)], device=self.device)
        return label_context(labels, n).to(next(self.unet.parameters()).dtype)
