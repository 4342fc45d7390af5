"""The multiply-accumulate operations that a Program has left, without making it: sizes follow from the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx

from fxopt.graph.cost import COST_RULES
from fxopt.passes.prune.coordinates import Coordinates
from fxopt.passes.prune.rule import size_of
from fxopt.passes.prune.symbols import Label, Mask, widen


@dataclass
class _Sizes:
    """What COST_RULES read of a fake tensor."""

    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)


def remaining_macs(found: Coordinates) -> Callable[[Mask], int]:
    """Return a function that counts the operations left without the atoms marked in a mask over symbols."""
    shadow, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    shadow.graph_copy(found.program.graph, copies)
    counted = [node for node in found.program.graph.nodes if node.target in COST_RULES]
    read = {source: None for node in counted for source in (node, *node.all_input_nodes)}
    widths = Widths(found)
    sizes = {
        copies[node]: [_size(widths, *pair) for pair in zip(node.meta["val"].shape, found.labels[node], strict=True)]  # type: ignore[arg-type]
        for node in read
        if isinstance(node.meta.get("val"), Tensor)
    }

    def count(removed: Mask) -> int:
        left = widths.left(removed)
        for copy, shape in sizes.items():
            copy.meta["val"] = _Sizes(tuple(left[-size - 1] if size < 0 else size for size in shape))
        return sum(COST_RULES[node.target](copies[node]) for node in counted)

    return count


class Widths:
    """The labels of some dimensions, all in one matrix, so that one look-up counts what is left of each."""

    def __init__(self, found: Coordinates) -> None:
        self.found = found
        self.numbers: dict[int, int] = {}
        self.leaves: list[Label] = []
        self._matrix: Label | None = None

    def number(self, label: Label) -> int:
        """Return the number of a label."""
        if id(label) not in self.numbers:
            self.numbers[id(label)] = len(self.leaves)
            self.leaves.append(self.found.leaves(label))
        return self.numbers[id(label)]

    def left(self, removed: Mask) -> list[int]:
        """Return how many positions of each label stay, by number."""
        if not self.leaves:
            return []
        if self._matrix is None:
            width = max(leaves.shape[1] for leaves in self.leaves)
            self._matrix = np.concatenate([widen(leaves, width) for leaves in self.leaves])
        starts = np.cumsum([0, *(len(leaves) for leaves in self.leaves[:-1])])
        counts: list[int] = np.add.reduceat(~removed[self._matrix].any(axis=1), starts, dtype=np.int64).tolist()
        return counts


def _size(widths: Widths, size: Any, label: Label) -> int:
    """Return a size, or -1 - number for one that follows from a label."""
    return -1 - widths.number(label) if len(label) and label.any() else size_of(size)
