"""FixScales: scales and zero points that were trained become buffers, as Calibrate leaves them.

learned_fake_quantize(x, scale, zero_point, scale_log2, zero_point_shift)  ->  fake_quantize(x, scale', zero_point')
fake_quantize(x, *tracked_grid(x, ends)), fake_quantize(w, *weight_grid(w, share))  ->  the same
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import PassError, where
from fxopt.graph.batch_norm_factor import batch_norm_factor
from fxopt.graph.grids import power_of_two
from fxopt.graph.learned import learned_fake_quantize, learned_grid
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import Edit, argument, set_attribute
from fxopt.graph.tracked import tracked_grid, weight_grid
from fxopt.passes.quantize.calibrate import smallest_scales
from fxopt.passes.quantize.fix_ranges import fix_values, fix_weight

GRID = ("scale", "zero_point", "scale_log2", "zero_point_shift")
OPTIONS = ("quant_min", "quant_max", "power_of_two", "largest_scale")
# What trains a grid, and the argument that says whether its scales are powers of two.
TRAINED: dict[Any, str] = {
    learned_fake_quantize: "power_of_two",
    tracked_grid: "fixed_point",
    weight_grid: "fixed_point",
}


@dataclass(frozen=True)
class FixScales:
    """Turn what LearnScales or TrackRanges made back into `fake_quantize` nodes with buffers for the grids.

    The result computes what the trained Program does in inference, and has the form that Calibrate leaves, with the
    same names: Convert, AdaRound and all else take it as they take that. It is the same bit for bit, but for two rare
    things: a weight's scale that would let the int32 bias of its layer overflow is widened, and a tracked scale shrinks
    by rounding errors where saturation is to do what a clip (relu6, ...) does, as in Calibrate.

    Raises PassError for scales that are not finite, and where RestoreBatchNorm has not been undone.
    """

    def __call__(self, program: Program) -> Program:
        """Return the Program with fixed scales, or `program` itself if it has no others."""
        edit = Edit(program, by=self)
        nodes = list(edit.calls(*TRAINED))
        if not nodes:
            return program
        for node in edit.calls(batch_norm_factor):
            raise PassError(f"{where(node)} is of a restored batch norm: run FoldRestoredBatchNorm before FixScales.")
        fixed_point = any(argument(node, TRAINED[node.target]) for node in nodes)
        fix_values(edit, [node for node in nodes if node.target is tracked_grid])
        weights = [fix_weight(edit, node) for node in nodes if node.target is weight_grid]
        weights += _fix_learned(edit, [node for node in nodes if node.target is learned_fake_quantize])
        for node in weights:
            _make_room_for_bias(edit, node, fixed_point)
        return edit.finish()


def _fix_learned(edit: Edit, nodes: list[fx.Node]) -> list[fx.Node]:
    """Make fake_quantize nodes of learned ones; returns those of weights."""
    grids = {node: _grid(edit, node) for node in nodes}
    for node, grid in grids.items():
        for name, value in zip(GRID[:2], grid, strict=True):
            set_attribute(edit.module, str(argument(node, name).target), value)
        args = tuple(argument(node, name) for name in ("x", "scale", "zero_point", "axis", "quant_min", "quant_max"))
        node.target, node.args = fake_quantize, args
    return [node for node in nodes if is_constant(argument(node, "x"))]


def _grid(edit: Edit, node: fx.Node) -> tuple[Tensor, Tensor]:
    tensors = [edit.constant(argument(node, name)) for name in GRID]
    assert tensors[0] is not None and tensors[1] is not None and tensors[2] is not None
    options = {name: argument(node, name) for name in OPTIONS}
    with torch.no_grad():
        scale, zero_point = learned_grid(tensors[0], tensors[1], tensors[2], tensors[3], **options)
    if not bool(scale.isfinite().all() & zero_point.isfinite().all()):
        raise PassError(
            f"{where(node)} has learned a scale that is not finite. Training has diverged: take an earlier checkpoint, "
            "or a lower learning rate."
        )
    return scale, zero_point.to(tensors[1].dtype)


def _make_room_for_bias(edit: Edit, node: fx.Node, fixed_point: bool) -> None:
    source = argument(node, "scale")
    scale = edit.constant(source)
    assert scale is not None
    smallest = smallest_scales(edit, node, node.meta["val"].shape[0]).to(scale.dtype)
    least = smallest if scale.ndim else smallest.amax()
    if bool((scale < least).any()):
        wider = torch.maximum(scale, least)
        set_attribute(edit.module, str(source.target), power_of_two(wider) if fixed_point else wider)
