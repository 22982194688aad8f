"""Chapter 9: Muon, an optimiser that lets every direction of a weight matrix learn equally fast."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

SMALLEST = 32  # rows and columns of what counts as a matrix
MOMENTUM = 0.95
ADAM_SIZE = 0.2  # root mean square of a usual step of AdamW, in learning rates


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return the matrix (m,n) with all but its smallest singular values brought to 0.7 to 1.2.

    Newton-Schulz: an odd polynomial of the matrix acts on its singular values alone. Jordan et al.
    2024, with coefficients that lift small values fast. In bfloat16: it need not be exact.
    """
    x = matrix.bfloat16()
    wide = x if x.shape[0] <= x.shape[1] else x.T
    x = wide / (wide.norm() + 1e-7)  # no singular value exceeds 1
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return (x if wide.shape == matrix.shape else x.T).to(matrix.dtype)


class Muon(torch.optim.AdamW):
    """AdamW, but weights that are matrices move by orthogonal steps. Jordan et al. 2024.

    The step is that of the momentum, orthogonalised; a convolution (out,in,h,w) is a matrix
    (out, in h w). AdamW moves the rest: vectors, and matrices with few rows or columns. A learning
    rate means the same for both, because a factor makes the steps alike: Liu et al. 2025, sec. 2.2.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0):
        kinds: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for p in params:
            kinds[p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= SMALLEST].append(p)
        groups = [{"params": kinds[False]}, {"params": kinds[True]}]
        super().__init__(groups, lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move all weights that have a gradient, and forget the matrices' gradients."""
        group = self.param_groups[1]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:  # "step" because AdamW looks for it in a state that is loaded
                state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(p))
            momentum = state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
            step = orthogonalise(p.grad.lerp(momentum, MOMENTUM).flatten(1))  # Nesterov's
            size = ADAM_SIZE * math.sqrt(max(step.shape))
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(step.view_as(p), alpha=group["lr"] * size)
            p.grad = None  # nothing is left for AdamW
        super().step()
