"""LearnScales: the scales and zero points of a calibrated Program are trained with its weights.

fake_quantize(x, scale, zero_point)  ->  learned_fake_quantize(x, scale, zero_point, scale_log2, zero_point_shift)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxopt.errors import PassError, where
from fxopt.graph.learned import learned_fake_quantize
from fxopt.graph.ops import fake_quantize, observe
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import Edit, argument
from fxopt.passes.quantize.clips import largest_absorbing_scale
from fxopt.passes.quantize.rules import Bounds, clip_bounds
from fxopt.passes.quantize.scheme import power_of_two

HARDSIGMOID = torch.ops.aten.hardsigmoid.default


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
        for node in program.graph.find_nodes(op="call_function", target=observe):
            raise PassError(f"{where(node)} is an observer without a range: run Calibrate before LearnScales.")
        edit = Edit(program, by=self)
        groups = _groups(edit)
        fixed_point = all(_is_power_of_two(_tensor(edit, group[0], "scale")) for group in groups)
        affine = any(bool(_tensor(edit, group[0], "zero_point").any()) for group in groups)
        groups = [group for group in groups if not _is_set_by_convert(group)]
        if not groups:
            return program
        for group in groups:
            _learn(edit, group, fixed_point, affine and self.zero_points)
        return edit.finish()


def _groups(edit: Edit) -> list[list[fx.Node]]:
    """List the fake_quantize nodes with a constant grid, those that share a scale together."""
    groups: dict[str, list[fx.Node]] = {}
    for node in edit.calls(fake_quantize):
        scale = argument(node, "scale")
        if is_constant(scale):
            groups.setdefault(str(scale.target), []).append(node)
    return list(groups.values())


def _is_set_by_convert(group: Sequence[fx.Node]) -> bool:
    return len(group) == 1 and argument(group[0], "x").target is HARDSIGMOID


def _tensor(edit: Edit, node: fx.Node, name: str) -> Tensor:
    value = edit.constant(argument(node, name))
    assert value is not None
    return value


def _is_power_of_two(scale: Tensor) -> bool:
    return bool((power_of_two(scale) == scale).all())


def _learn(edit: Edit, group: Sequence[fx.Node], fixed_point: bool, affine: bool) -> None:
    first = group[0]
    scale, zero_point, start = argument(first, "scale"), argument(first, "zero_point"), argument(first, "scale").next
    bounds = [limits for node in group if (limits := clip_bounds(argument(node, "x"))) is not None]
    zeros = nn.Parameter(torch.zeros_like(_tensor(edit, first, "scale")))
    change, shift = edit.add_constant(f"{scale.target}_log2", zeros, before=start), None
    if affine and not bounds and not is_constant(argument(first, "x")):
        shift = edit.add_constant(f"{zero_point.target}_shift", nn.Parameter(torch.zeros_like(zeros)), before=start)
    for node in group:
        axis, low, high = (argument(node, name) for name in ("axis", "quant_min", "quant_max"))
        largest = _largest_scale(edit, node, bounds, fixed_point)
        node.target = learned_fake_quantize
        node.args = (argument(node, "x"), scale, zero_point, change, shift, axis, low, high, fixed_point, largest)
        node.kwargs = {}


def _largest_scale(edit: Edit, node: fx.Node, bounds: Sequence[Bounds], fixed_point: bool) -> float | None:
    if not bounds:
        return None
    scale, zero_point = float(_tensor(edit, node, "scale")), int(_tensor(edit, node, "zero_point"))
    largest = largest_absorbing_scale(
        scale, zero_point, bounds, argument(node, "quant_min"), argument(node, "quant_max")
    )
    return 2.0 ** math.floor(math.log2(largest)) if fixed_point and largest is not None else largest
