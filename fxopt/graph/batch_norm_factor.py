"""batch_norm_factor: what folding a batch norm multiplies the weights of each output channel by.

    f = weight / sqrt(running_var + eps),  held at least TINY away from 0

Training divides by it what it has multiplied with it, and so it must not be 0. No gradient passes: f only chooses where
the rounding of weight · f falls.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["batch_norm_factor"]

TINY = 2.0**-40


@torch.library.custom_op(
    "fxopt::batch_norm_factor",
    mutates_args=(),
    schema="(Tensor? weight, Tensor running_var, float eps) -> Tensor",
)
def _batch_norm_factor(weight: Tensor | None, running_var: Tensor, eps: float) -> Tensor:
    factor = torch.rsqrt(running_var.double() + eps)
    if weight is not None:
        factor = factor * weight
    away = torch.where(factor < 0, -TINY, TINY)
    return torch.where(factor.abs() < TINY, away, factor).to(running_var.dtype)


@_batch_norm_factor.register_fake
def _(weight: Tensor | None, running_var: Tensor, eps: float) -> Tensor:
    return torch.empty_like(running_var)


_batch_norm_factor.register_autograd(lambda ctx, gradient: (None, None, None))

batch_norm_factor = torch.ops.fxopt.batch_norm_factor.default
