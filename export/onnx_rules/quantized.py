"""fxopt's own ops: quantize, dequantize, fake_quantize, observe, weights in blocks, and the integer products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import fx

from fxopt.errors import ExportError, TargetError, where
from fxopt.export.builder import CONTRIB, OnnxGraph, Rule
from fxopt.export.packed import Packed
from fxopt.graph.blocks import dequantize_blocks as dequantize_blocks_op
from fxopt.graph.blocks import fake_quantize_blocks as fake_quantize_blocks_op
from fxopt.graph.blocks import matmul_nbits as matmul_nbits_op
from fxopt.graph.blocks import middle, pack_bits
from fxopt.graph.ops import dequantize as dequantize_op
from fxopt.graph.ops import dynamic_quantize as dynamic_quantize_op
from fxopt.graph.ops import fake_quantize as fake_quantize_op
from fxopt.graph.ops import observe as observe_op
from fxopt.graph.ops import quantize as quantize_op
from fxopt.graph.quantized import matmul_integer_to_float as matmul_integer_to_float_op

BLOCK_OPSET, TWO_BIT_OPSET = 21, 25  # of DequantizeLinear


def quantize(
    g: OnnxGraph,
    x: fx.Node,
    scale: fx.Node,
    zero_point: fx.Node,
    axis: int | None,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
) -> str:
    """fxopt::quantize(Tensor x, Tensor scale, Tensor zero_point, int? axis, int quant_min, int quant_max, ScalarType dtype) -> Tensor"""  # noqa: E501
    return _quantized(g, x, scale, zero_point, axis, (quant_min, quant_max), dtype)


def dequantize(g: OnnxGraph, q: fx.Node, scale: fx.Node, zero_point: fx.Node, axis: int | None) -> str:
    """fxopt::dequantize(Tensor q, Tensor scale, Tensor zero_point, int? axis) -> Tensor"""
    # ONNX gives int32 no zero point; ours is all zeros for it.
    zero = None if g.dtype(q) is torch.int32 else g.cast(zero_point, g.dtype(q))
    return g.op("DequantizeLinear", q, scale, zero, axis=axis)


def dynamic_quantize(g: OnnxGraph, x: fx.Node) -> tuple[str, ...]:
    """fxopt::dynamic_quantize(Tensor x) -> (Tensor q, Tensor scale, Tensor zero_point)"""
    return g.ops("DynamicQuantizeLinear", x, outputs=3)


def fake_quantize(
    g: OnnxGraph, x: fx.Node, scale: fx.Node, zero_point: fx.Node, axis: int | None, quant_min: int, quant_max: int
) -> str:
    """fxopt::fake_quantize(Tensor x, Tensor scale, Tensor zero_point, int? axis, int quant_min, int quant_max) -> Tensor"""  # noqa: E501
    if quant_max - quant_min > 255:
        raise ExportError(f"{where(g.node)} has more than 8 bits: it is for simulation only, run the Program in torch.")
    dtype = torch.int8 if quant_min < 0 else torch.uint8
    q = _quantized(g, x, scale, zero_point, axis, (quant_min, quant_max), dtype)
    return g.op("DequantizeLinear", q, scale, _zero_point(g, zero_point, dtype), axis=axis)


def observe(g: OnnxGraph, x: fx.Node, name: str) -> str:
    """fxopt::observe(Tensor x, str name) -> Tensor"""
    return g.value(x)


def matmul_integer_to_float(
    g: OnnxGraph,
    x: fx.Node,
    weight: fx.Node,
    x_scale: fx.Node,
    weight_scale: fx.Node,
    x_zero_point: fx.Node,
    weight_zero_point: fx.Node,
    bias: fx.Node | None,
) -> str:
    """fxopt::matmul_integer_to_float(Tensor x, Tensor weight, Tensor x_scale, Tensor weight_scale, Tensor x_zero_point, Tensor weight_zero_point, Tensor? bias) -> Tensor"""  # noqa: E501
    inputs = (x, weight, x_scale, weight_scale, x_zero_point, weight_zero_point, bias)
    return g.op("MatMulIntegerToFloat", *inputs, domain=CONTRIB)


def dequantize_blocks(
    g: OnnxGraph, q: fx.Node, scale: fx.Node, zero_point: fx.Node | None, axis: int, block_size: int, bits: int
) -> str:
    """fxopt::dequantize_blocks(Tensor q, Tensor scale, Tensor? zero_point, int axis, int block_size, int bits) -> Tensor"""  # noqa: E501
    if bits == 2 or g.opset < BLOCK_OPSET:
        first = TWO_BIT_OPSET if bits == 2 else BLOCK_OPSET
        raise TargetError(
            f"{where(g.node)} has a weight of {bits} bits in blocks, which ONNX has from opset {first} on, not in "
            f"{g.opset}. Choose another opset or number of bits, or a target with onnxruntime's own ops (x86, arm64)."
        )
    stored, zero = (_block_values(g, value, bits, is_signed=zero_point is None) for value in (q, zero_point))
    return g.op("DequantizeLinear", stored, scale, zero, axis=axis, block_size=block_size)


def fake_quantize_blocks(g: OnnxGraph, x: fx.Node, block_size: int) -> str:
    """fxopt::fake_quantize_blocks(Tensor x, int block_size) -> Tensor"""
    return g.value(x)  # the kernel of the linear that reads it does this rounding


def matmul_nbits(
    g: OnnxGraph,
    x: fx.Node,
    packed: fx.Node,
    scale: fx.Node,
    zero_point: fx.Node | None,
    bias: fx.Node | None,
    bits: int,
    block_size: int,
    accuracy_level: int,
) -> str:
    """fxopt::matmul_nbits(Tensor x, Tensor packed, Tensor scale, Tensor? zero_point, Tensor? bias, int bits, int block_size, int accuracy_level) -> Tensor"""  # noqa: E501
    sizes = {"K": int(g.val(x).shape[-1]), "N": int(g.val(packed).shape[0])}
    options = {"bits": bits, "block_size": block_size, "accuracy_level": accuracy_level}
    return g.op("MatMulNBits", x, packed, scale, zero_point, None, bias, domain=CONTRIB, **sizes, **options)


def _quantized(
    g: OnnxGraph,
    x: fx.Node,
    scale: fx.Node,
    zero_point: fx.Node,
    axis: int | None,
    limits: tuple[int, int],
    dtype: torch.dtype,
) -> str:
    q = g.op("QuantizeLinear", x, scale, _zero_point(g, zero_point, dtype), axis=axis)
    info = torch.iinfo(dtype)
    if limits == (info.min, info.max):
        return q
    narrow = (g.constant(np.array(limit, dtype=str(dtype).removeprefix("torch."))) for limit in limits)
    return g.op("Clip", q, *narrow)


def _block_values(g: OnnxGraph, node: fx.Node | None, bits: int, *, is_signed: bool) -> str | None:
    """Return stored values as a constant: signed around the middle where there are no zero points, else unsigned."""
    if node is None:
        return None
    values = g.tensor(node)
    assert values is not None
    moved = values ^ middle(bits) if is_signed else values  # q − 2^(bits−1) in two's complement
    if bits == 8:
        return g.constant(moved.view(torch.int8) if is_signed else moved, name=str(node.target))
    kind = TensorProto.INT4 if is_signed else TensorProto.UINT4
    return g.packed(Packed(kind, tuple(values.shape), pack_bits(moved.reshape(-1), bits)), name=str(node.target))


def _zero_point(g: OnnxGraph, zero_point: fx.Node, dtype: torch.dtype) -> str:
    """Return the zero point in the integer dtype; as a constant where it is one, which onnxruntime asks for."""
    tensor = g.tensor(zero_point)
    if tensor is None or tensor.dtype is dtype:
        return g.cast(zero_point, dtype)
    return g.constant(tensor, dtype)


RULES: dict[Any, Rule] = {
    quantize_op: quantize,
    dequantize_op: dequantize,
    dynamic_quantize_op: dynamic_quantize,
    fake_quantize_op: fake_quantize,
    observe_op: observe,
    dequantize_blocks_op: dequantize_blocks,
    fake_quantize_blocks_op: fake_quantize_blocks,
    matmul_nbits_op: matmul_nbits,
    matmul_integer_to_float_op: matmul_integer_to_float,
}
