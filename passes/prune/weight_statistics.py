"""weight_statistics(): how the weights of a Program are distributed, to choose a threshold or a share by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.passes.prune.weights import Weight, weights_of

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class WeightDistribution:
    """One weight, or all together.

    - `name`, `shape`, `count`: of the tensor. `zeros`: how many are zero, masked ones included.
    - `mean`, `deviation`: of its elements; `kurtosis`: E[(w - mean)^4] / deviation^4, 3 for normal ones, more for few
      large weights among many small ones, NaN where all are equal.
    - `quantiles`: of |w|, by the share of weights that are at most as large.
    - `below`: the share of weights with |w| < t, by t: what Magnitude(t) would take.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    zeros: int
    mean: float
    deviation: float
    kurtosis: float
    quantiles: Mapping[float, float]
    below: Mapping[float, float]


@dataclass(frozen=True)
class WeightStatistics:
    """The distribution of each weight that products contract, in the order of the graph; `total`: of all elements."""

    weights: tuple[WeightDistribution, ...]
    total: WeightDistribution

    def __str__(self) -> str:
        head = ["weight", "shape", "zeros", "mean", "deviation", "kurtosis"]
        head += [f"|w| {share:.0%}" for share in self.total.quantiles]
        head += [f"< {threshold:g}" for threshold in self.total.below]
        rows = [head, *map(_cells, (*self.weights, self.total))]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        return "\n".join(_line(row, widths) for row in rows)


def weight_statistics(program: Program, thresholds: Sequence[float] = THRESHOLDS) -> WeightStatistics:
    """Describe the weights of a Program, behind their masks where they have any.

    `thresholds` are those of which the table says how many weights are below. Raises PassError where no product of the
    Program reads a weight.
    """
    found = weights_of(program)
    if not found:
        raise PassError("No convolution, linear layer or product of this Program reads a weight: nothing to describe.")
    values = [_elements(weight) for weight in found]
    each = tuple(
        _describe(weight.name, tuple(weight.value.shape), elements, thresholds)
        for weight, elements in zip(found, values, strict=True)
    )
    everything = np.concatenate(values)
    return WeightStatistics(each, _describe("total", (everything.size,), everything, thresholds))


def _elements(weight: Weight) -> np.ndarray:
    product: Tensor = weight.value.detach().float() * weight.mask
    return product.flatten().numpy()


def _describe(name: str, shape: tuple[int, ...], values: np.ndarray, thresholds: Sequence[float]) -> WeightDistribution:
    sizes = np.sort(np.abs(values))
    mean = float(values.mean(dtype=np.float64))
    deviation = float(values.std(dtype=np.float64))
    squares = np.square((values - mean) / deviation) if deviation else None
    return WeightDistribution(
        name,
        shape,
        count=values.size,
        zeros=int(np.searchsorted(sizes, 0, side="right")),
        mean=mean,
        deviation=deviation,
        kurtosis=math.nan if squares is None else float(np.square(squares).mean(dtype=np.float64)),
        quantiles={share: float(sizes[max(math.ceil(share * sizes.size) - 1, 0)]) for share in QUANTILES},
        below={t: float(np.searchsorted(sizes, np.float32(t), side="left")) / sizes.size for t in thresholds},
    )


def _cells(row: WeightDistribution) -> list[str]:
    numbers = (row.mean, row.deviation, row.kurtosis, *row.quantiles.values())
    shares = (row.zeros / row.count, *row.below.values())
    zeros, *below = (f"{share:.1%}" for share in shares)
    return [row.name, "x".join(map(str, row.shape)), zeros, *(f"{number:.3g}" for number in numbers), *below]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *rest = zip(cells, widths, strict=True)
    return "  ".join((name[0].ljust(name[1]), *(cell.rjust(width) for cell, width in rest)))
