"""SCORES: how much each position of a dimension of a tensor matters. A unit's score sums over all it takes along."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxopt.graph.rewrite import constant
from fxopt.passes.prune.coordinates import Coordinates
from fxopt.passes.prune.groups import Group, Occurrences, tensor_nodes

Scores = Mapping[int, float]  # of units
PositionScore = Callable[[Tensor, int], Tensor]


def _squares(tensor: Tensor, dim: int) -> Tensor:
    """Sum of squares of the weights of each position (Li et al. 2017, "Pruning Filters for Efficient ConvNets")."""
    return _others_summed(tensor.square(), dim)


def _magnitudes(tensor: Tensor, dim: int) -> Tensor:
    return _others_summed(tensor.abs(), dim)


def _others_summed(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1).sum(1)


SCORES: dict[str, PositionScore] = {"l2": _squares, "l1": _magnitudes}


def unit_scores(found: Coordinates, table: Occurrences, groups: Sequence[Group], score: str) -> Scores:
    """Return the score of every unit: that of its weights, divided by the mean of its group.

    Tensors of one dimension (biases, norms) count only for units that take nothing else.
    """
    kind = SCORES[score]
    tensors = {name: constant(found.program.module, node) for name, node in tensor_nodes(found)}
    values, matters = np.zeros(len(table.unit)), np.zeros(len(table.unit), bool)
    for number, (name, dim) in enumerate(table.dims):
        tensor, here = tensors[name], table.dim == number
        assert tensor is not None
        if here.any():
            values[here] = kind(tensor.detach().float(), dim).numpy()[table.position[here]]
            matters[here] = tensor.ndim > 1
    by_weight, by_all = (_sum(table.unit, values * part) for part in (matters, np.ones_like(matters)))
    raw = {unit: by_weight[unit] or by_all[unit] for unit in by_all}
    return {unit: raw[unit] / mean for group in groups for mean in [_mean(raw, group)] for unit in group.units}


def _sum(units: NDArray[Any], values: NDArray[Any]) -> dict[int, float]:
    unique, place = np.unique(units, return_inverse=True)
    return dict(zip(unique.tolist(), np.bincount(place, values, len(unique)).tolist(), strict=True))


def _mean(raw: Scores, group: Group) -> float:
    mean = sum(raw[unit] for unit in group.units) / len(group.units)
    return mean if mean > 0 and torch.isfinite(torch.tensor(mean)) else 1.0
