"""Chapter 9: Muon, an optimiser whose steps are as long in every direction of a weight matrix."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

SMALLEST = 32  # a matrix with fewer rows or columns is left to AdamW
MOMENTUM = 0.95
ADAM_SIZE = 0.2  # root mean square of a typical AdamW step, in learning rates


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return the matrix (m,n) with its singular values, all but the smallest, moved to 0.7 to 1.2.

    Newton-Schulz iteration: an odd polynomial of a matrix changes its singular values alone. The
    coefficients raise small values fast: Jordan et al. 2024. Computes in bfloat16, which suffices.
    """
    x = matrix.bfloat16()
    wide = x if x.shape[0] <= x.shape[1] else x.T
    x = wide / (wide.norm() + 1e-7)  # no singular value exceeds 1
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return (x if wide.shape == matrix.shape else x.T).to(matrix.dtype)


class Muon(torch.optim.AdamW):
    """AdamW, except that matrices are updated with their orthogonalised momentum.

    Jordan et al. 2024. A convolution (out,in,h,w) counts as a matrix (out, in h w); vectors and
    matrices with few rows or columns are left to AdamW. One learning rate serves both: the steps
    are scaled to AdamW's root mean square, as in Liu et al. 2025, section 2.2.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0):
        kinds: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for p in params:
            kinds[p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= SMALLEST].append(p)
        groups = [{"params": kinds[False]}, {"params": kinds[True]}]
        super().__init__(groups, lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all weights that have a gradient; those of matrices lose it."""
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
