"""Chapter 5: straight steps in sigma, without and with fresh noise (Karras et al. 2022)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minisd.device import draw_noise
from minisd.schedulers.base import StepOutput, in_float32
from minisd.schedulers.sigma import SigmaScheduler


@dataclass(kw_only=True, eq=False)
class EulerDiscreteScheduler(SigmaScheduler):
    """Follow the tangent of dx/dsigma = (x - D(x; sigma)) / sigma (Karras et al. 2022, alg. 1).

    Between steps x is x_0 + sigma * noise; the network wants it at the scale of its training.
    """

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of x at the first sigma; `leading` adds that of the image."""
        sigma = self.sigmas[0].item()
        return (sigma**2 + 1) ** 0.5 if self.timestep_spacing == "leading" else sigma

    # As in diffusers, only the schedulers of this family need t here.
    def scale_model_input(self, x: Tensor, t: Tensor | float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return sqrt(abar) x, what the network was trained on (Karras et al. 2022, eq. 7)."""
        return x / (self.sigmas[self.position(t)].item() ** 2 + 1) ** 0.5

    def add_noise(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x for images x_start (b,c,h,w), noise of that shape and chosen t (b,)."""
        return (x_start + self.sigma_at(t, x_start) * noise).to(x_start.dtype)

    @in_float32
    def step(
        self,
        prediction: Tensor,
        t: Tensor | float,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> StepOutput:
        """Move x (b,c,h,w) to the next sigma; nothing is drawn from `generator`."""
        i = self.position(t)
        sigma, sigma_next = self.sigmas[i : i + 2].tolist()
        slope, x_start = self.slope_at(sigma, prediction, x)
        return StepOutput(x + (sigma_next - sigma) * slope, x_start)  # alg. 1, line 5

    def slope_at(self, sigma: float, prediction: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return dx/dsigma at x, and the estimate of x_0 that it comes from, both (b,c,h,w)."""
        x_start = self.x_start_at(sigma, prediction, x / (sigma**2 + 1) ** 0.5)
        return (x - x_start) / sigma, x_start  # Karras et al. 2022, alg. 1, line 4


@dataclass(kw_only=True, eq=False)
class EulerAncestralDiscreteScheduler(EulerDiscreteScheduler):
    """Step below the next sigma, and climb back to it with fresh noise, as DDPM does."""

    use_karras_sigmas: ClassVar[bool] = False  # no setting here, as in diffusers

    @in_float32
    def step(
        self,
        prediction: Tensor,
        t: Tensor | float,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> StepOutput:
        """Draw x (b,c,h,w) at the next sigma: its variance is that of DDPM's posterior (eq. 7)."""
        i = self.position(t)
        sigma, sigma_next = self.sigmas[i : i + 2].tolist()
        sigma_down = sigma_next**2 / sigma
        sigma_up = (sigma_next**2 - sigma_down**2) ** 0.5  # variances add up to sigma_next^2
        slope, x_start = self.slope_at(sigma, prediction, x)
        noise = draw_noise(x.shape, generator, x.device, x.dtype)
        return StepOutput(x + (sigma_down - sigma) * slope + sigma_up * noise, x_start)
