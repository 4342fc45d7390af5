"""FixScales: scales and zero points that were learned become buffers, as Calibrate leaves them.

learned_fake_quantize(x, scale, zero_point, scale_log2, zero_point_shift)  ->  fake_quantize(x, scale', zero_point')
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxopt.errors import PassError, where
from fxopt.graph.batch_norm_factor import batch_norm_factor
from fxopt.graph.learned import learned_fake_quantize, learned_grid
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import Edit, argument, set_attribute
from fxopt.passes.quantize.calibrate import smallest_scales
from fxopt.passes.quantize.scheme import power_of_two

GRID = ("scale", "zero_point", "scale_log2", "zero_point_shift")
OPTIONS = ("quant_min", "quant_max", "power_of_two", "largest_scale")


@dataclass(frozen=True)
class FixScales:
    """Turn what LearnScales made back into `fake_quantize` nodes, with what was learned in their buffers.

    The result computes what the trained Program does, bit for bit, and has the form that Calibrate leaves, with the
    same names: Convert, AdaRound and all else take it as they take that. Only a weight's scale that would let the int32
    bias of its layer overflow is widened.

    Raises PassError for scales that are not finite, and where RestoreBatchNorm has not been undone.
    """

    def __call__(self, program: Program) -> Program:
        """Return the Program with fixed scales, or `program` itself if it has no others."""
        if not program.graph.find_nodes(op="call_function", target=learned_fake_quantize):
            return program
        edit = Edit(program, by=self)
        for node in edit.calls(batch_norm_factor):
            raise PassError(f"{where(node)} is of a restored batch norm: run FoldRestoredBatchNorm before FixScales.")
        grids = {node: _grid(edit, node) for node in edit.calls(learned_fake_quantize)}
        fixed_point = {node: argument(node, "power_of_two") for node in grids}
        for node, (scale, zero_point) in grids.items():
            names = [str(argument(node, name).target) for name in GRID[:2]]
            set_attribute(edit.module, names[0], scale)
            set_attribute(edit.module, names[1], zero_point)
            kept = [argument(node, name) for name in ("x", "scale", "zero_point", "axis", "quant_min", "quant_max")]
            node.target = fake_quantize
            node.args = tuple(kept)
        for node in grids:
            if is_constant(argument(node, "x")):
                _make_room_for_bias(edit, node, fixed_point[node])
        return edit.finish()


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
