"""Activation functions, softmax, and dropout, which is the identity in inference."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fxopt.errors import ExportError, where
from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.onnx_rules.spatial import per_channel

aten = torch.ops.aten

GELU_OPSET = 20
# Beyond this, softplus(x) and x differ by less than half a step of float32, so a threshold there changes nothing.
SOFTPLUS_IS_LINEAR = 14


def _float(g: OnnxGraph, self: fx.Node) -> str:
    """Return an operand in the dtype of the result: most activations turn integers into floats."""
    return g.cast(self, g.dtype())


def _bound(g: OnnxGraph, bound: Any) -> str | None:
    """Return a limit of clamp (a number, a tensor or a symbolic integer) in the dtype of the result."""
    if bound is None:
        return None
    if isinstance(bound, fx.Node) and not isinstance(g.val(bound), torch.Tensor):
        return g.cast(g.scalar(bound), g.dtype(), torch.int64)
    return g.cast(bound, g.dtype())


def _number(g: OnnxGraph, value: float) -> str:
    return g.constant(value, g.dtype())


def relu(g: OnnxGraph, self: fx.Node) -> str:
    """aten::relu(Tensor self) -> Tensor"""
    return g.op("Relu", self)


def relu6(g: OnnxGraph, self: fx.Node) -> str:
    """aten::relu6(Tensor self) -> Tensor"""
    return clamp(g, self, 0, 6)


def clamp(g: OnnxGraph, self: fx.Node, min: Any, max: Any) -> str:
    """aten::clamp(Tensor self, Scalar? min=None, Scalar? max=None) -> Tensor
    aten::hardtanh(Tensor self, Scalar min_val=-1, Scalar max_val=1) -> Tensor
    """
    return g.op("Clip", _float(g, self), _bound(g, min), _bound(g, max))


def clamp_min(g: OnnxGraph, self: fx.Node, min: Any) -> str:
    """aten::clamp_min(Tensor self, Scalar min) -> Tensor"""
    return clamp(g, self, min, None)


def clamp_max(g: OnnxGraph, self: fx.Node, max: Any) -> str:
    """aten::clamp_max(Tensor self, Scalar max) -> Tensor"""
    return clamp(g, self, None, max)


def clamp_tensor(g: OnnxGraph, self: fx.Node, min: fx.Node | None, max: fx.Node | None) -> str:
    """aten::clamp.Tensor(Tensor self, Tensor? min=None, Tensor? max=None) -> Tensor"""
    value = _float(g, self)
    if min is not None:
        value = g.op("Max", value, _bound(g, min))
    return value if max is None else g.op("Min", value, _bound(g, max))


def clamp_min_tensor(g: OnnxGraph, self: fx.Node, min: fx.Node) -> str:
    """aten::clamp_min.Tensor(Tensor self, Tensor min) -> Tensor"""
    return clamp_tensor(g, self, min, None)


def clamp_max_tensor(g: OnnxGraph, self: fx.Node, max: fx.Node) -> str:
    """aten::clamp_max.Tensor(Tensor self, Tensor max) -> Tensor"""
    return clamp_tensor(g, self, None, max)


def sigmoid(g: OnnxGraph, self: fx.Node) -> str:
    """aten::sigmoid(Tensor self) -> Tensor"""
    return g.op("Sigmoid", _float(g, self))


def hardsigmoid(g: OnnxGraph, self: fx.Node) -> str:
    """aten::hardsigmoid(Tensor self) -> Tensor"""
    return g.op("HardSigmoid", self, alpha=1 / 6, beta=0.5)


def hardswish(g: OnnxGraph, self: fx.Node) -> str:
    """aten::hardswish(Tensor self) -> Tensor"""
    return g.op("HardSwish", self)


def silu(g: OnnxGraph, self: fx.Node) -> str:
    """aten::silu(Tensor self) -> Tensor"""
    return g.op("Mul", self, g.op("Sigmoid", self))


def gelu(g: OnnxGraph, self: fx.Node, approximate: str) -> str:
    """aten::gelu(Tensor self, *, str approximate="none") -> Tensor"""
    if g.opset >= GELU_OPSET:
        return g.op("Gelu", self, approximate=approximate)
    if approximate == "tanh":
        cube = g.op("Mul", g.op("Mul", self, self), self)
        inner = g.op("Add", self, g.op("Mul", cube, _number(g, 0.044715)))
        gate = g.op("Tanh", g.op("Mul", inner, _number(g, math.sqrt(2 / math.pi))))
    else:
        gate = g.op("Erf", g.op("Div", self, _number(g, math.sqrt(2))))
    return g.op("Mul", g.op("Mul", self, g.op("Add", gate, _number(g, 1.0))), _number(g, 0.5))


def mish(g: OnnxGraph, self: fx.Node) -> str:
    """aten::mish(Tensor self) -> Tensor"""
    return g.op("Mul", self, g.op("Tanh", g.op("Softplus", self)))


def elu(g: OnnxGraph, self: fx.Node, alpha: float, scale: float, input_scale: float) -> str:
    """aten::elu(Tensor self, Scalar alpha=1, Scalar scale=1, Scalar input_scale=1) -> Tensor"""
    if scale == 1 and input_scale == 1:
        return g.op("Elu", self, alpha=float(alpha))
    negative = g.op("Mul", g.op("Min", self, g.constant(0.0, g.dtype())), g.constant(input_scale, g.dtype()))
    total = g.op("Add", g.op("Relu", self), g.op("Elu", negative, alpha=float(alpha)))
    return g.op("Mul", total, g.constant(scale, g.dtype()))


def selu(g: OnnxGraph, self: fx.Node) -> str:
    """aten::selu(Tensor self) -> Tensor"""
    return g.op("Selu", self)


def celu(g: OnnxGraph, self: fx.Node, alpha: float) -> str:
    """aten::celu(Tensor self, Scalar alpha=1.) -> Tensor"""
    return g.op("Celu", self, alpha=float(alpha))


def leaky_relu(g: OnnxGraph, self: fx.Node, negative_slope: float) -> str:
    """aten::leaky_relu(Tensor self, Scalar negative_slope=0.01) -> Tensor"""
    return g.op("LeakyRelu", self, alpha=float(negative_slope))


def rrelu(g: OnnxGraph, self: fx.Node, lower: float, upper: float, training: bool, generator: Any) -> str:
    """aten::rrelu(Tensor self, Scalar lower=0.125, Scalar upper=0.33333333333333331, bool training=False, Generator? generator=None) -> Tensor"""  # noqa: E501
    if training:
        raise ExportError(f"{where(g.node)} draws random slopes; call it with training=False.")
    return leaky_relu(g, self, (lower + upper) / 2)


def prelu(g: OnnxGraph, self: fx.Node, weight: fx.Node) -> str:
    """aten::prelu(Tensor self, Tensor weight) -> Tensor"""
    slope = weight if g.rank(weight) == 0 else per_channel(g, weight, g.rank())
    return g.op("PRelu", self, slope)


def softplus(g: OnnxGraph, self: fx.Node, beta: float, threshold: float) -> str:
    """aten::softplus(Tensor self, Scalar beta=1, Scalar threshold=20) -> Tensor"""
    scaled = g.value(self) if beta == 1 else g.op("Mul", self, g.constant(beta, g.dtype()))
    value = g.op("Softplus", scaled)
    if beta != 1:
        value = g.op("Div", value, g.constant(beta, g.dtype()))
    if threshold >= SOFTPLUS_IS_LINEAR:
        return value
    return g.op("Where", g.op("Greater", scaled, g.constant(threshold, g.dtype())), self, value)


def tanh(g: OnnxGraph, self: fx.Node) -> str:
    """aten::tanh(Tensor self) -> Tensor"""
    return g.op("Tanh", _float(g, self))


def log_sigmoid(g: OnnxGraph, self: fx.Node) -> str:
    """aten::log_sigmoid(Tensor self) -> Tensor"""
    return g.op("Neg", g.op("Softplus", g.op("Neg", self)))


def softmax(g: OnnxGraph, self: fx.Node, dim: int, dtype: Any) -> str:
    """aten::softmax.int(Tensor self, int dim, ScalarType? dtype=None) -> Tensor
    aten::_softmax(Tensor self, int dim, bool half_to_float) -> Tensor
    """
    return g.op("Softmax", _float(g, self), axis=dim)


def log_softmax(g: OnnxGraph, self: fx.Node, dim: int, dtype: Any) -> str:
    """aten::log_softmax.int(Tensor self, int dim, ScalarType? dtype=None) -> Tensor
    aten::_log_softmax(Tensor self, int dim, bool half_to_float) -> Tensor
    """
    return g.op("LogSoftmax", _float(g, self), axis=dim)


def safe_softmax(g: OnnxGraph, self: fx.Node, dim: int, dtype: Any) -> str:
    """aten::_safe_softmax(Tensor self, int dim, ScalarType? dtype=None) -> Tensor"""
    value = _float(g, self)
    lowest = g.constant(-math.inf, g.dtype())
    masked = g.op("Equal", g.op("ReduceMax", value, [dim], keepdims=1), lowest)
    return g.op("Where", masked, g.constant(0.0, g.dtype()), g.op("Softmax", value, axis=dim))


def glu(g: OnnxGraph, self: fx.Node, dim: int) -> str:
    """aten::glu(Tensor self, int dim=-1) -> Tensor"""
    value, gate = g.ops("Split", self, outputs=2, axis=dim, num_outputs=2)
    return g.op("Mul", value, g.op("Sigmoid", gate))


def threshold(g: OnnxGraph, self: fx.Node, threshold: float, value: float) -> str:
    """aten::threshold(Tensor self, Scalar threshold, Scalar value) -> Tensor"""
    if threshold == 0 and value == 0:
        return g.op("Relu", self)
    below = g.op("LessOrEqual", self, g.constant(threshold, g.dtype()))
    return g.op("Where", below, g.constant(value, g.dtype()), self)


def softshrink(g: OnnxGraph, self: fx.Node, lambd: float) -> str:
    """aten::softshrink(Tensor self, Scalar lambd=0.5) -> Tensor"""
    return g.op("Shrink", self, lambd=float(lambd), bias=float(lambd))


def hardshrink(g: OnnxGraph, self: fx.Node, lambd: float) -> str:
    """aten::hardshrink(Tensor self, Scalar lambd=0.5) -> Tensor"""
    return g.op("Shrink", self, lambd=float(lambd), bias=0.0)


def dropout(g: OnnxGraph, input: fx.Node, p: float, train: bool) -> str:
    """aten::dropout(Tensor input, float p, bool train) -> Tensor
    aten::feature_dropout(Tensor input, float p, bool train) -> Tensor
    aten::alpha_dropout(Tensor input, float p, bool train) -> Tensor
    aten::feature_alpha_dropout(Tensor input, float p, bool train) -> Tensor
    """
    return g.value(input)


RULES: dict[Any, Rule] = {
    aten.relu.default: relu,
    aten.relu6.default: relu6,
    aten.hardtanh.default: clamp,
    aten.clamp.default: clamp,
    aten.clamp.Tensor: clamp_tensor,
    aten.clamp_min.default: clamp_min,
    aten.clamp_min.Tensor: clamp_min_tensor,
    aten.clamp_max.default: clamp_max,
    aten.clamp_max.Tensor: clamp_max_tensor,
    aten.sigmoid.default: sigmoid,
    aten.hardsigmoid.default: hardsigmoid,
    aten.hardswish.default: hardswish,
    aten.silu.default: silu,
    aten.gelu.default: gelu,
    aten.mish.default: mish,
    aten.elu.default: elu,
    aten.selu.default: selu,
    aten.celu.default: celu,
    aten.leaky_relu.default: leaky_relu,
    aten.rrelu.default: rrelu,
    aten.prelu.default: prelu,
    aten.softplus.default: softplus,
    aten.tanh.default: tanh,
    aten.log_sigmoid.default: log_sigmoid,
    aten.softmax.int: softmax,
    aten._softmax.default: softmax,
    aten.log_softmax.int: log_softmax,
    aten._log_softmax.default: log_softmax,
    aten._safe_softmax.default: safe_softmax,
    aten.glu.default: glu,
    aten.threshold.default: threshold,
    aten.softshrink.default: softshrink,
    aten.hardshrink.default: hardshrink,
    aten.dropout.default: dropout,
    aten.feature_dropout.default: dropout,
    aten.alpha_dropout.default: dropout,
    aten.feature_alpha_dropout.default: dropout,
}
