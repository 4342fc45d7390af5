"""From ranges to grids: scales and zero points.

A scale is the real value of one integer step: x' = (q - zero point) · scale (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", equation 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below this, ranges are taken for zero: scales and their products must stay normal float32 numbers.
SMALLEST_STEP = 1e-20


def power_of_two(scales: Tensor) -> Tensor:
    """Round positive numbers up to powers of two, exactly."""
    mantissa, exponent = torch.frexp(scales)  # scale = mantissa · 2^exponent, 0.5 <= mantissa < 1
    return torch.ldexp(torch.ones_like(scales), exponent - (mantissa == 0.5).to(exponent.dtype))


def scales_of(
    lows: Tensor, highs: Tensor, quant_min: int, quant_max: int, symmetric: bool, fixed_point: bool
) -> Tensor:
    """Return the scales for ranges [low, high] around zero; powers of two for `fixed_point`."""
    scales = torch.maximum(-lows, highs) / quant_max if symmetric else (highs - lows) / (quant_max - quant_min)
    scales = scales.clamp(min=SMALLEST_STEP)
    return power_of_two(scales) if fixed_point else scales


def zero_points_of(lows: Tensor, scales: Tensor, quant_min: int, symmetric: bool) -> Tensor:
    """Return the zero points of ranges that begin at `lows`, as floats; they may lie outside of the integers."""
    return torch.zeros_like(scales) if symmetric else quant_min + torch.round(-lows / scales)
