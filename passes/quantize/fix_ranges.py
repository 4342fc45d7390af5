"""The part of FixScales that undoes TrackRanges: grids that followed the data become buffers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxopt.errors import PassError, where
from fxopt.graph.rewrite import Edit, argument
from fxopt.graph.tracked import weight_grid
from fxopt.passes.quantize.calibrate import zero_point_dtype
from fxopt.passes.quantize.clips import absorbing_levels
from fxopt.passes.quantize.rules import clip_bounds
from fxopt.passes.quantize.scheme import Levels


def fix_values(edit: Edit, grids: Sequence[fx.Node]) -> None:
    """Give each group of tracked values a grid of its own, as Calibrate does with the range that it finds."""
    groups: dict[str, list[fx.Node]] = {}
    for grid in grids:
        groups.setdefault(str(argument(grid, "ends").target), []).append(grid)
    for name, group in groups.items():
        _fix_group(edit, name.removesuffix("_ends"), group)


def _fix_group(edit: Edit, name: str, group: Sequence[fx.Node]) -> None:
    first, nodes = group[0], [quantizer_of(grid) for grid in group]
    options = ("quant_min", "quant_max", "symmetric", "fixed_point")
    levels = Levels(*(argument(first, option) for option in options))
    ends = edit.constant(argument(first, "ends"))
    assert ends is not None
    _check(first, ends)
    bounds = [limits for node in nodes if (limits := clip_bounds(argument(node, "x"))) is not None]
    scale, zero_point, levels = absorbing_levels(levels, float(ends[:, 0].amin()), float(ends[:, 1].amax()), bounds)
    start = argument(first, "ends").next
    constants = (
        edit.add_constant(f"{name}_scale", torch.tensor(scale, dtype=torch.float32), before=start),
        edit.add_constant(f"{name}_zero_point", torch.tensor(zero_point, dtype=zero_point_dtype(levels)), before=start),
    )
    for node in nodes:
        node.args = (argument(node, "x"), *constants, None, levels.quant_min, levels.quant_max)


def fix_weight(edit: Edit, grid: fx.Node) -> fx.Node:
    """Give a weight the grid that it has now; returns its fake_quantize node."""
    node, source = quantizer_of(grid), argument(grid, "weight")
    weight, share = edit.constant(source), edit.constant(argument(grid, "share"))
    assert weight is not None and share is not None
    _check(grid, weight)
    options = tuple(argument(grid, name) for name in ("axis", "quant_max", "fixed_point"))
    scale, zero_point = weight_grid(weight.detach(), share, *options)
    name, start = str(argument(grid, "share").target).removesuffix("_share"), argument(grid, "share").next
    constants = (
        edit.add_constant(f"{name}_scale", scale, before=start),
        edit.add_constant(f"{name}_zero_point", zero_point, before=start),
    )
    node.args = (source, *constants, *node.args[3:])
    return node


def quantizer_of(grid: fx.Node) -> fx.Node:
    """Return the fake_quantize node that reads a grid."""
    (node,) = {user for part in grid.users for user in part.users}
    return node


def _check(node: fx.Node, values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise PassError(
            f"{where(node)} has seen values that are not finite. Training has diverged: take an earlier checkpoint, or "
            "a lower learning rate."
        )
