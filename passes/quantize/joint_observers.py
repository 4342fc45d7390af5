"""Calibration in several processes: each runs its share of the items, and all get the statistics of the whole."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, distributed

from fxopt.errors import PassError
from fxopt.passes.quantize.histogram import BINS, Histogram
from fxopt.passes.quantize.observers import HistogramObserver, MinMax, MovingAverage, RangeObserver
from fxopt.passes.quantize.range_search import Range


@dataclass(frozen=True)
class Share:
    """The items of one of `count` processes: every one whose number has the remainder `index`."""

    index: int = 0
    count: int = 1

    def has(self, number: int) -> bool:
        """Say whether this process runs the item."""
        return number % self.count == self.index


ALL = Share()


def share_of(processes: Literal["this", "all"]) -> Share:
    """Return the items that this process runs. Raises PassError for "all" if torch.distributed is not initialised."""
    if processes not in ("this", "all"):
        raise PassError(f"processes={processes!r}: choose 'this' or 'all'.")
    if processes == "this":
        return ALL
    if not (distributed.is_available() and distributed.is_initialized()):
        raise PassError(
            'Calibrate(processes="all") needs torch.distributed: start the script with torchrun or accelerate launch, '
            "and call it after fxopt.train or torch.distributed.init_process_group."
        )
    return Share(distributed.get_rank(), distributed.get_world_size())


def join(observers: Mapping[str, RangeObserver], extents: MutableMapping[str, Range], names: Collection[str]) -> None:
    """Give the observers of all processes the statistics of all items, the same everywhere.

    `extents`: the ends of the values with these names, where a process has seen them. Smallest and largest values are
    exact. Moving averages are averaged, by their weights. Histograms are laid on one grid; a bin that reaches across an
    edge of it is divided there.
    """
    _join_extents(extents, sorted(names))
    for name in sorted(observers):
        observer = observers[name]
        if isinstance(observer, MinMax):
            observer.low, observer.high = _ends(observer.low, observer.high)
        elif isinstance(observer, MovingAverage):
            sums = _sum([observer.low, observer.high, observer.weight])
            observer.low, observer.high, observer.weight = sums.tolist()
        elif isinstance(observer, HistogramObserver):
            observer.histogram = joined([_histogram(row) for row in _gathered(_row(observer.histogram))])


def joined(parts: Collection[Histogram]) -> Histogram:
    """Return the histogram of all values of some, on the grid of the first: the one that it has in one process."""
    result = Histogram()
    seen = [part for part in parts if part.low <= part.high]
    if seen:
        result.start, result.width = seen[0].start, seen[0].width
    for part in seen:
        result.update(torch.tensor([]), part.low, part.high)
    edges = result.edges().numpy()
    for part in seen:
        if result.width == 0.0:
            result.counts[0] += part.counts.sum()
        elif part.width == 0.0:
            place = int((part.start - result.start) / result.width)
            result.counts[min(max(place, 0), BINS - 1)] += part.counts.sum()
        else:
            below = np.concatenate([[0.0], part.counts.cumsum(0).numpy()])
            reached = np.interp(edges, part.edges().numpy(), below)
            reached[0], reached[-1] = 0.0, below[-1]  # the outermost bins of a part may reach over all values
            result.counts += torch.from_numpy(np.diff(reached))
    return result


def _join_extents(extents: MutableMapping[str, Range], names: Collection[str]) -> None:
    nothing = (math.inf, -math.inf)
    pairs = [extents.get(name, nothing) for name in names]
    ends = torch.tensor([[low for low, _ in pairs], [-high for _, high in pairs]], dtype=torch.float64)
    distributed.all_reduce(ends, distributed.ReduceOp.MIN)
    for name, low, high in zip(names, ends[0].tolist(), (-ends[1]).tolist(), strict=True):
        if low <= high:
            extents[name] = (low, high)


def _ends(low: float, high: float) -> tuple[float, float]:
    ends = torch.tensor([low, -high], dtype=torch.float64)
    distributed.all_reduce(ends, distributed.ReduceOp.MIN)
    return float(ends[0]), -float(ends[1])


def _sum(numbers: list[float]) -> Tensor:
    total = torch.tensor(numbers, dtype=torch.float64)
    distributed.all_reduce(total)
    return total


def _gathered(row: Tensor) -> list[Tensor]:
    rows = [torch.empty_like(row) for _ in range(distributed.get_world_size())]
    distributed.all_gather(rows, row)
    return rows


def _row(histogram: Histogram) -> Tensor:
    head = torch.tensor([histogram.low, histogram.high, histogram.start, histogram.width], dtype=torch.float64)
    return torch.cat([head, histogram.counts])


def _histogram(row: Tensor) -> Histogram:
    result = Histogram()
    result.low, result.high, result.start, result.width = row[:4].tolist()
    result.counts = row[4:]
    return result
