"""Weights with one symmetric int8 scale a row, for the passes that need no calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from fxopt.graph.ops import quantize
from fxopt.passes.quantize.round_gptq import round_on_grid
from fxopt.passes.quantize.weight_scales import symmetric_scales

INT8_MAX = 127


def quantize_rows(weight: Tensor, weight_max: int = INT8_MAX, hessian: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return a matrix in int8 steps [-weight_max, weight_max] of one symmetric scale a row, and the scales.

    With the second moment of its inputs, `hessian`, rounding is as in RoundGptq, else to the nearest.
    """
    scale = symmetric_scales(weight, weight_max, torch.zeros(weight.shape[0], dtype=torch.float64))
    zeros = torch.zeros(scale.shape, dtype=torch.int8)
    if hessian is not None:
        weight = round_on_grid(weight, hessian, scale, zeros, (-weight_max, weight_max))
    stored = quantize(weight, scale, zeros, 0, -weight_max, weight_max, torch.int8)
    assert isinstance(stored, Tensor)
    return stored, scale
