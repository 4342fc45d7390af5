"""LearnScales: the scales and zero points of a calibrated Program are trained with its weights.

fake_quantize(x, scale, zero_point)  ->  learned_fake_quantize(x, scale, zero_point, scale_log2, zero_point_shift)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from fxopt.graph.learned import learned_fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument
from fxopt.passes.quantize.clips import largest_absorbing_scale
from fxopt.passes.quantize.grid_groups import GridGroup, grid_groups


@dataclass(frozen=True)
class LearnScales:
    """Make the scales and zero points of a calibrated Program trainable, for quantization-aware training.

    - `zero_points`: whether zero points are learned too (LSQ+, Bhalgat et al. 2020), or scales only (LSQ, Esser et al.
      2020).

    Each group of values gets one number, each channel of a weight another: GROUP_scale_log2, the binary logarithm of
    what the calibrated scale is multiplied by. A scale is positive so, whatever the optimizer does, and one learning
    rate suits all of them. GROUP_zero_point_shift is what is added to a zero point, as a share of the levels. Both are
    Parameters that start at 0, where the result computes what it did before, bit for bit. See fxopt.graph.learned for
    the gradients.

    1. Scales that are all powers of two stay powers of two. Weights and symmetric values keep the zero point 0.
    2. Behind a clip (relu, relu6, ...) the zero point stays, and the scale stays so small that saturation does what
       the clip does: Convert drops it, as it does after Calibrate.
    3. The grid of a hardsigmoid's result is fixed by Convert, and so stays as it is.
    4. Observed, converted and float Programs come back unchanged, but for observers without a range: PassError.

    Weights of few bits want Calibrate(scheme=Scheme(clip_weights="mse")) to start from. Train the result like any
    Program, then FixScales() and Convert(). Weight decay does no harm to the new Parameters.
    """

    zero_points: bool = True

    def __call__(self, program: Program) -> Program:
        """Return the Program with trainable scales; all other tensors are shared."""
        edit = Edit(program, by=self)
        found = grid_groups(edit, "LearnScales")
        if not found.groups:
            return program
        for group in found.groups:
            _learn(edit, group, found.fixed_point, found.affine and self.zero_points)
        return edit.finish()


def _learn(edit: Edit, group: GridGroup, fixed_point: bool, zero_points: bool) -> None:
    scale, zero_point, start = group.scale_node, group.zero_point_node, group.scale_node.next
    change = edit.add_constant(f"{scale.target}_log2", nn.Parameter(torch.zeros_like(group.scale)), before=start)
    shift = None
    if zero_points and not group.bounds and not group.is_weight:
        zeros = nn.Parameter(torch.zeros_like(group.scale))
        shift = edit.add_constant(f"{zero_point.target}_shift", zeros, before=start)
    for node in group.nodes:
        axis, low, high = (argument(node, name) for name in ("axis", "quant_min", "quant_max"))
        largest = _largest_scale(group, low, high, fixed_point)
        node.target = learned_fake_quantize
        node.args = (argument(node, "x"), scale, zero_point, change, shift, axis, low, high, fixed_point, largest)
        node.kwargs = {}


def _largest_scale(group: GridGroup, quant_min: int, quant_max: int, fixed_point: bool) -> float | None:
    if not group.bounds:
        return None
    grid = (float(group.scale), int(group.zero_point))
    largest = largest_absorbing_scale(*grid, group.bounds, quant_min, quant_max)
    return 2.0 ** math.floor(math.log2(largest)) if fixed_point and largest is not None else largest
