"""Chapter 5: let the past estimates of x_0 foretell the next, DPM-Solver++ (Lu et al. 2022)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minisd.schedulers.base import StepOutput, in_float32
from minisd.schedulers.sigma import SigmaScheduler, karras_sigmas


@dataclass(kw_only=True, eq=False)
class DPMSolverMultistepScheduler(SigmaScheduler):
    """Solve the ODE exactly, were x_0's estimate a polynomial in lambda = -log sigma.

    Order 1 takes it as constant (that is DDIM), 2 as a line through the last two estimates, 3 as a
    parabola through three. Below 15 steps, `lower_order_final` ends on lower orders.

    `match_diffusers` does as diffusers does, in two places. Order 3 counts half of the parabola's
    bend and leaves the error of its first step, and so is of second order. And Karras' timesteps
    are whole numbers, not quite those of their sigmas, and can be equal.
    """

    solver_order: int = 2
    lower_order_final: bool = True

    init_noise_sigma: ClassVar[float] = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.solver_order not in (1, 2, 3):
            raise ValueError(f"solver_order must be 1, 2 or 3, got {self.solver_order}")

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Choose whole timesteps, the noisiest first; the step to sigma = 0 replaces the last one.

        Karras' sigmas span those of training, and their timesteps are real numbers. Raises
        ValueError unless there are at least 1 and, with `leading` and `linspace` spacing, fewer
        than `num_train_timesteps` steps.
        """
        extra = 0 if self.timestep_spacing == "trailing" else 1
        timesteps = self.spaced_timesteps(num_inference_steps, extra).round().numpy()
        sigmas = self.to_sigma(timesteps)
        if self.use_karras_sigmas:
            lowest, highest = self.train_sigmas[[0, -1]].tolist()
            sigmas = karras_sigmas(lowest, highest, num_inference_steps)
            timesteps = self.to_timestep(sigmas)
            if self.match_diffusers and self.beta_schedule != "squaredcos_cap_v2":
                timesteps = timesteps.round()  # the cosine's are cut off
        real = self.use_karras_sigmas and not self.match_diffusers
        dtype = torch.float32 if real else torch.int64
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(timesteps, dtype=dtype, device=device)
        self.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float32)
        self.upcoming = None
        self.estimates: list[Tensor] = []  # of x_0, the newest first

    def add_noise(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t for images x_start (b,c,h,w), noise of that shape and chosen t (b,)."""
        sigma = self.sigma_at(t, x_start)
        return ((x_start + sigma * noise) / (sigma**2 + 1).sqrt()).to(x_start.dtype)

    @in_float32
    def step(
        self,
        prediction: Tensor,
        t: Tensor | int,
        x: Tensor,
        generator: torch.Generator | None = None,
    ) -> StepOutput:
        """Move x (b,c,h,w) to the next noise level; nothing is drawn from `generator`."""
        i, n = self.next_position(t), len(self.timesteps)
        sigma, sigma_next = self.sigmas[i : i + 2].tolist()
        x_start = self.x_start_at(sigma, prediction, x)
        self.estimates = [x_start, *self.estimates[: self.solver_order - 1]]
        order = len(self.estimates)
        if i == n - 1 or (self.lower_order_final and n < 15):
            order = min(order, n - i)

        ratio = sigma_next / sigma  # exp(-h)
        x_next = ratio * x * (sigma**2 + 1) ** 0.5 + (1 - ratio) * x_start  # eq. 8, if constant
        if order > 1:
            x_next = x_next + self.correction(order, i)
        return StepOutput(x_next / (sigma_next**2 + 1) ** 0.5, x_start)

    def correction(self, order: int, i: int) -> Tensor:
        """Return what the slope, and for order 3 the bend, of the last estimates add to a step."""
        lambdas = [-math.log(sigma) for sigma in self.sigmas[max(0, i - 2) : i + 2].tolist()]
        h = lambdas[-1] - lambdas[-2]
        h_1 = lambdas[-2] - lambdas[-3]
        phi_1 = math.expm1(-h)
        slope = (self.estimates[0] - self.estimates[1]) / h_1
        if order == 2:
            correction = -phi_1 / 2 * h * slope  # DPM-Solver++, alg. 2
            if self.solver_order == 3 and len(self.estimates) == 2 and not self.match_diffusers:
                late = (h_1 + math.expm1(-h_1)) * slope  # the first step did not know the slope
                correction = correction + math.exp(-h) * late
            return correction
        h_2 = lambdas[-3] - lambdas[-4]
        slope_before = (self.estimates[1] - self.estimates[2]) / h_2
        bend = (slope - slope_before) / (h_1 + h_2)
        phi_2 = phi_1 / h + 1
        phi_3 = phi_2 / h - 1 / 2
        curvature = bend if self.match_diffusers else 2 * bend  # of the parabola
        return phi_2 * h * (slope + h_1 * bend) - phi_3 * h**2 * curvature
