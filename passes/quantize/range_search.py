"""Searches of a range on a histogram: the one with the least squared error, and the one with the least divergence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fxopt.passes.quantize.histogram import Histogram
from fxopt.passes.quantize.scheme import Levels, Scheme

Errors = Callable[[Tensor, Tensor], Tensor]
Range = tuple[float, float]
SIZES = (13, 7, 7, 7)


def whole_range(histogram: Histogram, scheme: Scheme) -> Range:
    """Return the range of all that was seen, zero included; (0, 0) if nothing was."""
    return min(histogram.low, 0.0), max(histogram.high, 0.0)


def squared_error_range(histogram: Histogram, scheme: Scheme) -> Range:
    """Return the range with the least squared quantization error."""
    low, high = whole_range(histogram, scheme)
    levels = scheme.levels(low)
    values, counts = histogram.points()
    return best_range(low, high, levels, partial(squared_errors, values, counts, levels))


def divergence_range(histogram: Histogram, scheme: Scheme) -> Range:
    """Return the range whose quantized distribution has the least Kullback-Leibler divergence from the seen one.

    Migacz 2017, "8-bit Inference with TensorRT" (GTC), with both ends searched and with the true grid of levels. Zero
    is exact in every range: the bin that holds it counts no more than the larger of its neighbours, or the many zeros
    behind a ReLU would decide alone.
    """
    low, high = whole_range(histogram, scheme)
    levels = scheme.levels(low)
    values, counts = histogram.points()
    zero = int(values.abs().argmin())
    around = counts[[place for place in (zero - 1, zero + 1) if 0 <= place < len(counts)]]
    if len(around) and histogram.low <= 0 <= histogram.high:
        counts[zero] = torch.minimum(counts[zero], around.max())
    return best_range(low, high, levels, partial(divergences, values, counts, levels))


def best_range(low: float, high: float, levels: Levels, errors: Errors) -> Range:
    """Search the range inside [low, high] around zero with the least error.

    Both ends shrink on a grid of fractions, which is then refined around the best pair three times. With symmetric
    levels the two ends are cut at one magnitude.
    """
    best, spread = (1.0, 1.0), 0.45
    center = (0.55, 0.55)
    for size in SIZES:
        lows = _fractions(center[0], spread, size) if low < 0 else [1.0]
        highs = _fractions(center[1], spread, size) if high > 0 else [1.0]
        if levels.symmetric:
            pairs = [best, *((a, a) for a in _fractions(center[0], spread, size))]
        else:
            pairs = [best, *((a, b) for a in lows for b in highs)]
        found = errors(*_ends(pairs, low, high, levels.symmetric))
        best = pairs[int(found.argmin())]
        center, spread = best, spread * 2 / (size - 1)
    if levels.symmetric:
        largest = max(-low, high) * best[0]
        return max(low, -largest), min(high, largest)
    return low * best[0], high * best[1]


def _fractions(center: float, spread: float, size: int) -> list[float]:
    grid = (center + spread * (2 * place / (size - 1) - 1) for place in range(size))
    return sorted({min(max(fraction, 0.01), 1.0) for fraction in grid})


def _ends(pairs: list[Range], low: float, high: float, symmetric: bool) -> tuple[Tensor, Tensor]:
    fractions = torch.tensor(pairs, dtype=torch.float32)
    if symmetric:
        largest = fractions[:, 0] * max(-low, high)
        return (-largest).clamp(min=low), largest.clamp(max=high)
    ends = fractions * torch.tensor([low, high], dtype=torch.float32)
    return ends[:, 0], ends[:, 1]


def squared_errors(values: Tensor, counts: Tensor, levels: Levels, lows: Tensor, highs: Tensor) -> Tensor:
    """Return the summed squared error of quantizing weighted values to each of several ranges."""
    scales, zeros = levels.grid(lows, highs)
    return levels.quantized(values, scales, zeros).sub_(values).square_() @ counts


def divergences(values: Tensor, counts: Tensor, levels: Levels, lows: Tensor, highs: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence for each of several ranges.

    Σ p·log(p / q) over the bins that no end cuts off. p: the counts, those cut off added to the outermost bin inside;
    q: the counts inside, with those of one level spread evenly over its bins.
    """
    scales, zeros = levels.grid(lows, highs)
    places = torch.round(values / scales[:, None]) + zeros[:, None] - levels.quant_min
    below, above = places < 0, places > levels.steps
    inside = ~(below | above)
    index = places.clamp_(0, levels.steps).to(torch.int64)
    weights = inside.to(counts.dtype)
    masses = torch.zeros(len(scales), levels.steps + 1).scatter_add_(1, index, weights * counts)
    bins = torch.zeros_like(masses).scatter_add_(1, index, weights)
    q = (masses / bins.clamp(min=1)).gather(1, index)
    p = weights * counts
    rows = torch.arange(len(scales))
    last = len(values) - 1 - weights.flip(1).argmax(1)
    p[rows, weights.argmax(1)] += below.to(counts.dtype) @ counts
    p[rows, last] += above.to(counts.dtype) @ counts
    p, q = p / p.sum(1, keepdim=True), q / (q * weights).sum(1, keepdim=True)
    return torch.where(inside, p * (p / q.clamp(min=1e-30)).clamp(min=1e-30).log(), 0).sum(1)
