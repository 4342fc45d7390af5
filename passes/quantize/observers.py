"""Observers: the range of a value from a stream of batches, in a few numbers or a histogram of fixed size.

An observer takes tensors of any shape, in one pass, and then says which range [low, high] to quantize. Both contain
zero: it must be representable, since padding and ReLU make many exact zeros.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

Observer = Literal["minmax", "mse"]

BINS = 2048
# At most so many elements of one batch of one value are sampled for the histogram,
SAMPLES = 65_536
# but where the outermost ones (this share of the sample on each side) span more than half of the range, these are all
# counted: the few large values that a sample misses may hold most of the energy.
TAIL = 1e-3
ROWS = 32
# Below this, ranges are taken for zero: scales and their products must stay normal float32 numbers.
SMALLEST_STEP = 1e-20
ZERO_RANGE = 1.0


class RangeObserver(Protocol):
    """What calibration needs of an observer."""

    low: float
    high: float

    def update(self, values: Tensor, low: float, high: float) -> None:
        """Take in one batch, whose smallest and largest value are given."""

    def range(self, steps: int) -> tuple[float, float]:
        """Return the range to quantize into steps + 1 values."""


class MinMax:
    """The range from the smallest to the largest value seen."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def update(self, values: Tensor, low: float, high: float) -> None:
        """Take in one batch, whose smallest and largest value are given."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self, steps: int) -> tuple[float, float]:
        """Return the range with zero included; (0, 0) if nothing was seen."""
        return min(self.low, 0.0), max(self.high, 0.0)


class MeanSquaredError:
    """The range that minimises the mean squared quantization error over a histogram.

    The histogram has BINS bins between `start` and `start + BINS * width`. A value outside doubles the range towards
    it: pairs of bins merge, so counts stay exact. Of a batch, long tails are counted in full and the rest by at most
    SAMPLES elements, each standing for as many as were left out. They are taken at a fixed stride that shares no
    factor with the number of elements, so that it visits all channels and places alike.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.start = 0.0
        self.width = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def update(self, values: Tensor, low: float, high: float) -> None:
        """Take in one batch, whose smallest and largest value are given."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(low, high)
        if self.width == 0.0:  # every value so far is the same one
            self.counts[0] += values.numel()
            return
        flat = values.reshape(-1)
        sample = subsample(flat)
        counts = self._count(sample)
        self.counts += counts if len(sample) == len(flat) else self._with_whole_tails(counts, flat, high - low)

    def _count(self, values: Tensor) -> Tensor:
        # One multiplication in the dtype of the values; the factor keeps the largest value out of bin number BINS.
        places = ((values - self.start) * ((1 - 1e-5) / self.width)).to(torch.int16)
        return torch.bincount(places, minlength=BINS).to(torch.float64)

    def _with_whole_tails(self, counts: Tensor, values: Tensor, spread: float) -> Tensor:
        """Scale the counts of a sample to all values, with long tails recounted over all of them."""
        limit = TAIL * counts.sum()
        first = int((counts.cumsum(0) <= limit).sum())
        last = BINS - int((counts.flip(0).cumsum(0) <= limit).sum())
        if (last - first) * self.width > spread / 2:
            return counts * (len(values) / counts.sum())
        tails = self._count(outside(values, self.start + first * self.width, self.start + last * self.width))
        tails[first:last] = 0
        counts[:first] = 0
        counts[last:] = 0
        return counts * ((len(values) - tails.sum()) / counts.sum()) + tails

    def _cover(self, low: float, high: float) -> None:
        if self.width == 0.0:
            first, count = self.start, float(self.counts[0])
            if count == 0.0:
                self.start = low
            low, high = min(low, self.start), max(high, self.start)
            self.width = (high - low) / BINS * (1 + 1e-6)
            if self.width < SMALLEST_STEP:
                self.width = 0.0
            self.start = low
            if count and self.width:
                self.counts.zero_()
                self.counts[min(int((first - low) / self.width), BINS - 1)] = count
            return
        while low < self.start:
            self.counts = torch.cat([torch.zeros(BINS // 2, dtype=torch.float64), self._pairs()])
            self.start -= BINS * self.width
            self.width *= 2
        while high > self.start + BINS * self.width:
            self.counts = torch.cat([self._pairs(), torch.zeros(BINS // 2, dtype=torch.float64)])
            self.width *= 2

    def _pairs(self) -> Tensor:
        return self.counts.reshape(-1, 2).sum(1)

    def range(self, steps: int) -> tuple[float, float]:
        """Return the range with zero included and the least squared error; (0, 0) if nothing was seen."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if self.width == 0.0:
            return low, high
        used = self.counts > 0
        centers = (self.start + self.width * (torch.arange(BINS, dtype=torch.float64) + 0.5))[used]
        values = centers.clamp(self.low, self.high).to(torch.float32)
        return best_range(values, self.counts[used].to(torch.float32), low, high, steps)


def subsample(flat: Tensor, limit: int = SAMPLES) -> Tensor:
    """Return at most `limit` elements, at a stride without a common factor with their number."""
    count = len(flat)
    if count <= limit:
        return flat
    stride = -(-count // limit)
    while math.gcd(stride, count) != 1:
        stride += 1
    return flat[::stride]


def outside(flat: Tensor, low: float, high: float) -> Tensor:
    """Return the elements below `low` and from `high` upwards; fast where they are few."""
    whole = len(flat) // ROWS * ROWS
    columns = flat[:whole].reshape(ROWS, -1)
    found = (columns.amax(0) >= high) | (columns.amin(0) < low)
    candidates = torch.cat([columns.index_select(1, found.nonzero().reshape(-1)).reshape(-1), flat[whole:]])
    return candidates[(candidates >= high) | (candidates < low)]


def best_range(values: Tensor, counts: Tensor, low: float, high: float, steps: int) -> tuple[float, float]:
    """Search the range inside [low, high] around zero with the least squared error of quantized `values`.

    Both ends shrink on a grid of fractions, which is then refined around the best pair three times.
    """
    best, spread = (1.0, 1.0), 0.45
    center = (0.55, 0.55)
    for size in (13, 7, 7, 7):
        lows = _fractions(center[0], spread, size) if low < 0 else [1.0]
        highs = _fractions(center[1], spread, size) if high > 0 else [1.0]
        pairs = [best, *((a, b) for a in lows for b in highs)]
        ends = torch.tensor(pairs, dtype=values.dtype) * torch.tensor([low, high], dtype=values.dtype)
        errors = squared_errors(values, counts, ends[:, 0], ends[:, 1], steps)
        best = pairs[int(errors.argmin())]
        center, spread = best, spread * 2 / (size - 1)
    return low * best[0], high * best[1]


def _fractions(center: float, spread: float, size: int) -> list[float]:
    grid = (center + spread * (2 * place / (size - 1) - 1) for place in range(size))
    return sorted({min(max(fraction, 0.01), 1.0) for fraction in grid})


def squared_errors(values: Tensor, counts: Tensor, lows: Tensor, highs: Tensor, steps: int) -> Tensor:
    """Return the summed squared error of quantizing weighted values to each of several ranges."""
    scales = ((highs - lows) / steps).clamp(min=SMALLEST_STEP)[:, None]
    zeros = torch.round(-lows[:, None] / scales)
    levels = (torch.round(values / scales) + zeros).clamp_(0, steps).sub_(zeros).mul_(scales)
    return levels.sub_(values).square_() @ counts


def affine_parameters(low: float, high: float, quant_min: int, quant_max: int) -> tuple[float, int]:
    """Return (scale, zero point) of a range that contains zero; zero is represented exactly.

    The scale is rounded to float32. A range that is (almost) only zero gets a scale as if it reached ZERO_RANGE.
    """
    if (high - low) / (quant_max - quant_min) < SMALLEST_STEP:
        low, high = 0.0, ZERO_RANGE
    scale = float(torch.tensor((high - low) / (quant_max - quant_min), dtype=torch.float32))
    zero_point = quant_min + round(-low / scale)
    return scale, min(max(zero_point, quant_min), quant_max)


OBSERVERS: dict[Observer, type[MinMax] | type[MeanSquaredError]] = {"minmax": MinMax, "mse": MeanSquaredError}
