"""Clips (relu, relu6, ...) before a quantization: grids whose saturation does what the clip does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from fxopt.passes.quantize.rules import Bounds
from fxopt.passes.quantize.scheme import Levels


def clip_is_redundant(scale: float, zero_point: int, bounds: Bounds, quant_min: int, quant_max: int) -> bool:
    """Say whether saturation to the integer range does all that clipping to `bounds` before would do."""
    low, high = (end / scale if math.isfinite(end) else end for end in bounds)
    below = low == -math.inf or round(low) + zero_point <= quant_min
    return below and (high == math.inf or round(high) + zero_point >= quant_max)


def absorbing_levels(levels: Levels, low: float, high: float, bounds: Sequence[Bounds]) -> tuple[float, int, Levels]:
    """Return scale, zero point and levels of a range, such that clipping to any of the bounds before is redundant.

    An affine scale shrinks by rounding errors. Other scales are not free: there the levels end where the clip does,
    which is exact, since rounding keeps the order of values.
    """
    scale, zero_point = levels.parameters(low, high)
    if not (levels.symmetric or levels.power_of_two):
        return _absorbing_scale(scale, zero_point, levels, bounds), zero_point, levels
    if len(set(bounds)) == 1 and bounds[0][0] <= 0 <= bounds[0][1]:
        step = torch.tensor(scale, dtype=torch.float32)
        ends = (torch.round(torch.tensor(bounds[0]) / step) + zero_point).clamp(levels.quant_min, levels.quant_max)
        levels = replace(levels, quant_min=int(ends[0]), quant_max=int(ends[1]))
    return scale, zero_point, levels


def largest_absorbing_scale(
    scale: float, zero_point: int, bounds: Iterable[Bounds], quant_min: int, quant_max: int
) -> float | None:
    """Return the largest scale up to which the clips that are redundant at `scale` are so; None for no limit."""
    largest = math.inf
    for limits in bounds:
        if clip_is_redundant(scale, zero_point, limits, quant_min, quant_max):
            for end, level in zip(limits, (quant_min, quant_max), strict=True):
                # An end is rounded to the level, or beyond it, where it is half a step short of it or less.
                if math.isfinite(end) and level != zero_point:
                    largest = min(largest, abs(end) / (abs(level - zero_point) - 0.5) * (1 - 2**-10))
    return None if largest == math.inf else max(largest, scale)


def _absorbing_scale(scale: float, zero_point: int, levels: Levels, bounds: Iterable[Bounds]) -> float:
    """Shrink a scale by rounding errors, until clipping to any of the bounds is redundant."""
    for limits in bounds:
        for shrink in range(24):
            factor = 1 - 2.0 ** (shrink - 30) if shrink else 1.0
            candidate = float(torch.tensor(scale * factor, dtype=torch.float32))
            if clip_is_redundant(candidate, zero_point, limits, levels.quant_min, levels.quant_max):
                scale = candidate
                break
    return scale
