"""A network that needs no training: it knows the data, and answers exactly."""

import numpy as np
import torch
from torch import Tensor, nn

from minisd.schedules import PredictionType, target


class IdealDenoiser(nn.Module):
    """The network of the least possible loss for a small data set (n,c,h,w).

    It is called like a U-Net, with x (b,c,h,w) as a network sees it and one timestep t, and returns
    the prediction of its type. If there is one picture only, it returns the true noise. Between
    two timesteps it interpolates log sigma. `calls` keeps x and t of every call.
    """

    def __init__(
        self, data: Tensor, alphas_cumprod: Tensor, prediction_type: PredictionType = "epsilon"
    ):
        super().__init__()
        self.data = data
        self.alphas_cumprod = alphas_cumprod.double()
        self.prediction_type: PredictionType = prediction_type
        self.calls: list[tuple[Tensor, float]] = []

    def alpha_bar(self, t: float) -> Tensor:
        """Return alpha-bar at a real timestep t, a float64 scalar."""
        if t == int(t):
            return self.alphas_cumprod[int(t)]
        logit = self.alphas_cumprod.logit()  # -2 log sigma
        return torch.tensor(
            np.interp(t, np.arange(len(logit)), logit), dtype=torch.float64
        ).sigmoid()

    def x_start(self, x: Tensor, signal: float, std: float) -> Tensor:
        """Return E[x_0 | x] for x = signal * x_0 + std * noise: a mean of the data, by softmax."""
        distances = (x[:, None] - signal * self.data.to(x)).square().sum((2, 3, 4))  # (b,n)
        weights = (-distances / (2 * std**2)).softmax(-1)
        return torch.einsum("bn,nchw->bchw", weights, self.data.to(x))

    def forward(self, x: Tensor, t: Tensor | float, context: Tensor | None = None) -> Tensor:
        (t,) = set(torch.as_tensor(t).flatten().tolist())  # one for the whole batch
        self.calls.append((x, t))
        alpha_bar = self.alpha_bar(t)
        signal, std = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x_start = self.x_start(x, signal.item(), std.item())
        noise = (x - signal * x_start) / std
        return target(self.prediction_type, x_start, noise, alpha_bar)
