"""Grids of few bits for blocks of a weight: the range with the least squared error, and rounding to the nearest step.

For each block the range from its smallest to its largest value (zero included) is shrunk in STEPS steps; then the scale
is fitted to the rounded values by least squares and the values rounded again, as long as the error falls. Clipping
a few outliers makes all other steps finer. (The search over shrunk ranges is that of Frantar et al. 2022, "GPTQ", and
Lin et al. 2023, "AWQ"; the alternation between rounding and scale is Lloyd's algorithm on a uniform grid.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxopt.graph.blocks import dequantize_blocks, middle
from fxopt.graph.grids import SMALLEST_STEP

STEPS, SMALLEST_SHARE = 24, {8: 0.8, 4: 0.5, 2: 0.3}
FITS = 4
ELEMENTS = 2**22  # of a weight worked on at a time


@dataclass(frozen=True)
class BlockFormat:
    """How a weight is stored: `bits` 8, 4 or 2; `group_size` inputs share a scale (None: a whole row).

    `symmetric` weights have no zero points: the middle of the stored values stands for 0.
    """

    bits: int
    group_size: int | None
    symmetric: bool

    def block_size(self, columns: int) -> int:
        """Return how many inputs of a weight with so many share a scale."""
        return self.group_size or max(columns, 1)


@dataclass(frozen=True)
class BlockWeight:
    """A stored weight: q[N, K] of uint8, scale and zero point [N, blocks] (zero point None: the middle)."""

    q: Tensor
    scale: Tensor
    zero_point: Tensor | None
    block_size: int
    bits: int

    def dequantized(self) -> Tensor:
        """Return the weight in float32."""
        result = dequantize_blocks(self.q, self.scale, self.zero_point, 1, self.block_size, self.bits)
        assert isinstance(result, Tensor)
        return result


def fit_grid(groups: Tensor, layout: BlockFormat, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point, [R] each, that round groups[R, g] with the least Σ importance·error².

    `importance` is [g] or [R, g]; None weighs all elements alike.
    """
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    half, levels = middle(layout.bits), (1 << layout.bits) - 1
    if layout.symmetric:
        widest = torch.maximum(high / (half - 1), -low / half)
        zero = torch.full_like(widest, half)
    else:
        widest = (high - low) / levels
        zero = (-low / widest.clamp(min=SMALLEST_STEP)).round_().clamp_(0, levels)
    best, least = widest.clamp(min=SMALLEST_STEP), torch.full_like(widest, torch.inf)
    for step in range(STEPS):
        share = 1 - (1 - SMALLEST_SHARE[layout.bits]) * step / (STEPS - 1)
        best, least = _better(groups, widest * share, zero, layout.bits, importance, best, least)
    for _ in range(FITS):
        steps = nearest(groups, best[:, None], zero[:, None], layout.bits) - zero[:, None]
        weighted = steps if importance is None else steps * importance
        fitted = (weighted * groups).sum(1) / (weighted * steps).sum(1).clamp(min=SMALLEST_STEP)
        best, least = _better(groups, fitted, zero, layout.bits, importance, best, least)
    return best, zero


def _better(
    groups: Tensor, scale: Tensor, zero: Tensor, bits: int, importance: Tensor | None, best: Tensor, least: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the better of `scale` and `best`, whose error is `least`, for each group; and its error."""
    scale = scale.clamp(min=SMALLEST_STEP)
    steps = nearest(groups, scale[:, None], zero[:, None], bits)
    errors = steps.sub_(zero[:, None]).mul_(scale[:, None]).sub_(groups).square_()
    error = (errors if importance is None else errors.mul_(importance)).sum(1)
    return torch.where(error < least, scale, best), torch.minimum(error, least)


def nearest(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Round values to the nearest step of a grid; returns whole numbers in [0, 2^bits − 1], as floats."""
    return (values / scale).round_().add_(zero).clamp_(0, (1 << bits) - 1)


def round_to_nearest(weight: Tensor, layout: BlockFormat, importance: Tensor | None = None) -> BlockWeight:
    """Store a weight[N, K] with each value at the nearest step of its block; `importance` is [K]."""
    rows = max(1, ELEMENTS // max(1, weight.shape[1]))
    parts = [_round_rows(part.float(), layout, importance) for part in torch.split(weight, rows)]
    q, scale, zero = (torch.cat([part[index] for part in parts]) for index in range(3))
    return stored(q, scale, zero, layout)


def stored(q: Tensor, scale: Tensor, zero: Tensor, layout: BlockFormat) -> BlockWeight:
    """Give whole numbers, held as floats, the form in which they are stored."""
    zero_point = None if layout.symmetric else zero.to(torch.uint8)
    return BlockWeight(q.to(torch.uint8), scale, zero_point, layout.block_size(q.shape[1]), layout.bits)


def _round_rows(weight: Tensor, layout: BlockFormat, importance: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    size, block = weight.shape[1], layout.block_size(weight.shape[1])
    whole = size // block * block
    values, scales, zeros = [], [], []
    for start, length, width in ((0, whole, block), (whole, size - whole, size - whole)):
        if not length:
            continue
        groups = weight.narrow(1, start, length).reshape(-1, width)
        factors = None
        if importance is not None:
            factors = importance.narrow(0, start, length).reshape(-1, width).repeat(weight.shape[0], 1)
        scale, zero = fit_grid(groups, layout, factors)
        values.append(nearest(groups, scale[:, None], zero[:, None], layout.bits).reshape(-1, length))
        scales.append(scale.reshape(weight.shape[0], -1))
        zeros.append(zero.reshape(weight.shape[0], -1))
    return torch.cat(values, 1), torch.cat(scales, 1), torch.cat(zeros, 1)
