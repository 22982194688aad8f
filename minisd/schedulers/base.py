"""Chapter 4: what all schedulers share: the noise schedule and the list of timesteps to visit."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from numbers import Integral
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from minisd import schedules
from minisd.configs import check_fields
from minisd.schedulers.settings import SavedSettings
from minisd.schedules import BetaSchedule, PredictionType

TimestepSpacing = Literal["leading", "linspace", "trailing"]


class StepOutput(NamedTuple):
    """One step of the reverse process: x_{t-1}, and the x_0 that it was aimed at, (b,c,h,w)."""

    prev_sample: Tensor
    pred_original_sample: Tensor


def in_float32(step: Callable[..., StepOutput]) -> Callable[..., StepOutput]:
    """Make a `step` compute in float32 (or float64) and return the precision of x.

    It also accepts `return_dict`, which diffusers' pipelines pass: a StepOutput is a tuple, too.
    """

    @wraps(step)
    def wrapped(
        self: "Scheduler",
        prediction: Tensor,
        t: Tensor | float,
        x: Tensor,
        *arguments: Any,
        return_dict: bool = True,
        **settings: Any,
    ) -> StepOutput:
        dtype = torch.promote_types(x.dtype, torch.float32)
        output = step(self, prediction.to(dtype), t, x.to(dtype), *arguments, **settings)
        return StepOutput(*(result.to(x.dtype) for result in output))

    return wrapped


@dataclass(kw_only=True, eq=False)
class Scheduler(SavedSettings):
    """The noise schedule, and the timesteps that sampling visits; subclasses add `step`.

    The settings have diffusers' names and defaults, but for one: `match_diffusers` restores what
    diffusers does where minisd does otherwise (each scheduler says where, and why). Raises
    ValueError for a setting of the wrong type or out of range.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 0
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    rescale_betas_zero_snr: bool = False
    match_diffusers: bool = False

    step: ClassVar[Callable[..., StepOutput]]  # each subclass has its own
    order: ClassVar[int] = 1  # network calls per step
    init_noise_sigma: ClassVar[float] = 1.0  # the standard deviation of x_T

    def __post_init__(self):
        self.unused: dict[str, Any] = {}
        check_fields(self, "steps_offset")
        if self.steps_offset < 0:
            raise ValueError(f"steps_offset must not be negative, got {self.steps_offset}")
        if not self.clip_sample_range > 0:
            raise ValueError(f"clip_sample_range must be positive, got {self.clip_sample_range}")
        self.betas = schedules.make_betas(
            self.beta_schedule, self.num_train_timesteps, self.beta_start, self.beta_end
        )
        if self.rescale_betas_zero_snr:
            self.betas = schedules.rescale_zero_terminal_snr(self.betas)
        self.alphas = 1 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(dim=0)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(self.num_train_timesteps).flip(0)
        self.upcoming: int | None = None  # where the next call stands among them, once it is known

    # Training: from x_0 to x_t.

    def alpha_bar(self, t: Tensor, like: Tensor) -> Tensor:
        """Look up alpha-bar at t (b,), shaped (b,1,1,1) to broadcast against `like` (b,c,h,w).

        It stays in float32: in half precision 1 - alpha_bar would be 0 at the first timesteps.
        """
        return self.alphas_cumprod.to(like.device)[t].reshape(-1, *[1] * (like.ndim - 1))

    def add_noise(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t for images x_start (b,c,h,w), noise of that shape and timesteps t (b,)."""
        return schedules.add_noise(x_start, noise, self.alpha_bar(t, x_start)).to(x_start.dtype)

    def get_velocity(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return v for images x_start (b,c,h,w), noise of that shape and timesteps t (b,)."""
        return schedules.get_velocity(x_start, noise, self.alpha_bar(t, x_start)).to(x_start.dtype)

    def target(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return what a network of this `prediction_type` should output at x_t, (b,c,h,w)."""
        alpha_bar = self.alpha_bar(t, x_start)
        target = schedules.target(self.prediction_type, x_start, noise, alpha_bar)
        return target.to(x_start.dtype)

    # Sampling: from x_T to x_0.

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Choose the timesteps to visit, the noisiest first.

        Raises ValueError unless 1 <= num_inference_steps <= num_train_timesteps.
        """
        timesteps = self.spaced_timesteps(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = timesteps.round().long().to(device)
        self.upcoming = None

    def spaced_timesteps(self, n: int, extra: int = 0) -> Tensor:
        """Return n timesteps, as real numbers, the noisiest first (Lin et al. 2024, table 2).

        They are the first n of n + `extra` that cover the training's range.
        """
        total = self.num_train_timesteps
        if not isinstance(n, Integral) or isinstance(n, bool):
            raise ValueError(f"num_inference_steps must be a whole number, got {n!r}")
        if not 1 <= n <= total - extra:
            raise ValueError(
                f"num_inference_steps must be between 1 and {total - extra}, got {n} "
                f"(timestep_spacing {self.timestep_spacing!r})"
            )
        count = n + extra
        match self.timestep_spacing:
            case "leading":
                timesteps = torch.arange(count).flip(0).double() * (total // count)
                timesteps = timesteps + self.steps_offset
            case "linspace":
                timesteps = torch.linspace(total - 1, 0, count, dtype=torch.float64)
            case "trailing":
                timesteps = total - torch.arange(count, dtype=torch.float64) * (total / count)
                timesteps = timesteps.round() - 1
        timesteps = timesteps[:n]
        first = int(timesteps[0])
        if first >= total:
            raise ValueError(
                f"steps_offset={self.steps_offset} moves the first of {n} steps to t={first}, "
                f"beyond {total - 1}: lower it, or take fewer steps"
            )
        if self.prediction_type == "epsilon" and self.alphas_cumprod[first] == 0:
            raise ValueError(
                f"at t={first} there is no signal left (rescale_betas_zero_snr), so the noise says "
                "nothing about the picture: use prediction_type 'v_prediction' or 'sample'"
            )
        return timesteps

    def scale_model_input(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        """Return what the network sees at x (b,c,h,w): x itself, unless the sampler rescales it."""
        return x

    def predict_x_start(self, prediction: Tensor, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """Return the estimate of x_0, clipped to the range of images if so configured."""
        x_start = schedules.to_x_start(self.prediction_type, prediction, x, alpha_bar)
        if self.clip_sample:
            x_start = x_start.clamp(-self.clip_sample_range, self.clip_sample_range)
        return x_start

    def check_step(self, t: Tensor | int) -> int:
        """Return t as an int; raise ValueError before `set_timesteps`, or for a foreign t."""
        self.position(t)
        return int(t)

    def position(self, t: Tensor | float) -> int:
        """Return where t stands among the timesteps.

        Of several places it is the upcoming one; if that is not known, the last, where a step
        begins. Raises ValueError before `set_timesteps`, or for a foreign t.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps first: it chooses the timesteps to visit")
        places: list[int] = (self.timesteps == t).nonzero().flatten().tolist()
        if not places:
            raise ValueError(f"t={float(t):g} is not one of the timesteps that set_timesteps chose")
        return self.upcoming if self.upcoming in places else places[-1]

    def next_position(self, t: Tensor | float) -> int:
        """Return `position(t)` for a scheduler with a memory, which must not skip a timestep.

        Sampling may begin anywhere. Raises ValueError if t is not the next one from there.
        """
        i = self.position(t)
        if self.upcoming is None and t == self.timesteps[0]:
            i = 0
        elif self.upcoming not in (None, i):
            raise ValueError(f"t={float(t):g} is out of turn: call set_timesteps to begin again")
        self.upcoming = i + 1
        return i

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this place of `timesteps`, as image to image does; raises ValueError beyond it.

        Needed only where a timestep stands there twice. diffusers' pipelines call it.
        """
        if not 0 <= begin_index < len(self.timesteps):
            raise ValueError(
                f"begin_index must be between 0 and {len(self.timesteps) - 1}, got {begin_index}"
            )
        self.upcoming = begin_index

    def calls_before(self, step: int) -> int:
        """Return how many network calls the steps before this one cost (0 is the first step)."""
        return step * self.order

    def previous_timestep(self, t: int) -> int:
        """Return the timestep after t in the visiting order; -1 stands for x_0."""
        following = self.timesteps[self.position(t) + 1 :]
        return int(following[0]) if len(following) else -1
