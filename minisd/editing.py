"""Chapter 11: begin from a picture: image to image, and inpainting."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from minisd.pipeline import DenoisingState, walk
from minisd.schedulers import Scheduler, StepOutput


def last_timesteps(scheduler: Scheduler, num_inference_steps: int, strength: float) -> Tensor:
    """Return the timesteps of the last part of the way, a share `strength` of the steps.

    Raises ValueError unless 0 < strength <= 1, and if no step is left.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    steps = int(num_inference_steps * strength)
    if not steps:
        raise ValueError(f"strength {strength} of {num_inference_steps} steps leaves no step")
    return scheduler.timesteps[(num_inference_steps - steps) * scheduler.order :]


def redraw(
    unet: nn.Module,
    scheduler: Scheduler,
    x_start: Tensor,
    noise: Tensor,
    num_inference_steps: int,
    strength: float,
    generator: torch.Generator | None = None,
    context: Tensor | None = None,
    mask: Tensor | None = None,
) -> Iterator[DenoisingState]:
    """Put noise (b,c,h,w) over x_start, a part of the way, and take it away: another picture.

    `strength` 1 leaves nothing of x_start, 0.3 its layout (Meng et al. 2022, section 3). With a
    `mask` (b or 1,1,h,w) only where it is 1 is drawn; elsewhere x_start stays (Lugmayr et al. 2022,
    section 4.1).
    """
    scheduler.set_timesteps(num_inference_steps, device=x_start.device)
    timesteps = last_timesteps(scheduler, num_inference_steps, strength)
    x = scheduler.add_noise(x_start, noise, timesteps[:1])
    if mask is not None:
        scheduler = Inpainting(scheduler, timesteps, x_start, noise, mask)
    yield from walk(unet, scheduler, timesteps, x, generator, context)


class Inpainting:
    """A scheduler that puts back, after every step, what is to stay, as noisy as the rest."""

    def __init__(
        self, scheduler: Scheduler, timesteps: Tensor, x_start: Tensor, noise: Tensor, mask: Tensor
    ):
        self.scheduler = scheduler
        self.timesteps = timesteps
        self.x_start = x_start
        self.noise = noise
        self.mask = mask
        self.scale_model_input = scheduler.scale_model_input

    def step(
        self, prediction: Tensor, t: Tensor, x: Tensor, generator: torch.Generator | None = None
    ) -> StepOutput:
        """Take the scheduler's step where the mask is 1, and the known way elsewhere."""
        x_next, x_start = self.scheduler.step(prediction, t, x, generator=generator)
        self.timesteps = self.timesteps[1:]
        known = self.x_start
        if len(self.timesteps):
            known = self.scheduler.add_noise(self.x_start, self.noise, self.timesteps[:1])
        return StepOutput(self.mask * x_next + (1 - self.mask) * known, x_start)
