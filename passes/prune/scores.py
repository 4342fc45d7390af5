"""Scores that need no data: how much each unit matters, from its weights. All in arrays of units (see Units).

A score sums over what a unit takes along of each tensor.

- `weights`: "read", those that read a unit, since it is gone when they are zero, or "all" that go with it. Units that
  no layer reads (positions of query and key heads) have all of theirs.
- `reduction` makes one number out of those of its tensors.
- `normalize` makes numbers of different groups comparable: it divides them by the mean or the largest of the group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fxopt.errors import PassError
from fxopt.graph.rewrite import argument
from fxopt.passes.prune.coordinates import Coordinates
from fxopt.passes.prune.groups import Group
from fxopt.passes.prune.ranking import Ranking, ranked
from fxopt.passes.prune.units import Floats, Normalize, Reduction, Units, Weights, check_choices, units_of

Scores = Mapping[int, float]  # of units
ROWS = 1024  # whose distances to all others are in memory at once

aten = torch.ops.aten


class Score(Protocol):
    """Anything that gives each unit a number, `[units]`; the lowest go first."""

    def __call__(self, units: Units) -> Floats:
        """Return the numbers in the order of `units.ids`; those of units in no group do not count."""
        ...


@dataclass(frozen=True)
class L2:
    """Sum of the squares of a unit's weights (Li et al. 2017, "Pruning Filters for Efficient ConvNets")."""

    reduction: Reduction = "sum"
    normalize: Normalize = "mean"
    weights: Weights = "read"

    def __call__(self, units: Units) -> Floats:
        """Return the score of each unit."""
        return _weighed(self, units, torch.square)


@dataclass(frozen=True)
class L1:
    """Sum of the magnitudes of a unit's weights (Li et al. 2017)."""

    reduction: Reduction = "sum"
    normalize: Normalize = "mean"
    weights: Weights = "read"

    def __call__(self, units: Units) -> Floats:
        """Return the score of each unit."""
        check_choices(self.reduction, self.normalize, self.weights)
        parts = units.sums(lambda name, dim: over_others(units.tensors[name].float().abs(), dim))
        return units.normalize(units.reduce(parts, self.reduction, self.weights), self.normalize)


@dataclass(frozen=True)
class BatchNormScale:
    """|gamma| of a unit's batch norms (Liu et al. 2017, "Learning Efficient Convolutional Networks through Network
    Slimming").

    Units without a batch norm are ranked by L2 among their own, both relative to the mean of their group. Raises
    PassError if there is no batch norm with a scale.
    """  # noqa: D205

    reduction: Reduction = "sum"

    def __call__(self, units: Units) -> Floats:
        """Return the score of each unit."""
        check_choices(self.reduction)
        norms = units.program.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
        scales = {units.names.get(str(getattr(argument(node, "weight"), "target", ""))) for node in norms} - {None}
        if not scales:
            raise PassError(
                "BatchNormScale: there is no batch norm with a scale in this Program. FoldBatchNorm, which is part of "
                "CLEANUP, folds them into layers: remove channels before it, or choose L2()."
            )
        parts = units.sums(lambda name, dim: units.tensors[name].abs() if name in scales else None)
        found = units.normalize(units.reduce(parts, self.reduction), "mean")
        return or_else(found, units.normalize(squares(units, "sum", "read"), "mean"))


@dataclass(frozen=True)
class GeometricMedian:
    """Sum of the distances to the other filters of the same tensor, so that what others can replace goes first.

    He et al. 2019, "Filter Pruning via Geometric Median for Deep Neural Networks Acceleration", equation 7. What a
    unit takes from a dimension are its filters there.
    """

    reduction: Reduction = "sum"
    normalize: Normalize = "mean"

    def __call__(self, units: Units) -> Floats:
        """Return the score of each unit."""
        check_choices(self.reduction, self.normalize)
        parts = units.sums(lambda name, dim: _distances(units.tensors[name], dim))
        return units.normalize(units.reduce(parts, self.reduction), self.normalize)


@dataclass(frozen=True)
class Lamp:
    """Squares of a unit over those of all units of its group that are not smaller, so that groups are comparable.

    Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", equation 4, with the units of a group in
    the place of the weights of a layer, and weights that read a unit. The last unit of a group has 1.
    """

    reduction: Reduction = "sum"

    def __call__(self, units: Units) -> Floats:
        """Return the score of each unit."""
        check_choices(self.reduction)
        result = squares(units, self.reduction, "read")
        for members in units.members:
            order = members[np.argsort(result[members], kind="stable")]
            left = np.cumsum(result[order][::-1])[::-1]
            result[order] = np.divide(result[order], left, out=np.ones(len(order)), where=left > 0)
        return result


@dataclass(frozen=True)
class Random:
    """Random numbers: what any other score has to beat."""

    seed: int = 0

    def __call__(self, units: Units) -> Floats:
        """Return the score of each unit."""
        return np.random.default_rng(self.seed).random(len(units))


NAMED: dict[str, Callable[[], Score]] = {"l2": L2, "l1": L1}


def named_score(score: Score | str) -> Score:
    """Return a score by its name. Raises PassError if there is none."""
    if isinstance(score, str):
        if score not in NAMED:
            raise PassError(
                f"There is no score '{score}'. Choose one of {', '.join(NAMED)}, or pass an object: L2(), Taylor(data)."
            )
        return NAMED[score]()
    if isinstance(score, type) or not callable(score):
        raise PassError(f"score={score!r} is no score; pass an object such as L2() or Taylor(data).")
    return score


def unit_scores(
    found: Coordinates, groups: Sequence[Group], score: Score | str = "l2", ranking: Ranking = "global"
) -> Scores:
    """Return the score of every unit of some groups; units go in their order."""
    units = units_of(found, groups)
    scores = ranked(units, named_score(score)(units), ranking)
    return {int(units.ids[place]): float(scores[place]) for members in units.members for place in members}


def _weighed(score: L1 | L2, units: Units, of: Callable[[Tensor], Tensor]) -> Floats:
    check_choices(score.reduction, score.normalize, score.weights)
    parts = units.sums(lambda name, dim: over_others(of(units.tensors[name]), dim))
    return units.normalize(units.reduce(parts, score.reduction, score.weights), score.normalize)


def squares(units: Units, reduction: Reduction, weights: Weights) -> Floats:
    """Return the sum of the squares of each unit's weights."""
    parts = units.sums(lambda name, dim: over_others(units.tensors[name].float().square(), dim))
    return units.reduce(parts, reduction, weights)


def over_others(tensor: Tensor, dim: int) -> Tensor:
    """Sum over all dimensions but one, in float64."""
    others = [other for other in range(tensor.ndim) if other != dim]
    return tensor.sum(others, dtype=torch.float64) if others else tensor.double()


def or_else(scores: Floats, fallback: Floats) -> Floats:
    """Return scores, and those of a fallback where there are none."""
    return np.where(np.isnan(scores), fallback, scores)


def _distances(tensor: Tensor, dim: int) -> Tensor:
    filters = tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1).float()
    return torch.cat([torch.cdist(some, filters).sum(1) for some in torch.split(filters, ROWS)])
