"""TrackRanges: the grids of a calibrated Program follow the ranges that values and weights have in training.

fake_quantize(x, scale, zero_point)  ->  fake_quantize(x, *tracked_grid(x, ends)) or fake_quantize(w, *weight_grid(w))
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument
from fxopt.graph.tracked import tracked_grid, weight_grid
from fxopt.passes.quantize.grid_groups import GridGroup, GridGroups, grid_groups
from fxopt.passes.quantize.scheme import Levels


@dataclass(frozen=True)
class TrackRanges:
    """Let observers fix the scales during quantization-aware training, where LearnScales would train them.

    - `momentum`: by how much of the difference the range of a value moves towards that of each batch.

    Ranges of activations are exponential moving averages of the smallest and the largest element of each batch (Jacob
    et al. 2018, section 3.1), which start from the calibrated ranges; values of one group have the union of theirs. In
    inference they stay. The scale of a weight follows its largest magnitude at every step, at the share of it that the
    calibrated scale clips at. No gradients reach scales.

    FixScales() gives the form of the calibrated Program back. RestoreBatchNorm comes before this pass. The grid of a
    hardsigmoid's result stays, as in LearnScales. Raises PassError for observers and for a momentum outside of (0, 1].
    """

    momentum: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.momentum <= 1:
            raise PassError(f"TrackRanges(momentum={self.momentum}) must be above 0 and at most 1.")

    def __call__(self, program: Program) -> Program:
        """Return the Program in inference mode with tracked ranges, or `program` itself if it has no fixed ones."""
        edit = Edit(program, by=self)
        found = grid_groups(edit, "TrackRanges")
        if not found.groups:
            return program
        for group in found.groups:
            if group.is_weight:
                _follow_weight(edit, group, found.fixed_point)
            else:
                _follow_values(edit, group, found, self.momentum)
        return edit.finish()


def full_levels(quant_min: int, quant_max: int, symmetric: bool, fixed_point: bool) -> Levels:
    """Return all levels of the bits that [quant_min, quant_max] are part of: a clip may have taken some."""
    if quant_min >= 0:
        return Levels(0, (1 << quant_max.bit_length()) - 1, symmetric, fixed_point)
    half = 1 << max((-quant_min - 1).bit_length(), quant_max.bit_length())
    return Levels(-half, half - 1, symmetric, fixed_point)


def _follow_values(edit: Edit, group: GridGroup, found: GridGroups, momentum: float) -> None:
    first = group.nodes[0]
    limits = (argument(first, "quant_min"), argument(first, "quant_max"))
    levels = full_levels(*limits, not found.affine, found.fixed_point)
    ends = torch.tensor([_range(group, levels)] * len(group.nodes), dtype=torch.float64)
    stored = edit.add_constant(
        f"{str(group.scale_node.target).removesuffix('_scale')}_ends", ends, before=group.scale_node
    )
    for row, node in enumerate(group.nodes):
        x = argument(node, "x")
        grid = edit.call(
            tracked_grid, x, stored, row, levels.quant_min, levels.quant_max, levels.symmetric, levels.power_of_two,
            momentum, False, before=node, name=f"{node.name}_grid",
        )  # fmt: skip
        _read_grid(edit, node, grid, (levels.quant_min, levels.quant_max))


def _range(group: GridGroup, levels: Levels) -> tuple[float, float]:
    """Return the range that a calibrated grid covers."""
    scale, zero_point = float(group.scale), int(group.zero_point)
    low = max(levels.quant_min, -levels.quant_max) if levels.symmetric else levels.quant_min
    return (low - zero_point) * scale, (levels.quant_max - zero_point) * scale


def _follow_weight(edit: Edit, group: GridGroup, fixed_point: bool) -> None:
    for node in group.nodes:
        weight, axis, quant_max = (argument(node, name) for name in ("x", "axis", "quant_max"))
        largest = weight_grid(_value(edit, weight), torch.ones_like(group.scale).double(), axis, quant_max, False)[0]
        share = (group.scale.double() / largest.double()).clamp(max=1.0)
        name = f"{str(group.scale_node.target).removesuffix('_scale')}_share"
        stored = edit.add_constant(name, share, before=group.scale_node)
        grid = edit.call(
            weight_grid, weight, stored, axis, quant_max, fixed_point, before=node, name=f"{node.name}_grid"
        )
        _read_grid(edit, node, grid, (-quant_max, quant_max))


def _value(edit: Edit, node: Any) -> Tensor:
    """Compute a value that follows from stored tensors alone."""
    stored = edit.constant(node)
    if stored is None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda argument: _value(edit, argument))
        stored = node.target(*args, **kwargs)
    return stored.detach()


def _read_grid(edit: Edit, node: fx.Node, grid: fx.Node, limits: tuple[int, int]) -> None:
    parts = [edit.call(operator.getitem, grid, index, before=node) for index in range(2)]
    node.args = (argument(node, "x"), *parts, argument(node, "axis"), *limits)
    node.kwargs = {}
