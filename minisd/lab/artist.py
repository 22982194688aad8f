"""Chapters 4 to 11: one way to draw with any trained model of the book, by its name."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minisd.conditioning import label_context
from minisd.device import draw_noise
from minisd.files import read_json
from minisd.maps import MapPipeline
from minisd.pipeline import ClassifierFreeGuidance, DenoisingState, denoise
from minisd.pretrained import locate
from minisd.schedulers import SAMPLERS, load_scheduler
from minisd.stable_diffusion import INDEX, StableDiffusionPipeline
from minisd.unet import UNet

PIPELINES = {kind.__name__: kind for kind in (StableDiffusionPipeline, MapPipeline)}


class Artist:
    """A trained model and its scheduler: a U-Net without prompts, with labels, words, or maps.

    `sampler` is one of SAMPLERS, by default the model's own. Raises ValueError for a model that is
    not there or does not draw.
    """

    def __init__(self, model: str, sampler: str | None = None, device: torch.device | str = "cpu"):
        self.model, self.device = model, torch.device(device)
        self.pipeline, subfolder = None, ""
        index = locate(model, "", (INDEX,)) / INDEX
        if index.is_file():
            kind = PIPELINES.get(str(read_json(index).get("_class_name")), StableDiffusionPipeline)
            self.pipeline, subfolder = kind.from_pretrained(model), "scheduler"
            self.unet = self.pipeline.to(self.device).unet
        else:
            self.unet = UNet.from_pretrained(model).to(self.device)
        own = load_scheduler(model, subfolder)
        clip = {} if self.pipeline is None else {"clip_sample": False}  # latents have no range
        self.scheduler = SAMPLERS[sampler].from_config(own.config | clip) if sampler else own
        self.sampler = next(name for name, kind in SAMPLERS.items() if kind is type(self.scheduler))

    def states(
        self,
        prompts: Sequence[str] | None,
        n: int,
        steps: int,
        generator: torch.Generator,
        guidance: float = 4.0,
        negative: str = "",
        maps: Tensor | None = None,
        **editing: Any,
    ) -> Iterator[DenoisingState]:
        """Draw n pictures at once, one for each prompt, and yield the state after each step.

        Guidance takes them away from `negative`; `maps` (n,h,w) say what is to be where; `editing`
        is `image`, `strength` and `mask` of StableDiffusionPipeline. Raises ValueError for what the
        model cannot read.
        """
        self.check_maps(maps, n)
        self.check_prompts(prompts, n, negative)
        if self.pipeline is not None:
            pipeline = self.pipeline if maps is None else self.pipeline.reading(maps)
            pipeline.scheduler = self.scheduler
            yield from pipeline.denoise(
                prompts, negative, None, None, steps, guidance, 1, generator, **editing
            )
            return
        if editing:
            raise ValueError(f"{self.model} does not draw from pictures")
        c, unet, context = self.unet.config, self.unet, None
        if prompts is not None:
            context = self.labels(prompts)
            empty = self.labels([negative]) if negative else torch.zeros_like(context[:1])
            if guidance != 1:
                unet = ClassifierFreeGuidance(unet, empty, guidance)
        shape = (n, c.in_channels, c.sample_size, c.sample_size)
        x = draw_noise(shape, generator, self.device)
        yield from denoise(unet, self.scheduler, x, steps, generator, context)

    def decode(self, x: Tensor, **editing: Any) -> Tensor:
        """Return what the model draws in (b,c,h,w) as images in [-1,1].

        With a `mask` among `editing`, what is black in it are the pixels of its `image`.
        """
        if self.pipeline is None:
            return x
        return 2 * self.pipeline.decode(x, editing.get("image"), editing.get("mask")) - 1

    def draw(
        self,
        prompts: Sequence[str] | None,
        n: int,
        steps: int,
        generator: torch.Generator,
        guidance: float = 4.0,
        negative: str = "",
        batch_size: int = 256,
        maps: Tensor | None = None,
        **editing: Any,
    ) -> Iterator[Tensor]:
        """Yield batches (b,c,h,w) of the n pictures, in [-1,1] and on the CPU."""
        for start in range(0, n, batch_size):
            b = min(batch_size, n - start)
            part, layout = (
                each if each is None else each[start : start + b] for each in (prompts, maps)
            )
            for state in self.states(
                part, b, steps, generator, guidance, negative, layout, **editing
            ):
                x = state.x
            yield self.decode(x, **editing).cpu()

    def check_prompts(self, prompts: Sequence[str] | None, n: int, negative: str) -> None:
        """Raise ValueError unless there are as many prompts as the model needs."""
        if self.unet.config.context_dim is None:
            if prompts is not None or negative:
                raise ValueError(f"{self.model} takes no prompt: it draws what it likes")
        elif prompts is None:
            raise ValueError(f"{self.model} needs a prompt: what should it draw?")
        elif len(prompts) != n:
            raise ValueError(f"{n} pictures have {len(prompts)} prompts")

    def check_maps(self, maps: Tensor | None, n: int) -> None:
        """Raise ValueError unless the model reads maps, if there are any, one for each picture."""
        if maps is not None and not isinstance(self.pipeline, MapPipeline):
            raise ValueError(f"{self.model} does not read maps")
        if maps is not None and len(maps) != n:
            raise ValueError(f"{n} pictures have {len(maps)} maps")

    @property
    def example(self) -> str | None:
        """A prompt that the model can read, None if it takes none."""
        if self.unet.config.context_dim is None:
            return None
        return "0" if self.pipeline is None else "a temple at sunset"

    def labels(self, prompts: Sequence[str]) -> Tensor:
        """Read prompts that are labels, (b,1,classes); raises ValueError for anything else."""
        n = self.unet.config.context_dim
        for prompt in prompts:
            if not prompt.isdecimal() or int(prompt) >= n:
                raise ValueError(f"{self.model} draws the labels 0 to {n - 1}, not {prompt!r}")
        return label_context(torch.tensor([*map(int, prompts)], device=self.device), n)
