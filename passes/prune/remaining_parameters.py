"""The elements of all tensors that a Program has left, without making it: sizes follow from the labels."""

from __future__ import annotations

import math
from collections.abc import Callable

from fxopt.graph.rewrite import constant
from fxopt.passes.prune.coordinates import Coordinates
from fxopt.passes.prune.remaining_macs import Widths
from fxopt.passes.prune.symbols import Mask


def remaining_parameters(found: Coordinates) -> Callable[[Mask], int]:
    """Return a function that counts, as parameter_count() does, what is left without the atoms marked in a mask."""
    widths = Widths(found)
    tensors: dict[int, list[int]] = {}
    for node in found.program.graph.find_nodes(op="get_attr"):
        tensor, labels = constant(found.program.module, node), found.labels[node]
        if tensor is not None and isinstance(labels, tuple):
            tensors.setdefault(id(tensor), [widths.number(label) for label in labels])

    def count(removed: Mask) -> int:
        left = widths.left(removed)
        return sum(math.prod(left[number] for number in numbers) for numbers in tensors.values())

    return count
