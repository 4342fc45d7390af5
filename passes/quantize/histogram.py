"""Histogram: the distribution of a stream of values, in a fixed number of bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxopt.graph.grids import SMALLEST_STEP

BINS = 2048
# At most so many elements of one batch of one value are sampled for the histogram,
SAMPLES = 65_536
# but where the outermost ones (this share of the sample on each side) span more than half of the range, these are all
# counted: the few large values that a sample misses may hold most of the energy.
TAIL = 1e-3
ROWS = 32
# A spread that float32 cannot hold in all steps of the way into a bin.
HUGE = 1e37


class Histogram:
    """BINS bins between `start` and `start + BINS * width`, and the smallest and largest value seen.

    A value outside doubles the range towards it: pairs of bins merge, so counts stay exact. Of a batch, long tails are
    counted in full and the rest by at most SAMPLES elements, each standing for as many as were left out. They are
    taken at a fixed stride that shares no factor with the number of elements, so that it visits all channels and
    places alike. While all values are the same one, `width` is 0 and bin 0 holds them.
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

    def edges(self) -> Tensor:
        """Return the BINS + 1 edges of the bins, float64."""
        return self.start + self.width * torch.arange(BINS + 1, dtype=torch.float64)

    def points(self) -> tuple[Tensor, Tensor]:
        """Return the centers of the bins in use, inside [low, high], and their counts, both float32."""
        used = self.counts > 0
        centers = (self.start + self.width * (torch.arange(BINS, dtype=torch.float64) + 0.5))[used]
        return centers.clamp(self.low, self.high).to(torch.float32), self.counts[used].to(torch.float32)

    def _count(self, values: Tensor) -> Tensor:
        if self.width * BINS > HUGE:
            values = values.double()
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
