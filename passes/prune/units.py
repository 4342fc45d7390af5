"""Units as arrays: what each takes from each dimension of each tensor, for scores that sum over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import constant
from fxopt.passes.prune.coordinates import Coordinates
from fxopt.passes.prune.groups import Group, occurrences, tensor_nodes
from fxopt.passes.prune.input_norms import input_dims

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Reduction = Literal["sum", "mean", "max"]
Normalize = Literal["mean", "max", "none"]
Weights = Literal["read", "all"]
# Of a tensor's name and a dimension: [positions], or None where it has no part in a score.
PositionValues = Callable[[str, int], Tensor | None]


@dataclass(frozen=True)
class Units:
    """The units of the groups to choose from, and the parts that they consist of.

    A *part* is all that a unit takes from one dimension of one tensor.

    - `tensors`: by name, each memory once. `names`: the name there of each tensor, tied ones included.
    - `ids`: the units, sorted. `groups`: those to choose from; `members`: the places of their units in `ids`.
    - `dims`: (tensor, dimension). `reads`: whether it runs over channels of a layer's input. `positions`: those at
      which something of a unit lies, and `part_at` whose part.
    - `part_unit`, `part_dim`: the place of each part's unit in `ids` and of its dimension in `dims`.
    """

    program: Program
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    ids: Integers
    groups: tuple[Group, ...]
    members: tuple[Integers, ...]
    dims: tuple[tuple[str, int], ...]
    reads: NDArray[np.bool_]
    positions: tuple[Integers, ...]
    part_at: tuple[Integers, ...]
    part_unit: Integers
    part_dim: Integers

    def sums(self, of: PositionValues) -> Floats:
        """Return the sum over each part, `[parts]`; NaN for the parts of a dimension that `of` returns None for."""
        total = np.zeros(len(self.part_unit))
        for (name, dim), positions, part in zip(self.dims, self.positions, self.part_at, strict=True):
            if len(part):
                values = of(name, dim)
                here = np.nan if values is None else values.detach().double().numpy()[positions]
                np.add.at(total, part, here)
        return total

    def reduce(self, parts: Floats, how: Reduction, weights: Weights = "all") -> Floats:
        """Return one number a unit, `[units]`, out of its parts; NaN where all of them are.

        Parts of tensors of one dimension (biases, norms) count only for units that have no other. With weights="read",
        those that read a unit count alone, for units that have any. "max" is that of the magnitudes.
        """
        level = np.array([1 if self.tensors[name].ndim > 1 else 0 for name, _ in self.dims], np.int64)
        level = np.where(np.isnan(parts), -1, (level + 2 * (self.reads & (weights == "read")))[self.part_dim])
        highest = np.full(len(self.ids), -1)
        np.maximum.at(highest, self.part_unit, level)
        used = (level >= 0) & (level == highest[self.part_unit])
        many, values = np.bincount(self.part_unit[used], minlength=len(self.ids)), np.where(used, parts, 0)
        if how == "max":
            result = np.zeros(len(self.ids))
            np.maximum.at(result, self.part_unit, np.abs(values))
        else:
            result = np.bincount(self.part_unit, values, len(self.ids)) / (np.maximum(many, 1) if how == "mean" else 1)
        return np.where(many > 0, result, np.nan)

    def normalize(self, scores: Floats, how: Normalize) -> Floats:
        """Divide the scores of each group by their mean or largest."""
        result = scores.copy()
        for members in self.members if how != "none" else ():
            scale = float(scores[members].mean() if how == "mean" else scores[members].max())
            result[members] /= scale if 0 < scale < np.inf else 1
        return result

    def __len__(self) -> int:
        return len(self.ids)


def units_of(found: Coordinates, groups: Sequence[Group]) -> Units:
    """Lay out the units of a Program; `groups` are those to choose from."""
    nodes = dict(tensor_nodes(found))
    first = {id(found.labels[node]): name for name, node in nodes.items()}
    module, every = found.program.module, found.program.graph.find_nodes(op="get_attr")
    names = {str(node.target): first[id(found.labels[node])] for node in every if id(found.labels[node]) in first}
    table, reads = occurrences(found), {(names[name], dim) for name, dim in input_dims(found.program) if name in names}
    count = max(len(table.dims), 1)
    ids, unit = np.unique(table.unit, return_inverse=True)
    parts, part = np.unique(unit * count + table.dim, return_inverse=True)
    at = [np.flatnonzero(table.dim == number) for number in range(len(table.dims))]
    return Units(
        found.program,
        {name: _tensor(module, node) for name, node in nodes.items()},
        names,
        ids,
        tuple(groups),
        tuple(np.searchsorted(ids, np.array(group.units)) for group in groups),
        table.dims,
        np.array([dim in reads for dim in table.dims], bool),
        tuple(table.position[here] for here in at),
        tuple(part[here] for here in at),
        parts // count,
        parts % count,
    )


def _tensor(module: Any, node: Any) -> Tensor:
    tensor = constant(module, node)
    assert tensor is not None
    return tensor.detach()


def check_choices(reduction: str, normalize: str = "none", weights: str = "all") -> None:
    """Raise PassError for options of scores that do not exist."""
    if reduction not in ("sum", "mean", "max"):
        raise PassError(f"reduction='{reduction}' must be 'sum', 'mean' or 'max'.")
    if normalize not in ("mean", "max", "none"):
        raise PassError(f"normalize='{normalize}' must be 'mean', 'max' or 'none'.")
    if weights not in ("read", "all"):
        raise PassError(f"weights='{weights}' must be 'read' or 'all'.")
