"""Chapter 4: the original sampler, DDPM (Ho et al. 2020)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minisd.device import draw_noise
from minisd.schedulers.base import Scheduler, StepOutput, in_float32


@dataclass(kw_only=True, eq=False)
class DDPMScheduler(Scheduler):
    """Walk the chain backwards, one Gaussian step at a time (Ho et al. 2020, algorithm 2).

    The last step draws no noise. With `match_diffusers` only a step from t = 0 draws none, so that
    with `fixed_large` noise is left in the images where the last timestep is another.
    """

    variance_type: Literal["fixed_small", "fixed_large"] = "fixed_small"

    @in_float32
    def step(
        self,
        prediction: Tensor,
        t: Tensor | int,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> StepOutput:
        """Draw x_{t-1} from p(x_{t-1} | x_t), given the network's prediction at x (b,c,h,w)."""
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
        if t == 0 or prev_t < 0 and not self.match_diffusers:
            return StepOutput(mean, x_start)
        variance = beta
        if self.variance_type == "fixed_small":
            variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta  # DDPM eq. 7
        noise = draw_noise(x.shape, generator, x.device, x.dtype)
        return StepOutput(mean + variance.clamp(min=1e-20).sqrt() * noise, x_start)
