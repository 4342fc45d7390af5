"""Where the values of a pruned Program are found in the one that it was cut from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxopt.errors import PassError
from fxopt.graph.cuts import QUANTIZING
from fxopt.graph.program import Program
from fxopt.passes.prune.rule import size_of


@dataclass(frozen=True)
class Counterpart:
    """The node of the original with the same value, and which of its positions are left, by dimension."""

    node: fx.Node
    left: Mapping[int, Tensor]

    def select(self, value: Tensor) -> Tensor:
        """Return what is left of the original's value."""
        for dim, positions in self.left.items():
            value = value.index_select(dim, positions)
        return value


def counterparts(original: Program, program: Program) -> dict[fx.Node, Counterpart]:
    """Return the counterpart of each call of `program` that has one: the same op of the same name, read by the same.

    Raises PassError if `program` was not made of `original` by removals.
    """
    if original.inputs != program.inputs or original.outputs != program.outputs:
        raise PassError(f"original takes or returns other tensors than the Program to repair. {HINT}")
    if program.history[: len(original.history)] != original.history:
        raise PassError(f"original has passes in its history that the Program to repair has not. {HINT}")
    by_name = {node.name: node for node in original.graph.nodes if node.op == "call_function"}
    found = {}
    for node in program.graph.nodes:
        source = by_name.get(node.name)
        if source is None or not _corresponds(source, node) or not _has_the_same_rows(source, node):
            continue
        left = _positions(original, program, node.name)
        if not _fits(source.meta["val"].shape, node.meta["val"].shape, left):
            raise PassError(f"Node '{node.name}' is no part of what original computes there. {HINT}")
        found[node] = Counterpart(source, left)
    if not found:
        raise PassError(f"No node of the Program to repair is one of original's. {HINT}")
    return found


HINT = "Give the very Program that RemoveChannels got: small = RemoveChannels()(p), RepairWeights(p, data)(small)."


def _corresponds(source: fx.Node, node: fx.Node) -> bool:
    """Say whether a node computes what another one does. A folded layer has the name, but is read by others."""
    same_op = node.op == "call_function" and source.target is node.target
    return same_op and isinstance(node.meta["val"], Tensor) and _readers(node) <= _readers(source)


def _readers(node: fx.Node) -> set[str]:
    """Return the names of the nodes that read a value, behind the quantization that may stand between."""
    names = set()
    for user in node.users:
        names |= _readers(user) if user.target in QUANTIZING else {user.name}
    return names


def _has_the_same_rows(source: fx.Node, node: fx.Node) -> bool:
    """Say whether dynamic dimensions hold as much as before: heads beside the batch may be gone."""
    old, new = (tuple[Any, ...](each.meta["val"].shape) for each in (source, node))
    pairs = ((left, right) for left, right in zip(old, new, strict=False) if not isinstance(left, int))
    return all(isinstance(right, int) or size_of(left) == size_of(right) for left, right in pairs)


def _positions(original: Program, program: Program, name: str) -> dict[int, Tensor]:
    """Return which positions of the original's value are left; both records count from the captured model."""
    result = {}
    for dim, kept in program.kept.get(name, {}).items():
        before = original.kept.get(name, {}).get(dim)
        positions = np.array(kept) if before is None else np.searchsorted(np.array(before), np.array(kept))
        if before is not None and tuple(np.array([*before, -1])[positions].tolist()) != tuple(kept):
            raise PassError(f"Node '{name}' has positions that original has lost. {HINT}")
        if before != kept:
            result[dim] = torch.from_numpy(positions)
    return result


def _fits(source: Any, size: Any, left: Mapping[int, Tensor]) -> bool:
    if len(source) != len(size):
        return False
    for dim, (old, new) in enumerate(zip(source, size, strict=True)):
        positions = left.get(dim)
        if positions is None:
            if isinstance(old, int) != isinstance(new, int) or (isinstance(old, int) and old != new):
                return False
        elif len(positions) != new or int(positions.max()) >= old:
            return False
    return True
