"""Chapter 5: DDIM's step along a better mean of the predictions, PNDM (Liu et al. 2022)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minisd.schedulers.base import Scheduler, StepOutput, in_float32
from minisd.schedules import to_noise, to_x_start

RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)  # PNDM eq. 13
ADAMS_BASHFORTH = {  # the weights of the last predictions, the newest first
    1: (1,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),  # PNDM eq. 12
}


@dataclass(kw_only=True, eq=False)
class PNDMScheduler(Scheduler):
    """Average predictions as a solver of differential equations would, then step as DDIM does.

    The first three steps cost four network calls each (Runge-Kutta), all others one (linear
    multistep). `skip_prk_steps` starts with the multistep rule at once, and pays one extra call.
    Of second order; what is averaged is the noise, also if the network predicts x_0 or v.

    A step ends where the next call will be, wherever sampling begins. With `match_diffusers` it
    goes down by T // n and the rules follow a count of the calls, as in diffusers: right for
    `leading` spacing and all the steps, one step behind in image to image. And predictions are
    averaged as they come, which for v leaves the first order.
    """

    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False
    clip_sample: ClassVar[bool] = False  # no settings here, as in diffusers
    clip_sample_range: ClassVar[float] = 1.0
    rescale_betas_zero_snr: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        self.final_alpha_cumprod = (
            torch.tensor(1.0) if self.set_alpha_to_one else self.alphas_cumprod[0]
        )

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Choose the timesteps of the network calls, the noisiest first; the start repeats some.

        Raises ValueError unless 1 <= num_inference_steps <= num_train_timesteps, or for fewer than
        4 steps with the Runge-Kutta start.
        """
        if num_inference_steps in (1, 2, 3) and not self.skip_prk_steps:
            raise ValueError(
                f"the Runge-Kutta start needs at least 4 steps, got {num_inference_steps}; "
                "take more, or set skip_prk_steps=True"
            )
        super().set_timesteps(num_inference_steps, device)
        self.stride = self.num_train_timesteps // num_inference_steps
        t = self.timesteps
        if self.skip_prk_steps:
            self.timesteps = torch.cat([t[:2], t[1:]])
        else:
            middle = t[1:4] + (self.stride if self.match_diffusers else t[:3] - t[1:4]) // 2
            start = torch.stack([t[:3], middle, middle, t[1:4]], dim=1)
            self.timesteps = torch.cat([start.flatten(), t[3:]])
        self.calls = 0
        self.predictions: list[Tensor] = []  # at whole steps, the newest first

    def calls_before(self, step: int) -> int:
        """Return how many network calls the steps before this one cost (0 is the first step)."""
        if self.match_diffusers:
            return step
        return min(2 * step, step + 1) if self.skip_prk_steps else min(4 * step, step + 9)

    @in_float32
    def step(
        self,
        prediction: Tensor,
        t: Tensor | int,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> StepOutput:
        """Move x (b,c,h,w) to the point of the next network call; nothing is drawn."""
        t = self.check_step(t)
        if self.match_diffusers:
            i, t_next = self.calls, t - self.stride
        else:
            i = self.next_position(t)
            t_next = int(self.timesteps[i + 1]) if i + 1 < len(self.timesteps) else -1
            alpha_bar = self.alphas_cumprod[t]
            prediction = to_noise(self.prediction_type, prediction, x, alpha_bar)
        self.calls += 1
        in_start = i < 12 and not self.skip_prk_steps
        if not self.predictions and (in_start and i % 4 or self.skip_prk_steps and i == 1):
            return self.transfer(prediction, x, t, t_next)  # sampling began within a step
        rule = self.runge_kutta if in_start else self.linear_multistep
        return rule(prediction, i, t, t_next, x)

    def runge_kutta(self, prediction: Tensor, i: int, t: int, t_next: int, x: Tensor) -> StepOutput:
        """Make one of the four calls of a step: at its start, twice in its middle, at its end."""
        call = i % 4
        if call == 0:
            self.predictions = [prediction, *self.predictions]
            self.x, self.mean = x, torch.zeros_like(x)
        self.mean = self.mean + RUNGE_KUTTA[call] * prediction
        if call == 3:
            prediction = self.mean
        if self.match_diffusers:
            t_next = t - self.stride // 2 if call in (0, 2) else t
        return self.transfer(prediction, self.x, int(self.timesteps[i - call]), t_next)

    def linear_multistep(
        self, prediction: Tensor, i: int, t: int, t_next: int, x: Tensor
    ) -> StepOutput:
        """Extrapolate from the last four predictions, or from as many as there are."""
        if i == 1:  # the extra call: the first step again, with the mean of its two ends
            mean = (self.predictions[0] + prediction) / 2
            if self.match_diffusers:
                return self.transfer(mean, self.x, t + self.stride, t)
            return self.transfer(mean, self.x, int(self.timesteps[0]), t_next)
        self.predictions = [prediction, *self.predictions[:3]]
        weights = ADAMS_BASHFORTH[len(self.predictions)]
        mean = torch.stack([w * p for w, p in zip(weights, self.predictions, strict=True)]).sum(0)
        self.x = x
        return self.transfer(mean, x, t, t_next)

    def transfer(self, prediction: Tensor, x: Tensor, t: int, t_prev: int) -> StepOutput:
        """Move x from t to t_prev along the prediction: PNDM eq. 9, which is DDIM eq. 12."""
        alpha_bar = self.alphas_cumprod[t]
        alpha_bar_prev = self.alphas_cumprod[t_prev] if t_prev >= 0 else self.final_alpha_cumprod
        kind = self.prediction_type if self.match_diffusers else "epsilon"
        x_start = to_x_start(kind, prediction, x, alpha_bar)
        eps_pred = to_noise(kind, prediction, x, alpha_bar)
        x_prev = alpha_bar_prev.sqrt() * x_start + (1 - alpha_bar_prev).sqrt() * eps_pred
        return StepOutput(x_prev, x_start)
