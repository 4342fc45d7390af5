"""Scales of weights: symmetric, for each output channel or for the whole weight, perhaps with the largest clipped."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxopt.graph.grids import SMALLEST_STEP, power_of_two
from fxopt.passes.quantize.scheme import Scheme
from fxopt.target import Target

# The clips tried for the least squared error, as fractions of the largest magnitude.
FRACTIONS = [1 - 0.02 * step for step in range(45)]


def largest_integer(scheme: Scheme, target: Target) -> int:
    """Return the largest magnitude of an integer weight; a target does not limit a simulation of 16 bits."""
    return scheme.weight_max if scheme.weight_bits > 8 else min(scheme.weight_max, target.weight_max)


def symmetric_scales(weight: Tensor, weight_max: int, smallest: Tensor, scheme: Scheme | None = None) -> Tensor:
    """Return the scale of each output channel, no less than `smallest` ([channels]); float32.

    It maps the largest magnitude that is not clipped to `weight_max`. One scale for the whole weight, and then
    0-dimensional, if the scheme is not per channel.
    """
    scheme = scheme or Scheme()
    rows = weight.reshape(weight.shape[0] if scheme.per_channel else 1, -1)
    if not scheme.per_channel:
        smallest = smallest.amax().reshape(1)
    magnitudes = clipped_magnitudes(rows, weight_max, scheme) if rows.numel() else torch.zeros(len(rows))
    scales = _scales(torch.maximum(magnitudes.double() / weight_max, smallest), scheme)
    return scales if scheme.per_channel else scales[0]


def _scales(steps: Tensor, scheme: Scheme) -> Tensor:
    steps = steps.clamp(min=SMALLEST_STEP).to(torch.float32)
    return power_of_two(steps) if scheme.power_of_two else steps


def clipped_magnitudes(rows: Tensor, weight_max: int, scheme: Scheme) -> Tensor:
    """Return for each row of [rows, columns] the magnitude at which it is clipped."""
    largest = rows.abs().amax(1)
    if scheme.clip_weights is None:
        return largest
    if isinstance(scheme.clip_weights, str):
        return largest * _best_fractions(rows, largest, weight_max, scheme)
    count = rows.shape[1]
    return rows.abs().kthvalue(max(1, math.ceil(count * scheme.clip_weights / 100)), 1).values


def _best_fractions(rows: Tensor, largest: Tensor, weight_max: int, scheme: Scheme) -> Tensor:
    best, least = torch.ones_like(largest), torch.full_like(largest, torch.inf)
    for fraction in FRACTIONS:
        scales = _scales(largest.double() * fraction / weight_max, scheme)[:, None]
        errors = (rows / scales).round_().clamp_(-weight_max, weight_max).mul_(scales).sub_(rows).square_().sum(1)
        best = torch.where(errors < least, fraction, best)
        least = torch.minimum(errors, least)
    return best
