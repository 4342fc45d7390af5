"""Grids that follow the data of training: tracked_grid for activations, weight_grid for weights.

Both give the scale and the zero point for a `fake_quantize`; neither passes gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxopt.graph.grids import SMALLEST_STEP, power_of_two, scales_of, zero_points_of

__all__ = ["tracked_grid", "weight_grid"]


@torch.library.custom_op(
    "fxopt::tracked_grid",
    mutates_args=(),
    schema="(Tensor x, Tensor ends, int row, int quant_min, int quant_max, bool symmetric, bool fixed_point, "
    "float momentum, bool training) -> (Tensor scale, Tensor zero_point)",
)
def _tracked_grid(
    x: Tensor,
    ends: Tensor,
    row: int,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    fixed_point: bool,
    momentum: float,
    training: bool,
) -> tuple[Tensor, Tensor]:
    """Return the grid of a group of values whose ranges are `ends` ([values, 2], float64); x is the one of `row`.

    In training, that row moves towards the smallest and the largest element of x, by a share of `momentum`: in place,
    as aten.batch_norm does it with its running statistics.
    """
    if training and x.numel():
        low, high = torch.aminmax(x.detach())
        ends[row, 0] += momentum * (low.double().clamp(max=0) - ends[row, 0])
        ends[row, 1] += momentum * (high.double().clamp(min=0) - ends[row, 1])
    low, high = ends[:, 0].amin(), ends[:, 1].amax()
    is_zero = (high - low) / (quant_max - quant_min) < SMALLEST_STEP
    low, high = torch.where(is_zero, 0.0, low), torch.where(is_zero, 1.0, high)
    scale = scales_of(low, high, quant_min, quant_max, symmetric, fixed_point).float()
    zero_point = zero_points_of(low, scale.double(), quant_min, symmetric).clamp(quant_min, quant_max)
    return scale, zero_point.to(torch.int32)


@_tracked_grid.register_fake
def _(
    x: Tensor,
    ends: Tensor,
    row: int,
    quant_min: int,
    quant_max: int,
    symmetric: bool,
    fixed_point: bool,
    momentum: float,
    training: bool,
) -> tuple[Tensor, Tensor]:
    return ends.new_empty((), dtype=torch.float32), ends.new_empty((), dtype=torch.int32)


@torch.library.custom_op(
    "fxopt::weight_grid",
    mutates_args=(),
    schema="(Tensor weight, Tensor share, int? axis, int quant_max, bool fixed_point) -> "
    "(Tensor scale, Tensor zero_point)",
)
def _weight_grid(
    weight: Tensor, share: Tensor, axis: int | None, quant_max: int, fixed_point: bool
) -> tuple[Tensor, Tensor]:
    """Return the grid that maps `share` of the largest magnitude to quant_max, along an axis or in all."""
    others = [dim for dim in range(weight.ndim) if axis is None or dim != axis % weight.ndim]
    largest = weight.detach().abs().amax(others) if others else weight.detach().abs()
    scale = (largest.double() * share / quant_max).clamp(min=SMALLEST_STEP).float()
    scale = power_of_two(scale * (1 - 1e-6)) if fixed_point else scale  # a rounding error is not to double it
    return scale, torch.zeros_like(scale, dtype=torch.int8 if quant_max < 128 else torch.int32)


@_weight_grid.register_fake
def _(weight: Tensor, share: Tensor, axis: int | None, quant_max: int, fixed_point: bool) -> tuple[Tensor, Tensor]:
    zeros = torch.int8 if quant_max < 128 else torch.int32
    return torch.empty_like(share, dtype=torch.float32), torch.empty_like(share, dtype=zeros)


_tracked_grid.register_autograd(lambda ctx, *gradients: (None,) * 9)
_weight_grid.register_autograd(lambda ctx, *gradients: (None,) * 5)

tracked_grid = torch.ops.fxopt.tracked_grid.default
weight_grid = torch.ops.fxopt.weight_grid.default
