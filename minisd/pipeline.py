"""Chapters 4, 8 and 11: from noise to images. The loop is a generator: watch it at any step."""

from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minisd.schedulers import Scheduler
from minisd.unet import UNetConfig


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
    scheduler.set_timesteps(num_inference_steps, device=x.device)
    x = x * scheduler.init_noise_sigma
    yield from walk(unet, scheduler, scheduler.timesteps, x, generator, context)


def walk(
    unet: nn.Module,
    scheduler: Scheduler,
    timesteps: Tensor,
    x: Tensor,
    generator: torch.Generator | None = None,
    context: Tensor | None = None,
) -> Iterator[DenoisingState]:
    """Take x (b,c,h,w), which is at the first of these timesteps, through all of them."""
    draws = "generator" in signature(scheduler.step).parameters  # not all of diffusers' do
    settings = {"generator": generator} if draws else {}
    for t in timesteps:
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


class Concatenation(nn.Module):
    """A U-Net with more input channels than x has: it also sees `beside`, the same at every step.

    It is called as a U-Net without them is. `beside` is (b,c,h,w), one for each picture or one for
    all, or (1,c,1,1), the same at every place. Rombach et al. 2022, section 3.3. Raises ValueError
    for another size or number.
    """

    def __init__(self, unet: nn.Module, beside: Tensor):
        super().__init__()
        self.unet = unet
        self.beside = beside

    @property
    def config(self) -> UNetConfig:
        """The sizes of the U-Net that this one is like from outside."""
        config = self.unet.config
        return replace(config, in_channels=config.in_channels - self.beside.shape[1])

    def forward(self, x: Tensor, t: Tensor | int, context: Tensor | None = None) -> Tensor:
        size, grid = tuple(x.shape[2:]), tuple(self.beside.shape[2:])
        if grid not in (size, (1, 1)):
            raise ValueError(
                f"the picture has {size} places and what stands beside it {grid}: "
                "a map must be as large as its picture"
            )
        copies, rest = divmod(len(x), len(self.beside))  # guidance asks for each picture twice
        if rest or copies > 2 and len(self.beside) > 1:
            raise ValueError(f"{len(x)} pictures cannot share what is beside {len(self.beside)}")
        beside = self.beside.repeat(copies, 1, 1, 1).expand(-1, -1, *size)
        return self.unet(torch.cat([x, beside], dim=1), t, context)
