"""Linear least squares with a ridge, from moments that are added up as data streams by, for many small maps at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Moments:
    """Sums of products of inputs x and what is missing of outputs r, in float64, for some groups that share nothing.

    With x followed by a 1: `inputs` Σ x xᵀ [G, K+1, K+1], `cross` Σ r xᵀ [G, N, K+1], `power` Σ r² (a number).
    """

    def __init__(self, groups: int, features: int, outputs: int) -> None:
        self.inputs = torch.zeros(groups, features + 1, features + 1, dtype=torch.float64)
        self.cross = torch.zeros(groups, outputs, features + 1, dtype=torch.float64)
        self.power = 0.0

    def add(self, x: Tensor, r: Tensor) -> None:
        """Add rows: x [G, P, K] and r [G, P, N]."""
        x, r = torch.nn.functional.pad(x.double(), (0, 1), value=1.0), r.double()
        self.inputs.baddbmm_(x.mT, x)
        self.cross.baddbmm_(r.mT, x)
        self.power += float(r.square().sum())

    @property
    def count(self) -> float:
        """How many rows there are."""
        return float(self.inputs[0, -1, -1])

    def error(self, change: Tensor) -> float:
        """Return Σ ‖r − D x − d‖² of a change [D, d], [G, N, K+1]."""
        explained = 2 * (change * self.cross).sum() - (change @ self.inputs * change).sum()
        return self.power - float(explained)


def solve(moments: Moments, ridge: float) -> Tensor:
    """Return the [D, d], [G, N, K+1], with the least Σ ‖r − D x − d‖² + λ ‖D‖²; d is free.

    λ is `ridge` times the mean variance of an input in each group. (Hoerl and Kennard 1970, "Ridge Regression".)
    """
    count = max(moments.count, 1.0)
    mean_x, mean_r = moments.inputs[:, :-1, -1] / count, moments.cross[:, :, -1] / count
    covariance = moments.inputs[:, :-1, :-1] / count - mean_x[:, :, None] * mean_x[:, None]
    cross = moments.cross[:, :, :-1] / count - mean_r[:, :, None] * mean_x[:, None]
    variance = covariance.diagonal(dim1=1, dim2=2)
    strength = (ridge * variance.mean(1)).clamp(min=torch.finfo(torch.float32).tiny)
    damped = covariance + torch.diag_embed(strength[:, None].expand_as(variance))
    factor, failed = torch.linalg.cholesky_ex(damped)
    weights = torch.cholesky_solve(cross.mT, factor).mT
    weights = torch.where((failed == 0)[:, None, None] & weights.isfinite(), weights, 0.0)
    return torch.cat([weights, (mean_r - (weights @ mean_x[:, :, None])[..., 0])[..., None]], 2)


def best_change(fitted: Moments, judged: Moments, ridges: Sequence[float]) -> Tensor | None:
    """Return the change, of those with these ridges and that of the bias alone, with the least error on other rows.

    None if all of them are worse than none.
    """
    best, least = None, judged.power
    for ridge in ridges:
        change = solve(fitted, ridge)
        if (error := judged.error(change)) < least:
            best, least = change, error
    return best
