"""Observers: the range of a value from a stream of batches, in a few numbers or a histogram of fixed size.

An observer takes tensors of any shape, in one pass, and then says which range [low, high] to quantize. Both contain
zero: it must be representable, since padding and ReLU make many exact zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from fxopt.errors import PassError
from fxopt.passes.quantize.histogram import Histogram
from fxopt.passes.quantize.range_search import Range, divergence_range, squared_error_range, whole_range
from fxopt.passes.quantize.scheme import Scheme

Observer = Literal["minmax", "moving-average", "mse", "percentile", "entropy", "auto"]
Search = Callable[[Histogram, Scheme], Range]

DECAY = 0.99
PERCENTILE = 99.99


class RangeObserver(Protocol):
    """What calibration needs of an observer."""

    def update(self, values: Tensor, low: float, high: float) -> None:
        """Take in one value of an item, whose smallest and largest element are given."""

    def end_item(self) -> None:
        """Take note that the item is over: a group may have several values an item."""

    def range(self, scheme: Scheme) -> Range:
        """Return the range to quantize."""


class MinMax:
    """The range from the smallest to the largest value seen."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def update(self, values: Tensor, low: float, high: float) -> None:
        """Take in one value of an item, whose smallest and largest element are given."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def end_item(self) -> None:
        """Do nothing."""

    def range(self, scheme: Scheme) -> Range:
        """Return the range with zero included; (0, 0) if nothing was seen."""
        return min(self.low, 0.0), max(self.high, 0.0)


class MovingAverage:
    """The exponential moving averages of the smallest and the largest value of each item (Jacob et al. 2018, 3.1).

    The weights DECAY^(items since) are divided by their sum, so that the first item weighs no more than the others.
    """

    def __init__(self) -> None:
        self.item = MinMax()
        self.low = self.high = self.weight = 0.0

    def update(self, values: Tensor, low: float, high: float) -> None:
        """Take in one value of an item, whose smallest and largest element are given."""
        self.item.update(values, low, high)

    def end_item(self) -> None:
        """Average the range of the item in, if it had elements."""
        if self.item.low <= self.item.high:
            self.low = DECAY * self.low + (1 - DECAY) * self.item.low
            self.high = DECAY * self.high + (1 - DECAY) * self.item.high
            self.weight = DECAY * self.weight + (1 - DECAY)
        self.item = MinMax()

    def range(self, scheme: Scheme) -> Range:
        """Return the range with zero included; (0, 0) if nothing was seen."""
        if self.weight == 0.0:
            return 0.0, 0.0
        return min(self.low / self.weight, 0.0), max(self.high / self.weight, 0.0)


@dataclass
class HistogramObserver:
    """The range that a search finds on a histogram of all values."""

    search: Search
    histogram: Histogram = field(default_factory=Histogram)

    def update(self, values: Tensor, low: float, high: float) -> None:
        """Take in one value of an item, whose smallest and largest element are given."""
        self.histogram.update(values, low, high)

    def end_item(self) -> None:
        """Do nothing."""

    def range(self, scheme: Scheme) -> Range:
        """Return the range with zero included; (0, 0) if nothing was seen."""
        return searched_range(self.search, self.histogram, scheme)


def searched_range(search: Search, histogram: Histogram, scheme: Scheme) -> Range:
    """Return what a search finds; the whole range where all values are the same one."""
    return search(histogram, scheme) if histogram.width else whole_range(histogram, scheme)


def percentile_range(histogram: Histogram, scheme: Scheme, percentile: float = PERCENTILE) -> Range:
    """Return the range of the middle `percentile` percent of all values, half of the rest cut off on each side."""
    share = (1 - percentile / 100) / 2
    low, high = (min(max(value, histogram.low), histogram.high) for value in quantiles(histogram, (share, 1 - share)))
    return min(low, 0.0), max(high, 0.0)


def quantiles(histogram: Histogram, shares: tuple[float, ...]) -> list[float]:
    """Return the values below which these shares of all values lie; inside a bin they are taken as evenly spread."""
    below = torch.cat([torch.zeros(1, dtype=torch.float64), histogram.counts.cumsum(0)])
    wanted = torch.tensor(shares, dtype=torch.float64) * below[-1]
    bins = (torch.searchsorted(below, wanted) - 1).clamp(0, len(below) - 2)
    inside = (wanted - below[bins]) / (below[bins + 1] - below[bins]).clamp(min=1e-30)
    return (histogram.start + histogram.width * (bins + inside.clamp(0, 1))).tolist()


# What "auto" chooses from; where several are as good, the first.
SEARCHES: dict[Observer, Search] = {
    "mse": squared_error_range,
    "minmax": whole_range,
    "percentile": percentile_range,
    "entropy": divergence_range,
}


def make_observer(observer: Observer) -> RangeObserver:
    """Return a new observer of one group."""
    if observer == "minmax":
        return MinMax()
    if observer == "moving-average":
        return MovingAverage()
    return HistogramObserver(SEARCHES["mse" if observer == "auto" else observer])


def check_observer(observer: str) -> None:
    """Raise PassError for a name that no observer has."""
    if observer not in get_args(Observer):
        raise PassError(f"There is no observer '{observer}'. Choose one of {', '.join(get_args(Observer))}.")
