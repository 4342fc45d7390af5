"""Concatenations of values whose ranges differ so much that one scale would erase the small ones.

A concatenation of integers has one scale. Where a detector joins box coordinates up to 640 and scores up to 1, a step
of that scale is larger than every score: such a concatenation stays float.
"""

from __future__ import annotations

from collections.abc import Mapping

from fxopt.graph.program import Program
from fxopt.passes.quantize.placement import Placement, activations, place
from fxopt.passes.quantize.range_search import Range
from fxopt.passes.quantize.rules import Role
from fxopt.target import Target

LEVELS = 256
FEWEST = 8  # of the levels that an input must be left with


def erasing_concatenations(program: Program, placement: Placement, extents: Mapping[str, Range]) -> dict[str, str]:
    """Return the integer concatenations that would leave an input too few levels, with the reason.

    `extents`: the smallest and largest value of each node, from calibration.
    """
    found = {}
    for node in program.graph.nodes:
        if placement.integer.get(node.name) is not Role.CONCATENATE:
            continue
        inputs = [value for value in activations(node) if value.name in extents]
        spreads = {value.name: _spread(extents[value.name]) for value in inputs}
        widest = max(spreads.values(), default=0.0)
        narrow = [name for name, spread in spreads.items() if 0 < spread * LEVELS < FEWEST * widest]
        if narrow:
            left = max(1, round(spreads[narrow[0]] * LEVELS / widest))
            found[node.name] = f"one scale for all its inputs would leave {narrow[0]} {left} of {LEVELS} levels"
    return found


def keep_apart(
    program: Program, target: Target, keep_float: Mapping[str, str], extents: Mapping[str, Range]
) -> dict[str, str]:
    """Return `keep_float` and the concatenations that would erase an input, with the reasons."""
    kept = dict(keep_float)
    while found := erasing_concatenations(program, place(program, target, kept), extents):
        kept |= found
    return kept


def _spread(extent: Range) -> float:
    """Return the width of a range with zero included, as it is quantized."""
    return max(extent[1], 0.0) - min(extent[0], 0.0)
