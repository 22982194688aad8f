"""Chapters 4, 8 and 11: from noise to images. The loop is a generator: watch it at any step."""

from collections.abc import Iterator
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minisd.device import Generators, draw_noise
from minisd.schedulers import Scheduler
from minisd.threads import threads_for
from minisd.unet import UNet


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
    generator: Generators = None,
    context: Tensor | None = None,
) -> Iterator[DenoisingState]:
    """Turn pure noise x (b,c,h,w) into samples, yielding the state after every network call.

    The scheduler may be one of diffusers', too. Raises ValueError for a number of steps that it
    does not allow.
    """
    scheduler.set_timesteps(num_inference_steps, device=x.device)
    x = x * scheduler.init_noise_sigma
    yield from denoise_from(unet, scheduler, scheduler.timesteps, x, generator, context)


def denoise_from(
    unet: nn.Module,
    scheduler: Scheduler,
    timesteps: Tensor,
    x: Tensor,
    generator: Generators = None,
    context: Tensor | None = None,
) -> Iterator[DenoisingState]:
    """Take x (b,c,h,w), which is at the first of these timesteps, through all of them."""
    draws = "generator" in signature(scheduler.step).parameters  # not all of diffusers' do
    settings = {"generator": generator} if draws else {}
    for t in timesteps:
        with torch.no_grad(), threads_for(unet, x):
            prediction = unet(scheduler.scale_model_input(x, t), t, context)
        output = scheduler.step(prediction, t, x, **settings)
        x = output.prev_sample
        yield DenoisingState(t, x, getattr(output, "pred_original_sample", None))


def sample(
    unet: UNet,
    scheduler: Scheduler,
    n: int,
    num_inference_steps: int = 50,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> Iterator[Tensor]:
    """Draw n images of the U-Net's own size, yielding batches (b,c,h,w) of at most `batch_size`.

    A generator on the CPU draws the same noise for every device. Raises ValueError if n or the
    number of steps is not positive.
    """
    if n < 1:
        raise ValueError(f"the number of images must be at least 1, got {n}")
    config, device = unet.config, next(unet.parameters()).device
    for start in range(0, n, batch_size):
        shape = (min(batch_size, n - start), config.in_channels, *[config.sample_size] * 2)
        x = draw_noise(shape, generator, device)
        for state in denoise(unet, scheduler, x, num_inference_steps, generator):
            x = state.x
        yield x


class ClassifierFreeGuidance(nn.Module):
    """A U-Net that exaggerates what the context changes: eps_null + s (eps - eps_null).

    Ho and Salimans 2022, eq. 6, with s = 1 + w. Scale 1 is the plain network; a higher scale
    follows the prompt more closely. It is called as the U-Net is, with a context (b,n,d).
    `null_context` (1 or b,n,d) is the context of the empty prompt, or of a negative prompt.
    """

    def __init__(self, unet: nn.Module, null_context: Tensor, guidance_scale: float):
        super().__init__()
        self.unet = unet
        self.null_context = null_context
        self.guidance_scale = guidance_scale

    def forward(self, x: Tensor, t: Tensor | int, context: Tensor) -> Tensor:
        t = torch.as_tensor(t, device=x.device).expand(len(x))
        null_context = self.null_context.expand_as(context)
        both = torch.cat([null_context, context])  # (2b,n,d): one call for both
        uncond, cond = self.unet(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return uncond + self.guidance_scale * (cond - uncond)
