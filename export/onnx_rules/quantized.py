"""fxopt's own ops: quantize, dequantize, fake_quantize, observe and the integer matrix product."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from fxopt.export.builder import CONTRIB, OnnxGraph, Rule
from fxopt.graph.ops import dequantize as dequantize_op
from fxopt.graph.ops import dynamic_quantize as dynamic_quantize_op
from fxopt.graph.ops import fake_quantize as fake_quantize_op
from fxopt.graph.ops import observe as observe_op
from fxopt.graph.ops import quantize as quantize_op
from fxopt.graph.quantized import matmul_integer_to_float as matmul_integer_to_float_op


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
    matmul_integer_to_float_op: matmul_integer_to_float,
}
