"""QuantizeDynamic: int8 weights, and activations that get their uint8 range anew on every run.

Nothing is calibrated, and no range can be too narrow for an input: for linears, whose inputs (after norms, or in
recurrent use) often have outliers, that is usually the more exact form. Convolutions have no fast kernel of this kind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from fxopt.graph.ops import dequantize, dynamic_quantize, quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import GETITEM, Edit
from fxopt.passes.quantize.insert import describe_float
from fxopt.passes.quantize.placement import check_names, reasons_of
from fxopt.passes.quantize.rules import linear_problem
from fxopt.passes.quantize.weight_scales import symmetric_scales
from fxopt.target import find_target

LINEAR = torch.ops.aten.linear.default


@dataclass(frozen=True)
class QuantizeDynamic:
    """Quantize linears with dynamic ranges: uint8 activations per tensor, int8 weights per output channel.

    - `keep_float`: names of nodes that stay float, or {name: reason}.
    - `target`: the name of a row of fxopt.target.TARGETS; it says how wide the range of a weight may be.

    Linears that read the same value share its quantization. Biases stay float: the kernel adds them in float. What
    stays float and why is in the notes of the result. Raises PassError for a name that does not exist,
    or TargetError.
    """

    keep_float: Mapping[str, str] | Collection[str] = ()
    target: str = "x86"

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", reasons_of(self.keep_float))

    def __call__(self, program: Program) -> Program:
        """Return the quantized Program."""
        weight_max = find_target(self.target).weight_max
        reasons = dynamic_float_reasons(program, self.keep_float)
        edit = Edit(program, by=self)
        values: dict[fx.Node, fx.Node] = {}
        weights: dict[fx.Node, fx.Node] = {}
        for node in list(edit.calls(LINEAR)):
            if node.name not in reasons:
                _quantize_linear(edit, node, values, weights, weight_max)
        for note in describe_float(reasons):
            edit.note(note)
        return edit.finish()


def dynamic_float_reasons(program: Program, keep_float: Mapping[str, str] | Collection[str] = ()) -> dict[str, str]:
    """Say for each linear that stays float why. Raises PassError for a name in `keep_float` that does not exist."""
    kept = reasons_of(keep_float)
    check_names(program, kept)
    reasons = {}
    for node in program.graph.nodes:
        if node.target is LINEAR and (reason := kept.get(node.name) or _problem(node)):
            reasons[node.name] = reason
    return reasons


def _problem(node: fx.Node) -> str | None:
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node)
    if x.target is dequantize:
        return "its input is quantized already"
    if x.meta["val"].dtype is not torch.float32:
        return f"its input is {str(x.meta['val'].dtype).removeprefix('torch.')}; the kernel takes float32"
    return linear_problem(node) if is_constant(weight) else "its weight is computed"


def _quantize_linear(
    edit: Edit, node: fx.Node, values: dict[fx.Node, fx.Node], weights: dict[fx.Node, fx.Node], weight_max: int
) -> None:
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    if x not in values:
        values[x] = _quantized_value(edit, x, node)
    if weight not in weights:
        weights[weight] = _quantized_weight(edit, weight, node, weight_max)
    node.args = (values[x], weights[weight], *node.args[2:])


def _quantized_value(edit: Edit, x: fx.Node, before: fx.Node) -> fx.Node:
    made = edit.call(dynamic_quantize, x, before=before, name=f"{x.name}_dynamic")
    parts = [
        edit.call(GETITEM, made, index, before=before, name=f"{x.name}_{part}")
        for index, part in enumerate(("quantized", "scale", "zero_point"))
    ]
    return edit.call(dequantize, *parts, None, before=before, name=f"{x.name}_dequantized")


def _quantized_weight(edit: Edit, weight: fx.Node, before: fx.Node, weight_max: int) -> fx.Node:
    value = edit.constant(weight)
    assert value is not None
    scale = symmetric_scales(value.detach(), weight_max, torch.zeros(value.shape[0], dtype=torch.float64))
    zeros = torch.zeros(scale.shape, dtype=torch.int8)
    stored = quantize(value.detach(), scale, zeros, 0, -weight_max, weight_max, torch.int8)
    name = str(weight.target)
    parts = [
        edit.add_constant(f"{name}_{part}", tensor, before=before)
        for part, tensor in (("int8", stored), ("scale", scale), ("zero_point", zeros))
    ]
    return edit.call(dequantize, *parts, 0, before=before, name=f"{weight.name}_dequantized")
