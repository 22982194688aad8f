"""Chapter 5: the noise level as one number, sigma: what Euler, Heun and DPM-Solver++ share.

Divided by sqrt(abar), the images of the chain are x_0 + sigma * noise with
sigma = sqrt((1 - abar) / abar): from here on, `x` at level `sigma` means that (Karras et al. 2022).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from minisd.schedulers.base import Scheduler, TimestepSpacing


@dataclass(kw_only=True, eq=False)
class SigmaScheduler(Scheduler):
    """A scheduler that steps from one sigma to the next; `sigmas[i]` belongs to `timesteps[i]`.

    Timesteps are real numbers here: `linspace` and Karras' levels fall between those of training.
    """

    timestep_spacing: TimestepSpacing = "linspace"
    use_karras_sigmas: bool = False
    clip_sample: ClassVar[bool] = False  # no settings of this family, as in diffusers
    clip_sample_range: ClassVar[float] = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.rescale_betas_zero_snr:
            self.alphas_cumprod[-1] = 2**-24  # diffusers' value: at 0, sigma would be infinite
        self.train_sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt().numpy()
        self.sigmas = torch.tensor([*self.train_sigmas[::-1], 0.0])

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Choose the sigmas to visit, the largest first, and their timesteps.

        Raises ValueError unless 1 <= num_inference_steps <= num_train_timesteps.
        """
        timesteps = self.spaced_timesteps(num_inference_steps).float().numpy()
        sigmas = self.to_sigma(timesteps)
        if self.use_karras_sigmas:
            sigmas = karras_sigmas(sigmas[-1], sigmas[0], num_inference_steps)
            timesteps = self.to_timestep(sigmas)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(timesteps, dtype=torch.float32, device=device)
        self.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float32)
        self.upcoming = None

    def to_sigma(self, timesteps: np.ndarray) -> np.ndarray:
        """Return sigma at real timesteps, by straight lines between those of training."""
        return np.interp(timesteps, np.arange(self.num_train_timesteps), self.train_sigmas)

    def to_timestep(self, sigmas: np.ndarray) -> np.ndarray:
        """Return the real timesteps of sigmas, by straight lines in log sigma."""
        steps = np.arange(self.num_train_timesteps)
        return np.interp(np.log(sigmas), np.log(self.train_sigmas), steps)

    def sigma_at(self, t: Tensor, like: Tensor) -> Tensor:
        """Look up sigma (float32) at timesteps t (b,), shaped to broadcast against `like`."""
        sigmas = self.sigmas[[self.position(each) for each in t.reshape(-1).tolist()]]
        return sigmas.to(like.device).reshape(-1, *[1] * (like.ndim - 1))

    def x_start_at(self, sigma: float, prediction: Tensor, x_t: Tensor) -> Tensor:
        """Return the estimate of x_0 from a prediction at x_t = sqrt(abar) x, all (b,c,h,w)."""
        alpha_bar = torch.tensor(1 / (sigma**2 + 1), dtype=torch.float64)
        return self.predict_x_start(prediction, x_t, alpha_bar)


def karras_sigmas(sigma_min: float, sigma_max: float, n: int, rho: float = 7.0) -> np.ndarray:
    """Return n sigmas, largest first, that crowd at the low end (Karras et al. 2022, eq. 5)."""
    ramp = np.linspace(0, 1, n)
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (start + ramp * (end - start)) ** rho
