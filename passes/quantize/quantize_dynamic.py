"""QuantizeDynamic: int8 weights, and activations that get their uint8 range anew on every run.

Nothing is calibrated, and no range can be too narrow for an input: for linears, whose inputs (after norms, or in
recurrent use) often have outliers, that is usually the more exact form. Convolutions have no fast kernel of this kind;
of the recurrent ops LSTMs have one (quantize_recurrent.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.data import calibration_inputs
from fxopt.graph.memory import Trimmer
from fxopt.graph.ops import dequantize, dynamic_quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import GETITEM, Edit, argument, constant
from fxopt.passes.quantize.insert import describe_float
from fxopt.passes.quantize.layer_inputs import layer_problem, visit_layers
from fxopt.passes.quantize.placement import check_names, reasons_of
from fxopt.passes.quantize.quantize_recurrent import LSTM, RECURRENT, quantize_lstm, recurrent_problem
from fxopt.passes.quantize.rows import quantize_rows
from fxopt.passes.quantize.rules import linear_problem
from fxopt.target import Target, find_target

LINEAR = torch.ops.aten.linear.default
Rows = tuple[Tensor, Tensor]  # int8 steps of one scale a row, and the scales


@dataclass(frozen=True)
class QuantizeDynamic:
    """Quantize linears and LSTMs with dynamic ranges: uint8 activations per tensor, int8 weights per output channel.

    - `keep_float`: names of nodes that stay float, or {name: reason}.
    - `target`: the name of a row of fxopt.target.TARGETS, or "auto" for this machine; it says how wide the range of a
      weight may be, and from how many hidden units an LSTM gains, if at all.
    - `data`: items like the example inputs, to round the weights of linears by as RoundGptq does; without any they are
      rounded to the nearest. All samples are in memory together, with the values that the layer at hand needs.
    - `largest`: of linears with more inputs than this the weights are rounded to the nearest all the same.

    Linears that read the same value share its quantization. Biases stay float: the kernels add them in float. What
    stays float and why is in the notes of the result. Raises TargetError, PassError for a name that does not exist, or
    DataError for data that is empty, does not fit, or holds NaN or infinity.
    """

    keep_float: Mapping[str, str] | Collection[str] = ()
    target: str = "x86"
    data: Iterable[Any] | None = field(default=None, repr=False)
    largest: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", reasons_of(self.keep_float))

    def __call__(self, program: Program) -> Program:
        """Return the quantized Program."""
        weight_max = find_target(self.target).weight_max
        reasons = dynamic_float_reasons(program, self.keep_float, self.target)
        fitted = self._fitted(program, reasons, weight_max) if self.data is not None else {}
        edit = Edit(program, by=self)
        values: dict[fx.Node, fx.Node] = {}
        weights: dict[fx.Node, fx.Node] = {}
        layers: dict[tuple[str, ...], fx.Node] = {}
        trimmer = Trimmer()  # left alone, the pieces that weights were rounded in take more than the weights
        for node in edit.calls(LINEAR, LSTM):
            if node.name in reasons:
                continue
            if node.target is LSTM:
                quantize_lstm(edit, node, layers, weight_max)
            else:
                _quantize_linear(edit, node, values, weights, weight_max, fitted)
                trimmer.made_one(argument(node, "weight").meta.get("val"))
        for note in describe_float(reasons):
            edit.note(note)
        return edit.finish()

    def _fitted(self, program: Program, reasons: Collection[str], weight_max: int) -> dict[str, Rows]:
        """Return steps and scales of the weights of linears, by the weights' names, rounded for their inputs."""
        running = program.eval()
        linears = [node for node in running.graph.nodes if node.target is LINEAR and node.name not in reasons]
        layers = [node for node in linears if layer_problem(node, self.largest) is None]
        found: dict[str, Rows] = {}

        def visit(node: fx.Node, hessian: Tensor) -> Tensor:
            weight = argument(node, "weight")
            name = str(weight.target)
            if name not in found:
                value = constant(running.module, weight)
                assert value is not None
                found[name] = quantize_rows(value.detach(), weight_max, hessian)
            steps, scale = found[name]
            return steps.float() * scale[:, None]

        visit_layers(running, list(calibration_inputs(self.data or (), program)), layers, visit)
        return found


def dynamic_float_reasons(
    program: Program, keep_float: Mapping[str, str] | Collection[str] = (), target: str | Target = "x86"
) -> dict[str, str]:
    """Say for each linear and recurrent op that stays float why.

    Raises TargetError, or PassError for a name in `keep_float` that does not exist.
    """
    kept, found = reasons_of(keep_float), find_target(target)
    check_names(program, kept)
    reasons = {}
    for node in program.graph.nodes:
        if (node.target is LINEAR or node.target in RECURRENT) and (
            reason := kept.get(node.name) or _problem(node, found)
        ):
            reasons[node.name] = reason
    return reasons


def _problem(node: fx.Node, target: Target) -> str | None:
    if node.target in RECURRENT:
        return recurrent_problem(node, target)
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node)
    if x.target is dequantize:
        return "its input is quantized already"
    if x.meta["val"].dtype is not torch.float32:
        return f"its input is {str(x.meta['val'].dtype).removeprefix('torch.')}; the kernel takes float32"
    return linear_problem(node) if is_constant(weight) else "its weight is computed"


def _quantize_linear(
    edit: Edit,
    node: fx.Node,
    values: dict[fx.Node, fx.Node],
    weights: dict[fx.Node, fx.Node],
    weight_max: int,
    fitted: Mapping[str, Rows],
) -> None:
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    if x not in values:
        values[x] = _quantized_value(edit, x, node)
    if weight not in weights:
        weights[weight] = _quantized_weight(edit, weight, node, weight_max, fitted.get(str(weight.target)))
    node.args = (values[x], weights[weight], *node.args[2:])


def _quantized_value(edit: Edit, x: fx.Node, before: fx.Node) -> fx.Node:
    made = edit.call(dynamic_quantize, x, before=before, name=f"{x.name}_dynamic")
    parts = [
        edit.call(GETITEM, made, index, before=before, name=f"{x.name}_{part}")
        for index, part in enumerate(("quantized", "scale", "zero_point"))
    ]
    return edit.call(dequantize, *parts, None, before=before, name=f"{x.name}_dequantized")


def _quantized_weight(edit: Edit, weight: fx.Node, before: fx.Node, weight_max: int, fitted: Rows | None) -> fx.Node:
    value = edit.constant(weight)
    assert value is not None
    stored, scale = fitted or quantize_rows(value.detach(), weight_max)
    zeros = torch.zeros(scale.shape, dtype=torch.int8)
    name = str(weight.target)
    parts = [
        edit.add_constant(f"{name}_{part}", tensor, before=before)
        for part, tensor in (("int8", stored), ("scale", scale), ("zero_point", zeros))
    ]
    return edit.call(dequantize, *parts, 0, before=before, name=f"{weight.name}_dequantized")
