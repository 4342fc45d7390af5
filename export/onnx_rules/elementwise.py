"""Elementwise arithmetic, with torch's type promotion: operands are cast to the dtype of the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.onnx_rules.operands import compute, operand

aten = torch.ops.aten

# One ONNX op of the same meaning on floats; integers are cast to the float dtype of the result.
UNARY: dict[Any, str] = {
    aten.exp.default: "Exp",
    aten.log.default: "Log",
    aten.sqrt.default: "Sqrt",
    aten.reciprocal.default: "Reciprocal",
    aten.sin.default: "Sin",
    aten.cos.default: "Cos",
    aten.tan.default: "Tan",
    aten.asin.default: "Asin",
    aten.arcsin.default: "Asin",
    aten.acos.default: "Acos",
    aten.arccos.default: "Acos",
    aten.atan.default: "Atan",
    aten.arctan.default: "Atan",
    aten.sinh.default: "Sinh",
    aten.cosh.default: "Cosh",
    aten.asinh.default: "Asinh",
    aten.acosh.default: "Acosh",
    aten.atanh.default: "Atanh",
    aten.erf.default: "Erf",
    aten.neg.default: "Neg",
    aten.negative.default: "Neg",
    aten.abs.default: "Abs",
    aten.absolute.default: "Abs",
    aten.sign.default: "Sign",
    aten.sgn.default: "Sign",
}
# Rounding leaves integers as they are.
ROUNDING: dict[Any, str] = {aten.floor.default: "Floor", aten.ceil.default: "Ceil", aten.round.default: "Round"}
# Two operands, no further argument.
BINARY: dict[Any, str] = {
    aten.mul.Tensor: "Mul",
    aten.mul.Scalar: "Mul",
    aten.multiply.Tensor: "Mul",
    aten.multiply.Scalar: "Mul",
    aten.div.Tensor: "Div",
    aten.div.Scalar: "Div",
    aten.divide.Tensor: "Div",
    aten.divide.Scalar: "Div",
    aten.true_divide.Tensor: "Div",
    aten.true_divide.Scalar: "Div",
}
LARGEST: dict[Any, tuple[str, str]] = {
    aten.maximum.default: ("Max", "Or"),
    aten.max.other: ("Max", "Or"),
    aten.minimum.default: ("Min", "And"),
    aten.min.other: ("Min", "And"),
}


def unary(op_type: str) -> Rule:
    """Make the rule of an op that one ONNX op computes."""
    return lambda g, self: compute(g, op_type, self)


def rounding(op_type: str) -> Rule:
    """Make the rule of a rounding op."""
    return lambda g, self: compute(g, op_type, self) if g.dtype().is_floating_point else g.value(self)


def binary(op_type: str) -> Rule:
    """Make the rule of an op of two operands that one ONNX op computes."""
    return lambda g, self, other: compute(g, op_type, self, other)


def largest(op_types: tuple[str, str]) -> Rule:
    """Make the rule of a maximum or minimum, from the ONNX op for numbers and that for bools."""
    number, logical = op_types
    return lambda g, self, other: (
        g.op(logical, self, other) if g.dtype() is torch.bool else compute(g, number, self, other)
    )


def add(g: OnnxGraph, self: fx.Node, other: Any, alpha: Any) -> str:
    """aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor
    aten::add.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor
    """
    # onnxruntime makes SkipLayerNormalization of Add and LayerNormalization, which is 2 to 5 times slower than the two.
    op_type = "Sum" if g.dtype() is torch.float32 and _is_only_normalized(g.node) else "Add"
    return compute(g, op_type, self, scaled(g, other, alpha))


def _is_only_normalized(node: fx.Node) -> bool:
    """Say whether nothing but one layer norm reads a value."""
    users = list(node.users)
    return len(users) == 1 and users[0].target is aten.layer_norm.default and users[0].args[0] is node


def sub(g: OnnxGraph, self: fx.Node, other: Any, alpha: Any) -> str:
    """aten::sub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor
    aten::sub.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor
    aten::subtract.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor
    aten::subtract.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor
    """
    return compute(g, "Sub", self, scaled(g, other, alpha))


def rsub(g: OnnxGraph, self: fx.Node, other: Any, alpha: Any) -> str:
    """aten::rsub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor
    aten::rsub.Scalar(Tensor self, Scalar other, Scalar alpha=1) -> Tensor
    """
    return compute(g, "Sub", other, scaled(g, self, alpha))


def scaled(g: OnnxGraph, value: Any, alpha: Any) -> Any:
    """Multiply an operand by a factor, unless that is 1."""
    if alpha == 1:
        return value
    if isinstance(value, (int, float)) and isinstance(alpha, (int, float)):
        return value * alpha
    return compute(g, "Mul", value, alpha)


def power(g: OnnxGraph, self: Any, exponent: Any) -> str:
    """aten::pow.Tensor_Tensor(Tensor self, Tensor exponent) -> Tensor
    aten::pow.Tensor_Scalar(Tensor self, Scalar exponent) -> Tensor
    aten::pow.Scalar(Scalar self, Tensor exponent) -> Tensor
    aten::float_power.Tensor_Tensor(Tensor self, Tensor exponent) -> Tensor
    aten::float_power.Tensor_Scalar(Tensor self, Scalar exponent) -> Tensor
    aten::float_power.Scalar(Scalar self, Tensor exponent) -> Tensor
    """
    if g.dtype().is_floating_point:
        if exponent == 1:
            return operand(g, self, g.dtype())
        if exponent == 0.5:
            return compute(g, "Sqrt", self)
        if exponent == -1:
            return compute(g, "Reciprocal", self)
        if exponent == -0.5:
            return compute(g, "Reciprocal", compute(g, "Sqrt", self))
    return compute(g, "Pow", self, exponent)


def exp2(g: OnnxGraph, self: fx.Node) -> str:
    """aten::exp2(Tensor self) -> Tensor"""
    return compute(g, "Pow", 2, self)


def log2(g: OnnxGraph, self: fx.Node) -> str:
    """aten::log2(Tensor self) -> Tensor"""
    return compute(g, "Div", compute(g, "Log", self), math.log(2))


def log10(g: OnnxGraph, self: fx.Node) -> str:
    """aten::log10(Tensor self) -> Tensor"""
    return compute(g, "Div", compute(g, "Log", self), math.log(10))


def log1p(g: OnnxGraph, self: fx.Node) -> str:
    """aten::log1p(Tensor self) -> Tensor"""
    # log(1 + x) forgets a small x; 2 * atanh(x / (2 + x)) is the same number without that loss.
    near = compute(g, "Mul", compute(g, "Atanh", compute(g, "Div", self, compute(g, "Add", self, 2))), 2)
    far = compute(g, "Log", compute(g, "Add", self, 1))
    is_small = g.op("Less", compute(g, "Abs", self), g.constant(0.5, g.dtype()))
    return compute_where(g, is_small, near, far)


def expm1(g: OnnxGraph, self: fx.Node) -> str:
    """aten::expm1(Tensor self) -> Tensor"""
    # tanh(x / 2) * (exp(x) + 1) equals exp(x) - 1 and keeps the digits of a small x.
    half = compute(g, "Tanh", compute(g, "Mul", self, 0.5))
    return compute(g, "Mul", half, compute(g, "Add", compute(g, "Exp", self), 1))


def rsqrt(g: OnnxGraph, self: fx.Node) -> str:
    """aten::rsqrt(Tensor self) -> Tensor"""
    return compute(g, "Reciprocal", compute(g, "Sqrt", self))


def square(g: OnnxGraph, self: fx.Node) -> str:
    """aten::square(Tensor self) -> Tensor"""
    return compute(g, "Mul", self, self)


def erfc(g: OnnxGraph, self: fx.Node) -> str:
    """aten::erfc(Tensor self) -> Tensor"""
    return compute(g, "Sub", 1, compute(g, "Erf", self))


def trunc(g: OnnxGraph, self: fx.Node) -> str:
    """aten::trunc(Tensor self) -> Tensor
    aten::fix(Tensor self) -> Tensor
    """
    return truncated(g, g.value(self)) if g.dtype().is_floating_point else g.value(self)


def frac(g: OnnxGraph, self: fx.Node) -> str:
    """aten::frac(Tensor self) -> Tensor"""
    return compute(g, "Sub", self, truncated(g, g.value(self)))


def truncated(g: OnnxGraph, value: str) -> str:
    """Round a float value of the result's dtype towards zero."""
    negative = g.op("Less", value, g.constant(0, g.dtype()))
    return compute_where(g, negative, compute(g, "Ceil", value), compute(g, "Floor", value))


def round_decimals(g: OnnxGraph, self: fx.Node, decimals: int) -> str:
    """aten::round.decimals(Tensor self, *, int decimals) -> Tensor"""
    up, down = ("Mul", "Div") if decimals >= 0 else ("Div", "Mul")
    factor = 10.0 ** abs(decimals)
    return compute(g, down, compute(g, "Round", compute(g, up, self, factor)), factor)


def div_mode(g: OnnxGraph, self: fx.Node, other: Any, rounding_mode: str | None) -> str:
    """aten::div.Tensor_mode(Tensor self, Tensor other, *, str? rounding_mode) -> Tensor
    aten::div.Scalar_mode(Tensor self, Scalar other, *, str? rounding_mode) -> Tensor
    aten::divide.Tensor_mode(Tensor self, Tensor other, *, str? rounding_mode) -> Tensor
    aten::divide.Scalar_mode(Tensor self, Scalar other, *, str? rounding_mode) -> Tensor
    """
    if rounding_mode == "floor":
        return floor_divide(g, self, other)
    quotient = compute(g, "Div", self, other)
    is_float = g.dtype().is_floating_point
    return truncated(g, quotient) if rounding_mode == "trunc" and is_float else quotient


def floor_divide(g: OnnxGraph, self: Any, other: Any) -> str:
    """aten::floor_divide(Tensor self, Tensor other) -> Tensor
    aten::floor_divide.Scalar(Tensor self, Scalar other) -> Tensor
    """
    if g.dtype().is_floating_point:
        return compute(g, "Floor", compute(g, "Div", self, other))
    # ONNX divides integers towards zero; without the (floored) remainder nothing is left to round.
    return compute(g, "Div", compute(g, "Sub", self, compute(g, "Mod", self, other)), other)


def remainder(g: OnnxGraph, self: Any, other: Any) -> str:
    """aten::remainder.Tensor(Tensor self, Tensor other) -> Tensor
    aten::remainder.Scalar(Tensor self, Scalar other) -> Tensor
    aten::remainder.Scalar_Tensor(Scalar self, Tensor other) -> Tensor
    """
    dtype = g.dtype()
    if not dtype.is_floating_point:
        return compute(g, "Mod", self, other)
    rest = compute(g, "Mod", self, other, fmod=1)  # with the sign of the dividend; torch's has that of the divisor
    zero = g.constant(0, dtype)
    signs_differ = g.op("Xor", g.op("Less", rest, zero), g.op("Less", operand(g, other, dtype), zero))
    is_wrong = g.op("And", signs_differ, g.op("Not", g.op("Equal", rest, zero)))
    return compute_where(g, is_wrong, compute(g, "Add", rest, other), rest)


def fmod(g: OnnxGraph, self: fx.Node, other: Any) -> str:
    """aten::fmod.Tensor(Tensor self, Tensor other) -> Tensor
    aten::fmod.Scalar(Tensor self, Scalar other) -> Tensor
    """
    return compute(g, "Mod", self, other, fmod=1)


def addcmul(g: OnnxGraph, self: fx.Node, tensor1: fx.Node, tensor2: fx.Node, value: Any) -> str:
    """aten::addcmul(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1) -> Tensor"""
    return compute(g, "Add", self, compute(g, "Mul", scaled(g, tensor1, value), tensor2))


def addcdiv(g: OnnxGraph, self: fx.Node, tensor1: fx.Node, tensor2: fx.Node, value: Any) -> str:
    """aten::addcdiv(Tensor self, Tensor tensor1, Tensor tensor2, *, Scalar value=1) -> Tensor"""
    return compute(g, "Add", self, compute(g, "Div", scaled(g, tensor1, value), tensor2))


def lerp(g: OnnxGraph, self: fx.Node, end: fx.Node, weight: Any) -> str:
    """aten::lerp.Scalar(Tensor self, Tensor end, Scalar weight) -> Tensor
    aten::lerp.Tensor(Tensor self, Tensor end, Tensor weight) -> Tensor
    """
    return compute(g, "Add", self, compute(g, "Mul", compute(g, "Sub", end, self), weight))


def nan_to_num(g: OnnxGraph, self: fx.Node, nan: float | None, posinf: float | None, neginf: float | None) -> str:
    """aten::nan_to_num(Tensor self, float? nan=None, float? posinf=None, float? neginf=None) -> Tensor"""
    dtype = g.dtype()
    if not dtype.is_floating_point:
        return g.value(self)
    limits = torch.finfo(dtype)
    result = compute_where(g, g.op("IsNaN", self), nan or 0.0, g.value(self))
    highest, lowest = (limits.max if posinf is None else posinf), (limits.min if neginf is None else neginf)
    result = compute_where(g, g.op("IsInf", self, detect_negative=0), highest, result)
    return compute_where(g, g.op("IsInf", self, detect_positive=0), lowest, result)


def compute_where(g: OnnxGraph, condition: Any, left: Any, right: Any) -> str:
    """Emit Where on values of the result's dtype; onnxruntime has no kernel for bools."""
    dtype = g.dtype()
    inner = torch.uint8 if dtype is torch.bool else torch.int32 if dtype is torch.int16 else dtype
    values = [g.cast(v, inner, dtype) if isinstance(v, str) else operand(g, v, inner) for v in (left, right)]
    return g.cast(g.op("Where", condition, *values), dtype, inner)


def where(g: OnnxGraph, condition: fx.Node, self: Any, other: Any) -> str:
    """aten::where.self(Tensor condition, Tensor self, Tensor other) -> Tensor
    aten::where.ScalarOther(Tensor condition, Tensor self, Scalar other) -> Tensor
    aten::where.ScalarSelf(Tensor condition, Scalar self, Tensor other) -> Tensor
    aten::where.Scalar(Tensor condition, Scalar self, Scalar other) -> Tensor
    """
    return compute_where(g, g.cast(condition, torch.bool), self, other)


def masked_fill(g: OnnxGraph, self: fx.Node, mask: fx.Node, value: Any) -> str:
    """aten::masked_fill.Scalar(Tensor self, Tensor mask, Scalar value) -> Tensor
    aten::masked_fill.Tensor(Tensor self, Tensor mask, Tensor value) -> Tensor
    """
    return compute_where(g, g.cast(mask, torch.bool), value, self)


def table(rows: dict[Any, Any], make: Callable[[Any], Rule]) -> dict[Any, Rule]:
    """Make a rule of each row; its docstring is the schema, as for rules written out."""
    rules = {}
    for op, row in rows.items():
        rules[op] = make(row)
        rules[op].__doc__ = str(op._schema)
    return rules


RULES: dict[Any, Rule] = {
    **table(UNARY, unary),
    **table(ROUNDING, rounding),
    **table(BINARY, binary),
    **table(LARGEST, largest),
    aten.add.Tensor: add,
    aten.add.Scalar: add,
    aten.sub.Tensor: sub,
    aten.sub.Scalar: sub,
    aten.subtract.Tensor: sub,
    aten.subtract.Scalar: sub,
    aten.rsub.Tensor: rsub,
    aten.rsub.Scalar: rsub,
    aten.pow.Tensor_Tensor: power,
    aten.pow.Tensor_Scalar: power,
    aten.pow.Scalar: power,
    aten.float_power.Tensor_Tensor: power,
    aten.float_power.Tensor_Scalar: power,
    aten.float_power.Scalar: power,
    aten.exp2.default: exp2,
    aten.log2.default: log2,
    aten.log10.default: log10,
    aten.log1p.default: log1p,
    aten.expm1.default: expm1,
    aten.rsqrt.default: rsqrt,
    aten.square.default: square,
    aten.erfc.default: erfc,
    aten.trunc.default: trunc,
    aten.fix.default: trunc,
    aten.frac.default: frac,
    aten.round.decimals: round_decimals,
    aten.div.Tensor_mode: div_mode,
    aten.div.Scalar_mode: div_mode,
    aten.divide.Tensor_mode: div_mode,
    aten.divide.Scalar_mode: div_mode,
    aten.floor_divide.default: floor_divide,
    aten.floor_divide.Scalar: floor_divide,
    aten.remainder.Tensor: remainder,
    aten.remainder.Scalar: remainder,
    aten.remainder.Scalar_Tensor: remainder,
    aten.fmod.Tensor: fmod,
    aten.fmod.Scalar: fmod,
    aten.addcmul.default: addcmul,
    aten.addcdiv.default: addcdiv,
    aten.lerp.Scalar: lerp,
    aten.lerp.Tensor: lerp,
    aten.nan_to_num.default: nan_to_num,
    aten.where.self: where,
    aten.where.ScalarOther: where,
    aten.where.ScalarSelf: where,
    aten.where.Scalar: where,
    aten.masked_fill.Scalar: masked_fill,
    aten.masked_fill.Tensor: masked_fill,
}
