"""Run a quantized Program with the arithmetic of integer kernels, bit for bit as onnxruntime's.

    y = saturate(round_half_even(float32(Σ (x−x0)(w−w0) + bias) · (x_scale·w_scale / y_scale)) + y0)   into quantize
    y = float32(Σ (x−x0)(w−w0)) · (x_scale·w_scale) + bias                                             linear, matmul
    y = saturate(round_half_even(float32((a−a0)(b−b0)) · (a_scale·b_scale / y_scale)) + y0)            mul
    y = saturate(round_half_even(a·(a_scale/y_scale) + (b·(b_scale/y_scale) + fixed)))                 add

The sum is exact (in float64, whose 53 bits no layer exceeds). The first form is QLinearConv's, QLinearMatMul's and
QGemm's, the second MatMulIntegerToFloat's, the others QLinearMul's and QLinearAdd's. The first two hold for a
convolution, linear or matmul between dequantize nodes with one scale for the activation and one scale a channel (or
one) for the weight, the others for two activations. A relu or clamp before the quantize belongs to the kernel where
the quantize makes it redundant; otherwise the kernels stay float, and so do all other nodes here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.interpret import Observe, Step, run_steps, step_of
from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument, constant

aten = torch.ops.aten
Op = Callable[..., Any]
Tensors = Mapping[fx.Node, Tensor]

# Op -> (axis of the output channels in the weight, axis of them in the output).
INTEGER_OPS: dict[Op, tuple[int, int]] = {
    aten.conv1d.default: (0, -2),
    aten.conv1d.padding: (0, -2),
    aten.conv2d.default: (0, -3),
    aten.conv2d.padding: (0, -3),
    aten.conv3d.default: (0, -4),
    aten.conv3d.padding: (0, -4),
    aten.linear.default: (0, -1),
    aten.matmul.default: (-1, -1),
    aten.mm.default: (-1, -1),
    aten.bmm.default: (-1, -1),
    aten.mul.Tensor: (-1, -1),  # QLinearMul: the product of the differences, scaled once
    aten.add.Tensor: (-1, -1),  # QLinearAdd: see _add
}
ELEMENTWISE = {aten.mul.Tensor, aten.add.Tensor}
FLOAT_OUTPUT = {aten.linear.default, aten.matmul.default, aten.mm.default}

# Op -> the bounds between which it leaves a value as it is.
CLAMPS: dict[Op, Callable[[fx.Node], tuple[float, float]]] = {
    aten.relu.default: lambda node: (0.0, float("inf")),
    aten.relu6.default: lambda node: (0.0, 6.0),
    aten.hardtanh.default: lambda node: (float(argument(node, "min_val")), float(argument(node, "max_val"))),
    aten.clamp.default: lambda node: (_bound(node, "min", float("-inf")), _bound(node, "max", float("inf"))),
    aten.clamp_min.default: lambda node: (float(argument(node, "min")), float("inf")),
}


def _bound(node: fx.Node, name: str, missing: float) -> float:
    value = argument(node, name)
    return missing if value is None else float(value)


@dataclass(frozen=True)
class Kernel:
    """One integer kernel: `op` between two dequantize nodes, into the quantize node `output` (None: float result)."""

    op: fx.Node
    left: fx.Node
    right: fx.Node
    bias: fx.Node | None
    output: fx.Node | None


def run_integer(
    program: Program, inputs: Sequence[Tensor], observe: Observe | None = None, stop_after: str | None = None
) -> tuple[Any, ...]:
    """Run like interpret.run, with integer kernels; a value inside a kernel is never made, so never observed."""
    return run_steps(program, integer_steps(program), inputs, observe, stop_after)


def integer_steps(program: Program) -> list[Step]:
    """Plan the run: one step for each integer kernel, one for every other node that is still needed."""
    kernels = {kernel.output or kernel.op: kernel for kernel in find_kernels(program)}
    steps: list[Step] = []
    needed = {program.output_node}
    for node in reversed(program.graph.nodes):
        if node not in needed or node.op == "placeholder":
            continue
        step = kernel_step(kernels[node]) if node in kernels else step_of(program, node)
        needed.update(step.reads)
        steps.append(step)
    return steps[::-1]


def find_kernels(program: Program) -> list[Kernel]:
    """List the integer kernels that a runtime can form, in graph order."""
    found = (_kernel(program, node) for node in program.graph.nodes if node.target in INTEGER_OPS)
    return [kernel for kernel in found if kernel is not None]


def _kernel(program: Program, node: fx.Node) -> Kernel | None:
    left, right = node.args[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    if left.target is not dequantize or right.target is not dequantize or argument(left, "axis") is not None:
        return None
    channel_axis, _ = INTEGER_OPS[_op(node)]
    axis, ndim = argument(right, "axis"), right.meta["val"].ndim
    if axis is not None and (ndim < 2 or axis % ndim != channel_axis % ndim):
        return None
    if argument(right, "axis") is not None and node.target in ELEMENTWISE:
        return None
    if node.target is aten.add.Tensor and argument(node, "alpha") != 1:
        return None
    bias = argument(node, "bias") if any(a.name == "bias" for a in _op(node)._schema.arguments) else None
    output = _quantize_after(program, node)
    if output is None and node.target not in FLOAT_OUTPUT:
        return None
    return Kernel(node, left, right, bias, output)


def _op(node: fx.Node) -> torch._ops.OpOverload[..., Any]:
    assert isinstance(node.target, torch._ops.OpOverload)
    return node.target


def _quantize_after(program: Program, node: fx.Node) -> fx.Node | None:
    """Return the quantize node that is all that reads `node`, perhaps through a clamp that it makes redundant."""
    bounds = (float("-inf"), float("inf"))
    for _ in range(2):
        users = list(node.users)
        if len(users) != 1:
            return None
        (user,) = users
        if user.target is quantize and user.args[0] is node:
            return user if argument(user, "axis") is None and _is_redundant(program, user, bounds) else None
        if user.target not in CLAMPS:
            return None
        node, bounds = user, CLAMPS[user.target](user)
    return None


def _is_redundant(program: Program, node: fx.Node, bounds: tuple[float, float]) -> bool:
    """Say whether quantize saturates wherever a clamp to `bounds` would change its input."""
    if bounds == (float("-inf"), float("inf")):
        return True
    scale, zero_point = (constant(program.module, argument(node, name)) for name in ("scale", "zero_point"))
    if scale is None or zero_point is None:
        return False
    low, high = (torch.round(torch.tensor(bound, dtype=scale.dtype) / scale) + zero_point for bound in bounds)
    return bool(low <= argument(node, "quant_min")) and bool(high >= argument(node, "quant_max"))


def kernel_step(kernel: Kernel) -> Step:
    """Return the step that computes an integer kernel."""
    sources = [kernel.left, kernel.right]
    reads = [source for node in sources for source in node.all_input_nodes]
    if kernel.bias is not None:
        reads += kernel.bias.all_input_nodes if kernel.bias.target is dequantize else [kernel.bias]
    if kernel.output is not None:
        reads += [node for node in kernel.output.all_input_nodes if node is not kernel.output.args[0]]
    return Step(kernel.output or kernel.op, tuple(dict.fromkeys(reads)), lambda values: _compute(kernel, values))


def _add(kernel: Kernel, output: fx.Node, values: Tensors) -> Tensor:
    """Add as QLinearAdd does: q_a·(s_a/s_y) + (q_b·(s_b/s_y) + fixed), each sum rounded once to float32."""
    step, zero_point = (values[argument(output, name)] for name in ("scale", "zero_point"))
    (a, ratio_a, zero_a), (b, ratio_b, zero_b) = (
        (values[argument(node, "q")], values[argument(node, "scale")] / step, values[argument(node, "zero_point")])
        for node in (kernel.left, kernel.right)
    )
    fixed = zero_point.to(step.dtype) - (ratio_a * zero_a.to(step.dtype) + ratio_b * zero_b.to(step.dtype))
    inner = (b.double() * ratio_b.double() + fixed.double()).to(step.dtype)
    total = (a.double() * ratio_a.double() + inner.double()).to(step.dtype)
    low, high = argument(output, "quant_min"), argument(output, "quant_max")
    return torch.round(total).clamp(low, high).to(argument(output, "dtype"))


def _compute(kernel: Kernel, values: Tensors) -> Tensor:
    if kernel.op.target is aten.add.Tensor and kernel.output is not None:
        return _add(kernel, kernel.output, values)
    _, channel = INTEGER_OPS[_op(kernel.op)]
    total = _accumulate(kernel, values)
    scale = values[argument(kernel.left, "scale")] * values[argument(kernel.right, "scale")]
    if kernel.output is None:
        result = total.to(scale.dtype) * _at(scale, channel)
        return result if kernel.bias is None else result + _float_bias(kernel.bias, values)
    if kernel.bias is not None:
        total = total + _at(_integer_bias(kernel.bias, scale, values), channel)
    step, zero_point = (values[argument(kernel.output, name)] for name in ("scale", "zero_point"))
    low, high = argument(kernel.output, "quant_min"), argument(kernel.output, "quant_max")
    rounded = torch.round(total.to(scale.dtype) * _at(scale / step, channel)) + zero_point.to(scale.dtype)
    return rounded.clamp(low, high).to(argument(kernel.output, "dtype"))


def _accumulate(kernel: Kernel, values: Tensors) -> Tensor:
    """Apply the op itself to the differences from the zero points, exactly; without its bias."""
    left, right = (_difference(node, values) for node in (kernel.left, kernel.right))
    op = _op(kernel.op)
    given = {parameter.name: value for parameter, value in zip(op._schema.arguments, kernel.op.args, strict=False)}
    options = list((given | kernel.op.kwargs).items())[2:]  # after the two operands
    total = op(left, right, **{name: value for name, value in options if name != "bias"})
    assert isinstance(total, Tensor)
    return total


def _difference(node: fx.Node, values: Tensors) -> Tensor:
    q, zero_point = (values[argument(node, name)].to(torch.float64) for name in ("q", "zero_point"))
    return q - (
        zero_point if argument(node, "axis") is None else _at(zero_point, argument(node, "axis") % q.ndim - q.ndim)
    )


def _integer_bias(bias: fx.Node, scale: Tensor, values: Tensors) -> Tensor:
    """Return the bias in steps of x_scale·w_scale: as it is stored, or a float one rounded as onnxruntime does."""
    if bias.target is dequantize:
        q, zero_point = (values[argument(bias, name)].to(torch.float64) for name in ("q", "zero_point"))
        return q - zero_point
    return torch.round(values[bias] / scale).to(torch.float64)


def _float_bias(bias: fx.Node, values: Tensors) -> Tensor:
    if bias.target is not dequantize:
        return values[bias]
    result = dequantize(*fx.map_arg(bias.args, values.__getitem__))
    assert isinstance(result, Tensor)
    return result


def _at(parameter: Tensor, axis: int) -> Tensor:
    """Shape a per-channel parameter so that it broadcasts along `axis` (negative) of a tensor."""
    return parameter if parameter.ndim == 0 else parameter.reshape([-1, *[1] * (-axis - 1)])
