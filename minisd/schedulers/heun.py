"""Chapter 5: look where the step would lead before taking it (Karras et al. 2022)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minisd.schedulers.base import StepOutput, in_float32
from minisd.schedulers.euler import EulerDiscreteScheduler


@dataclass(kw_only=True, eq=False)
class HeunDiscreteScheduler(EulerDiscreteScheduler):
    """Euler's step, taken again with the mean of the slopes at its two ends (alg. 1).

    A step costs two network calls, and so two calls of `step`, which share one timestep of the
    list; the last one, to sigma = 0 where no slope exists, costs one.
    """

    beta_start: float = 0.00085  # diffusers' defaults
    beta_end: float = 0.012
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    rescale_betas_zero_snr: ClassVar[bool] = False  # no setting here, as in diffusers
    order: ClassVar[int] = 2

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Choose the sigmas as Euler does; all but the first are looked at twice.

        Raises ValueError unless 1 <= num_inference_steps <= num_train_timesteps.
        """
        super().set_timesteps(num_inference_steps, device)
        t, sigmas = self.timesteps, self.sigmas
        self.timesteps = torch.cat([t[:1], t[1:].repeat_interleave(2)])
        self.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])

    @in_float32
    def step(
        self,
        prediction: Tensor,
        t: Tensor | float,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> StepOutput:
        """Move x (b,c,h,w) to the next sigma, or correct the last move; nothing is drawn."""
        i = self.next_position(t)
        sigma = self.sigmas[i].item()
        slope, x_start = self.slope_at(sigma, prediction, x)
        if i % 2 == 0:  # the first look: alg. 1, lines 4 and 5
            self.x, self.slope, self.stride = x, slope, self.sigmas[i + 1].item() - sigma
            return StepOutput(x + self.stride * slope, x_start)
        mean = (self.slope + slope) / 2  # the second: lines 7 and 8
        return StepOutput(self.x + self.stride * mean, x_start)
