"""Chapters 4 and 5: the deterministic shortcut, DDIM (Song et al. 2021)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.device import draw_noise
from minisd.schedulers.base import Scheduler, StepOutput, in_float32
from minisd.schedules import to_noise


@dataclass(kw_only=True, eq=False)
class DDIMScheduler(Scheduler):
    """Jump along the chain, with as much fresh noise as `eta` asks for (DDIM eq. 12).

    A step ends at the next timestep of the list. With `match_diffusers` it ends at t - T // n, as
    in diffusers: with `linspace` and `trailing` that can be another noise level (#12633).
    """

    set_alpha_to_one: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.final_alpha_cumprod = (
            torch.tensor(1.0) if self.set_alpha_to_one else self.alphas_cumprod[0]
        )

    @in_float32
    def step(
        self,
        prediction: Tensor,
        t: Tensor | int,
        x: Tensor,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> StepOutput:
        """Move x (b,c,h,w) to the next noise level; eta = 0 draws no noise, eta = 1 is DDPM."""
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be between 0 (no noise) and 1 (DDPM's), got {eta}")
        t = self.check_step(t)
        prev_t = self.previous_timestep(t)
        alpha_bar = self.alphas_cumprod[t]
        alpha_bar_prev = self.alphas_cumprod[prev_t] if prev_t >= 0 else self.final_alpha_cumprod

        x_start = self.predict_x_start(prediction, x, alpha_bar)
        eps_pred = to_noise(self.prediction_type, prediction, x, alpha_bar)
        variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        std = eta * variance.sqrt()  # DDIM eq. 16
        left = (1 - alpha_bar_prev - std**2).clamp(min=0)  # rounding can take it below
        direction = left.sqrt() * eps_pred  # towards x_t
        x_prev = alpha_bar_prev.sqrt() * x_start + direction  # DDIM eq. 12
        if eta > 0:
            noise = draw_noise(x.shape, generator, x.device, x.dtype)
            x_prev = x_prev + std * noise
        return StepOutput(x_prev, x_start)

    def previous_timestep(self, t: int) -> int:
        """Return the timestep at which the step from t ends; a negative one stands for x_0."""
        if self.match_diffusers and self.num_inference_steps:
            return t - self.num_train_timesteps // self.num_inference_steps
        return super().previous_timestep(t)
