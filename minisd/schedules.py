"""Chapter 2: noise schedules, the jump to any noise level, and what a network may predict.

Throughout, `alpha_bar` is the product of (1 - beta) up to step t: the share of the signal's
variance that is left. It is a scalar, or a tensor that broadcasts against the images, in float32 or
float64: in half precision 1 - alpha_bar would be 0 where there is little noise.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]


def make_betas(
    schedule: BetaSchedule = "linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
) -> Tensor:
    """Return the variance added at each step of the forward chain, (T,) in (0, 1).

    `linear` is DDPM's (Ho et al. 2020, section 4), `scaled_linear` is Stable Diffusion's (linear in
    the standard deviation), `squaredcos_cap_v2` is the cosine schedule (Nichol & Dhariwal 2021,
    eq. 17), which ignores `beta_start` and `beta_end`.

    Raises ValueError for an unknown schedule, fewer than one step, or betas outside (0, 1).
    """
    if num_train_timesteps < 1:
        raise ValueError(f"num_train_timesteps must be at least 1, got {num_train_timesteps}")
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"need 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
    match schedule:
        case "linear":
            return torch.linspace(beta_start, beta_end, num_train_timesteps)
        case "scaled_linear":
            return torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2
        case "squaredcos_cap_v2":
            u = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
            alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
            return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999).float()
        case _:
            known = ", ".join(get_args(BetaSchedule))
            raise ValueError(f"unknown beta_schedule {schedule!r}; choose from {known}")


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Return betas (T,) that leave no signal at the last step (Lin et al. 2024, algorithm 1).

    Raises ValueError for a single step, whose start could not be kept.
    """
    if len(betas) < 2:
        raise ValueError("zero terminal SNR needs at least 2 training timesteps, got 1")
    root = (1 - betas).cumprod(dim=0).sqrt()  # sqrt(abar)
    first, last = root[0], root[-1]
    alpha_bar = ((root - last) * first / (first - last)) ** 2  # shift the end, keep the start
    alphas = torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    return 1 - alphas


def signal_to_noise_ratio(alpha_bar: Tensor) -> Tensor:
    """Return SNR = abar / (1 - abar), same shape (Kingma et al. 2021, eq. 2)."""
    return alpha_bar / (1 - alpha_bar)


def timestep_probabilities(alpha_bar: Tensor, mean: float, std: float) -> Tensor:
    """Return how often to train each timestep, (T,), given alpha-bar at each: they sum to 1.

    Half of the time every timestep is equally likely; in the other half log SNR is normal, so that
    the levels around `mean` are trained more often (after Karras et al. 2022, section 5). Raises
    ValueError unless std > 0 and some timestep is that near to `mean`.
    """
    signal = alpha_bar > 0  # with zero terminal SNR the last log SNR is -inf: no normal draw is
    log_snr = signal_to_noise_ratio(alpha_bar[signal].double()).log()
    (spacing,) = torch.gradient(log_snr)
    normal = torch.zeros(len(alpha_bar), dtype=torch.float64, device=alpha_bar.device)
    normal[signal] = (-0.5 * ((log_snr - mean) / std) ** 2).exp() * -spacing
    if not (std > 0 and normal.sum() > 0):
        raise ValueError(
            f"no timestep has a log SNR near mean={mean}, std={std}: they lie between "
            f"{log_snr.min():.1f} and {log_snr.max():.1f}, and std must be positive"
        )
    return ((normal / normal.sum() + 1 / len(alpha_bar)) / 2).float()


def add_noise(x_start: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Jump from x_0 to x_t in one step; all shapes broadcast against `x_start`."""
    return alpha_bar.sqrt() * x_start + (1 - alpha_bar).sqrt() * noise  # DDPM eq. 4


def get_velocity(x_start: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return v, the direction in which x_t turns as noise replaces signal."""
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_start  # Salimans & Ho 2022, sec. 4


def target(kind: PredictionType, x_start: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return what a network of this prediction type is trained to output, (b,c,h,w)."""
    match kind:
        case "epsilon":
            return noise
        case "sample":
            return x_start
        case "v_prediction":
            return get_velocity(x_start, noise, alpha_bar)
        case _:
            raise ValueError(_unknown_prediction_type(kind))


def to_x_start(kind: PredictionType, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """Turn a network's prediction at x_t into an estimate of x_0, (b,c,h,w)."""
    match kind:
        case "epsilon":
            return (x_t - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()  # DDPM eq. 15
        case "sample":
            return prediction
        case "v_prediction":
            return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * prediction
        case _:
            raise ValueError(_unknown_prediction_type(kind))


def to_noise(kind: PredictionType, prediction: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """Turn a network's prediction at x_t into an estimate of the noise in it, (b,c,h,w)."""
    match kind:
        case "epsilon":
            return prediction
        case "sample":
            return (x_t - alpha_bar.sqrt() * prediction) / (1 - alpha_bar).sqrt()  # DDPM eq. 4
        case "v_prediction":
            return alpha_bar.sqrt() * prediction + (1 - alpha_bar).sqrt() * x_t
        case _:
            raise ValueError(_unknown_prediction_type(kind))


def _unknown_prediction_type(kind: str) -> str:
    return f"unknown prediction_type {kind!r}; choose from {', '.join(get_args(PredictionType))}"
