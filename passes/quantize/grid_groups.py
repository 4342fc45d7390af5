"""The fake_quantize nodes of a calibrated Program, those together that share a grid, and which scheme they follow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxopt.errors import PassError, where
from fxopt.graph.grids import power_of_two
from fxopt.graph.ops import fake_quantize, observe
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import Edit, argument
from fxopt.passes.quantize.restored import is_weight
from fxopt.passes.quantize.rules import Bounds, clip_bounds

HARDSIGMOID = torch.ops.aten.hardsigmoid.default


@dataclass(frozen=True)
class GridGroup:
    """Nodes that share a scale and a zero point. `bounds`: of the clips (relu, ...) before them."""

    nodes: tuple[fx.Node, ...]
    scale: Tensor
    zero_point: Tensor

    @property
    def scale_node(self) -> fx.Node:
        """What reads the scale."""
        return _read(self.nodes[0], "scale")

    @property
    def zero_point_node(self) -> fx.Node:
        """What reads the zero point."""
        return _read(self.nodes[0], "zero_point")

    @property
    def is_weight(self) -> bool:
        """Whether it is the grid of a weight."""
        return is_weight(argument(self.nodes[0], "x"))

    @property
    def bounds(self) -> list[Bounds]:
        """The bounds of the clips (relu, ...) that come right before the nodes."""
        return [limits for node in self.nodes if (limits := clip_bounds(argument(node, "x"))) is not None]

    @property
    def is_set_by_convert(self) -> bool:
        """Whether Convert replaces the grid: that of a hardsigmoid's result."""
        return len(self.nodes) == 1 and argument(self.nodes[0], "x").target is HARDSIGMOID


@dataclass(frozen=True)
class GridGroups:
    """All groups of a Program.

    - `groups`: those whose grid is free. `fixed_point`: whether all scales are powers of two.
    - `affine`: whether some zero point is not 0; else the scheme is symmetric, or does as if.
    """

    groups: tuple[GridGroup, ...]
    fixed_point: bool
    affine: bool


def grid_groups(edit: Edit, by: str) -> GridGroups:
    """Find the groups; `by` is the name of the pass that wants them. Raises PassError for an observer."""
    for node in edit.calls(observe):
        raise PassError(f"{where(node)} is an observer without a range: run Calibrate before {by}.")
    nodes: dict[str, list[fx.Node]] = {}
    for node in edit.calls(fake_quantize):
        scale = argument(node, "scale")
        if is_constant(scale):
            nodes.setdefault(str(scale.target), []).append(node)
    found = []
    for group in nodes.values():
        tensors = [edit.constant(argument(group[0], name)) for name in ("scale", "zero_point")]
        assert tensors[0] is not None and tensors[1] is not None
        found.append(GridGroup(tuple(group), tensors[0], tensors[1]))
    fixed_point = all(bool((power_of_two(group.scale) == group.scale).all()) for group in found)
    affine = any(bool(group.zero_point.any()) for group in found)
    return GridGroups(tuple(group for group in found if not group.is_set_by_convert), fixed_point, affine)


def _read(node: fx.Node, name: str) -> fx.Node:
    value = argument(node, name)
    assert isinstance(value, fx.Node)
    return value
