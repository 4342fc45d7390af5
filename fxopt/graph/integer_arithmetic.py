"""The arithmetic of onnxruntime's integer kernels, one function each, bit for bit.

    round half to even, then saturate:
    float32(Σ (x−x0)(w−w0) + bias) · (x_scale·w_scale / y_scale), then + y0      QLinearConv, QLinearMatMul, QGemm
    float32(Σ (x−x0)(w−w0)) · (x_scale·w_scale) + bias, not rounded to integers  MatMulIntegerToFloat
    float32((a−a0)(b−b0)) · (a_scale·b_scale / y_scale) + y0                     QLinearMul
    a·(a_scale/y_scale) + (b·(b_scale/y_scale) + fixed), fused multiply-adds     QLinearAdd
    float32(Σ (x−x0)) · (x_scale / (y_scale·count)), then + y0                   QLinearGlobalAveragePool
    mean of the float values / y_scale + y0                                      QLinearAveragePool
    a table of the 256 (rounded and saturated) results                           QLinearSigmoid
    x·(γ / √(σ² + ε)) + (β − μ·(γ / √(σ² + ε))), each step in float32            BatchNormalization between integers

"then + y0": y0 is added to the rounded value, otherwise before rounding, which decides ties. All sums of products are
exact: in float32 where no partial sum can pass 2^24, else in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from fxopt.graph.logistic import logistic
from fxopt.graph.ops import dequantize
from fxopt.graph.rewrite import argument

aten = torch.ops.aten
Op = Callable[..., Any]
Tensors = Mapping[fx.Node, Tensor]
BLOCK = 2**22  # weights of a linear held as floats at a time


@dataclass(frozen=True)
class Kernel:
    """One integer kernel: `op` on dequantize nodes, into the quantize node `output` (None: float result)."""

    op: fx.Node
    operands: tuple[fx.Node, ...]
    bias: fx.Node | None
    output: fx.Node | None

    @property
    def result(self) -> fx.Node:
        """The node whose value the kernel makes."""
        return self.output or self.op


@dataclass(frozen=True)
class IntegerOp:
    """How an op runs in integers.

    - `operands`: how many of its first arguments are integers.
    - `channels`: the axis of the output channels in the weight and in the output, where a weight may have one scale a
      channel.
    - `float_result`: whether there is a kernel that returns floats.
    """

    compute: Callable[[Kernel, Tensors], Tensor]
    operands: int = 2
    channels: tuple[int, int] | None = None
    float_result: bool = False


def _weighted(kernel: Kernel, values: Tensors) -> Tensor:
    """Convolution, linear and matrix product."""
    left, right = kernel.operands
    channels = INTEGER_OPS[op_of(kernel.op)].channels
    assert channels is not None
    total = _sum_of_products(kernel, values)
    scale = values[argument(left, "scale")] * values[argument(right, "scale")]
    if kernel.output is None:
        result = total.to(scale.dtype) * _at(scale, channels[1])
        return result if kernel.bias is None else result + _float_bias(kernel.bias, values)
    if kernel.bias is not None:
        total = total.double() + _at(_integer_bias(kernel.bias, scale, values), channels[1])
    step, zero_point = _grid(kernel.output, values)
    rounded = total.to(scale.dtype).mul_(_at(scale / step, channels[1])).round_()
    return _saturate(kernel.output, rounded.add_(zero_point))


def _multiply(kernel: Kernel, values: Tensors) -> Tensor:
    assert kernel.output is not None
    left, right = kernel.operands
    product = _difference(left, values) * _difference(right, values)  # below 2^24: exact
    step, zero_point = _grid(kernel.output, values)
    scale = values[argument(left, "scale")] * values[argument(right, "scale")] / step
    return _saturate(kernel.output, (product * scale + zero_point).round_())


def _add(kernel: Kernel, values: Tensors) -> Tensor:
    assert kernel.output is not None
    step, zero_point = _grid(kernel.output, values)
    operands = [
        (values[argument(node, "q")], scale / step, zero)
        for node in kernel.operands
        for scale, zero in [_grid(node, values)]
    ]
    if _is_one_for_a_row(operands[0][0].shape, operands[1][0].shape):
        operands.reverse()  # as onnxruntime does, which has no kernel for a single value on the left
    (a, ratio_a, zero_a), (b, ratio_b, zero_b) = operands
    fixed = zero_point - _multiply_add(zero_a, ratio_a, ratio_b * zero_b)
    return _saturate(kernel.output, _multiply_add(a, ratio_a, _multiply_add(b, ratio_b, fixed)).round_())


def _is_one_for_a_row(left: Sequence[int], right: Sequence[int]) -> bool:
    """Say whether the left operand is broadcast along the last dimension in which the result has several values."""
    for a, b in zip(reversed(left), reversed(right), strict=False):
        if (a, b) != (1, 1):
            return a == 1
    return len(left) < len(right) and any(size > 1 for size in right[: len(right) - len(left)])


def _multiply_add(x: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    """Return x·factor + summand with one rounding, as a fused instruction does."""
    return (x.to(torch.float64, copy=True).mul_(factor.double()) + summand).to(factor.dtype)


def _global_mean(kernel: Kernel, values: Tensors) -> Tensor:
    assert kernel.output is not None
    (source,) = kernel.operands
    difference = _difference(source, values)
    total = difference.sum((-2, -1), keepdim=bool(kernel.op.meta["val"].ndim == difference.ndim), dtype=torch.float64)
    scale, _ = _grid(source, values)
    step, zero_point = _grid(kernel.output, values)
    count = difference.shape[-2] * difference.shape[-1]
    rounded = (total.to(scale.dtype) * (scale / (step * count))).round_()
    return _saturate(kernel.output, rounded.add_(zero_point))


def _local_mean(kernel: Kernel, values: Tensors) -> Tensor:
    assert kernel.output is not None
    (source,) = kernel.operands
    mean = op_of(kernel.op)(_dequantized(source, values), *kernel.op.args[1:], **kernel.op.kwargs)
    step, zero_point = _grid(kernel.output, values)
    return _saturate(kernel.output, (mean / step + zero_point).round_())


def _sigmoid(kernel: Kernel, values: Tensors) -> Tensor:
    assert kernel.output is not None
    (source,) = kernel.operands
    q, zero_point = _integers(source, values)
    lowest = torch.iinfo(q.dtype).min
    levels = torch.arange(lowest, lowest + 256, dtype=torch.float32, device=q.device)
    step, zero = _grid(kernel.output, values)
    results = (logistic((levels - zero_point) * values[argument(source, "scale")]) / step).round_() + zero
    return _saturate(kernel.output, results)[q.int() - lowest]


def _sum_of_products(kernel: Kernel, values: Tensors) -> Tensor:
    """Apply the op itself to the differences from the zero points, exactly; without its bias."""
    op = op_of(kernel.op)
    if op is aten.linear.default:
        return _linear(kernel, values)
    left, right = (_difference(node, values) for node in kernel.operands)
    left, right = _exact_in(kernel, left, right)
    given = {parameter.name: value for parameter, value in zip(op._schema.arguments, kernel.op.args, strict=False)}
    options = list((given | kernel.op.kwargs).items())[2:]  # after the two operands
    with torch.backends.nnpack.flags(enabled=False):  # its transformed convolution is not exact
        total = op(left, right, **{name: value for name, value in options if name != "bias"})
    assert isinstance(total, Tensor)
    return total


def _linear(kernel: Kernel, values: Tensors) -> Tensor:
    """Sum some output channels at a time: the weights of a classifier as floats can be as large as the whole model."""
    left, (weight, zero_points) = _difference(kernel.operands[0], values), _integers(kernel.operands[1], values)
    rows = max(1, BLOCK // max(1, weight.shape[1]))
    parts = []
    for start in range(0, weight.shape[0], rows):
        block = weight[start : start + rows].float()
        zeros = zero_points if zero_points.ndim == 0 else zero_points[start : start + rows, None]
        parts.append(functional.linear(*_exact_in(kernel, left, block.sub_(zeros))).double())
    return torch.cat(parts, -1)


def _exact_in(kernel: Kernel, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float32 if no partial sum can reach 2^24: the largest difference times a channel's sum."""
    channels = INTEGER_OPS[op_of(kernel.op)].channels
    assert channels is not None
    if right.numel() == 0 or left.numel() == 0:
        return left, right
    summed = [dim for dim in range(right.ndim) if dim != channels[0] % right.ndim]
    largest = right.abs().sum(summed).max() * left.abs().max()
    # The float32 sum may be off by a few of its last bits, so this is not the very limit.
    return (left, right) if largest < 2**23.9 else (left.double(), right.double())


def _integers(node: fx.Node, values: Tensors) -> tuple[Tensor, Tensor]:
    """Return the stored values of a dequantize node and its zero point as a float."""
    return values[argument(node, "q")], values[argument(node, "zero_point")].float()


def _difference(node: fx.Node, values: Tensors) -> Tensor:
    """Return q − zero point of a dequantize node, exact in float32."""
    stored, zero_point = _integers(node, values)
    q, axis = stored.float(), argument(node, "axis")
    return q.sub_(zero_point if axis is None else _at(zero_point, axis % q.ndim - q.ndim))


def _grid(node: fx.Node, values: Tensors) -> tuple[Tensor, Tensor]:
    """Return the scale of a quantize or dequantize node, and its zero point as a float."""
    scale = values[argument(node, "scale")]
    return scale, values[argument(node, "zero_point")].to(scale.dtype)


def _saturate(output: fx.Node, rounded: Tensor) -> Tensor:
    low, high = argument(output, "quant_min"), argument(output, "quant_max")
    return rounded.clamp_(low, high).to(argument(output, "dtype"))


def _integer_bias(bias: fx.Node, scale: Tensor, values: Tensors) -> Tensor:
    """Return the bias in steps of x_scale·w_scale: as it is stored, or a float one rounded as onnxruntime does."""
    if bias.target is dequantize:
        q, zero_point = (values[argument(bias, name)].to(torch.float64) for name in ("q", "zero_point"))
        return q - zero_point
    return torch.round(values[bias] / scale).to(torch.float64)


def _float_bias(bias: fx.Node, values: Tensors) -> Tensor:
    return _dequantized(bias, values) if bias.target is dequantize else values[bias]


def _dequantized(node: fx.Node, values: Tensors) -> Tensor:
    result = dequantize(*fx.map_arg(node.args, values.__getitem__), **fx.map_arg(node.kwargs, values.__getitem__))
    assert isinstance(result, Tensor)
    return result


def _at(parameter: Tensor, axis: int) -> Tensor:
    """Shape a per-channel parameter so that it broadcasts along `axis` (negative) of a tensor."""
    return parameter if parameter.ndim == 0 else parameter.reshape([-1, *[1] * (-axis - 1)])


def batch_norm(node: fx.Node, values: Tensors) -> Tensor:
    """Normalize with running statistics; torch's own kernel folds the mean in with one rounding less."""
    x, mean, variance = (values[argument(node, name)] for name in ("input", "running_mean", "running_var"))
    weight, bias = (values.get(argument(node, name)) for name in ("weight", "bias"))
    factor = 1 / (variance + argument(node, "eps")).sqrt()
    factor = factor if weight is None else factor * weight
    offset = -(mean * factor) if bias is None else bias - mean * factor
    sizes = [-1, *[1] * (x.ndim - 2)]
    return x.mul(factor.reshape(sizes)).add_(offset.reshape(sizes))


def op_of(node: fx.Node) -> torch._ops.OpOverload[..., Any]:
    """Return the op that a node calls."""
    assert isinstance(node.target, torch._ops.OpOverload)
    return node.target


INTEGER_OPS: dict[Op, IntegerOp] = {
    aten.conv1d.default: IntegerOp(_weighted, channels=(0, -2)),
    aten.conv1d.padding: IntegerOp(_weighted, channels=(0, -2)),
    aten.conv2d.default: IntegerOp(_weighted, channels=(0, -3)),
    aten.conv2d.padding: IntegerOp(_weighted, channels=(0, -3)),
    aten.conv3d.default: IntegerOp(_weighted, channels=(0, -4)),
    aten.conv3d.padding: IntegerOp(_weighted, channels=(0, -4)),
    aten.linear.default: IntegerOp(_weighted, channels=(0, -1), float_result=True),
    aten.matmul.default: IntegerOp(_weighted, channels=(-1, -1), float_result=True),
    aten.mm.default: IntegerOp(_weighted, channels=(-1, -1), float_result=True),
    aten.bmm.default: IntegerOp(_weighted, channels=(-1, -1)),
    aten.mul.Tensor: IntegerOp(_multiply),
    aten.add.Tensor: IntegerOp(_add),
    aten.adaptive_avg_pool2d.default: IntegerOp(_global_mean, operands=1),
    aten.mean.dim: IntegerOp(_global_mean, operands=1),
    aten.avg_pool2d.default: IntegerOp(_local_mean, operands=1),
    aten.sigmoid.default: IntegerOp(_sigmoid, operands=1),
}
