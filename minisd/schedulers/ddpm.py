"""Chapter 4: the original sampler, DDPM (Ho et al. 2020)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minisd.device import draw_noise
from minisd.schedulers.base import Scheduler, StepOutput


@dataclass(kw_only=True, eq=False)
class DDPMScheduler(Scheduler):
    """Walk the chain backwards, one Gaussian step at a time (Ho et al. 2020, algorithm 2)."""

    variance_type: Literal["fixed_small", "fixed_large"] = "fixed_small"

    def __post_init__(self):
        super().__post_init__()
        if self.variance_type not in ("fixed_small", "fixed_large"):
            raise ValueError(
                f"variance_type must be 'fixed_small' or 'fixed_large', got {self.variance_type!r}"
            )

    def step(
        self,
        prediction: Tensor,
        t: Tensor | int,
        x: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> StepOutput:
        """Draw x_{t-1} from p(x_{t-1} | x_t), given the network's prediction at x (b,c,h,w).

        `return_dict` is there for diffusers' pipelines; the result serves as a tuple as it is.
        """
        t = self.check_step(t)
        prev_t = self.previous_timestep(t)
        alpha_bar = self.alphas_cumprod[t]
        alpha_bar_prev = self.alphas_cumprod[prev_t] if prev_t >= 0 else torch.tensor(1.0)
        alpha = alpha_bar / alpha_bar_prev  # over the whole stride from t to prev_t
        beta = 1 - alpha

        x_start = self.predict_x_start(prediction, x, alpha_bar)
        mean = (  # DDPM eq. 7
            alpha_bar_prev.sqrt() * beta / (1 - alpha_bar) * x_start
            + alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar) * x
        )
        if t == 0:
            return StepOutput(mean, x_start)
        variance = beta
        if self.variance_type == "fixed_small":
            variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta  # DDPM eq. 7
        noise = draw_noise(x.shape, generator, x.device, x.dtype)
        return StepOutput(mean + variance.clamp(min=1e-20).sqrt() * noise, x_start)

    def previous_timestep(self, t: int) -> int:
        """Return the timestep after t in the visiting order; -1 stands for x_0."""
        following = self.timesteps[self.position(t) + 1 :]
        return int(following[0]) if len(following) else -1
