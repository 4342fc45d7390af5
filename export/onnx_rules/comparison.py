"""Comparisons, logic and bit operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.onnx_rules.elementwise import table
from fxopt.export.onnx_rules.operands import common_dtype, operand, reduced
from fxopt.export.onnx_rules.shapes import unsqueeze

aten = torch.ops.aten

# op -> (ONNX op, whether its result is negated)
COMPARISONS: dict[Any, tuple[str, bool]] = {
    aten.eq.Tensor: ("Equal", False),
    aten.eq.Scalar: ("Equal", False),
    aten.ne.Tensor: ("Equal", True),
    aten.ne.Scalar: ("Equal", True),
    aten.not_equal.Tensor: ("Equal", True),
    aten.not_equal.Scalar: ("Equal", True),
    aten.lt.Tensor: ("Less", False),
    aten.lt.Scalar: ("Less", False),
    aten.less.Tensor: ("Less", False),
    aten.less.Scalar: ("Less", False),
    aten.le.Tensor: ("LessOrEqual", False),
    aten.le.Scalar: ("LessOrEqual", False),
    aten.less_equal.Tensor: ("LessOrEqual", False),
    aten.less_equal.Scalar: ("LessOrEqual", False),
    aten.gt.Tensor: ("Greater", False),
    aten.gt.Scalar: ("Greater", False),
    aten.greater.Tensor: ("Greater", False),
    aten.greater.Scalar: ("Greater", False),
    aten.ge.Tensor: ("GreaterOrEqual", False),
    aten.ge.Scalar: ("GreaterOrEqual", False),
    aten.greater_equal.Tensor: ("GreaterOrEqual", False),
    aten.greater_equal.Scalar: ("GreaterOrEqual", False),
}
LOGICAL: dict[Any, str] = {
    aten.logical_and.default: "And",
    aten.logical_or.default: "Or",
    aten.logical_xor.default: "Xor",
}
# op -> (ONNX op on bools, ONNX op on integers)
BITWISE: dict[Any, tuple[str, str]] = {
    **dict.fromkeys(
        [aten.bitwise_and.Tensor, aten.bitwise_and.Scalar, aten.bitwise_and.Scalar_Tensor], ("And", "BitwiseAnd")
    ),
    **dict.fromkeys([aten.__and__.Tensor, aten.__and__.Scalar], ("And", "BitwiseAnd")),
    **dict.fromkeys(
        [aten.bitwise_or.Tensor, aten.bitwise_or.Scalar, aten.bitwise_or.Scalar_Tensor], ("Or", "BitwiseOr")
    ),
    **dict.fromkeys([aten.__or__.Tensor, aten.__or__.Scalar], ("Or", "BitwiseOr")),
    **dict.fromkeys(
        [aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar, aten.bitwise_xor.Scalar_Tensor], ("Xor", "BitwiseXor")
    ),
    **dict.fromkeys([aten.__xor__.Tensor, aten.__xor__.Scalar], ("Xor", "BitwiseXor")),
}


def comparison(row: tuple[str, bool]) -> Rule:
    """Make the rule of a comparison, in the dtype that both sides promote to."""
    op_type, negated = row

    def rule(g: OnnxGraph, self: fx.Node, other: Any) -> str:
        dtype = common_dtype(g, self, other)
        if dtype is torch.bool and op_type != "Equal":
            dtype = torch.int32
        result = g.op(op_type, operand(g, self, dtype), operand(g, other, dtype))
        return g.op("Not", result) if negated else result

    return rule


def logical(op_type: str) -> Rule:
    """Make the rule of a logical op: every number but zero is true."""
    return lambda g, self, other: g.op(op_type, g.cast(self, torch.bool), g.cast(other, torch.bool))


def bitwise(op_types: tuple[str, str]) -> Rule:
    """Make the rule of a bit operation, which on bools is a logical one."""

    def rule(g: OnnxGraph, self: Any, other: Any) -> str:
        dtype = g.dtype()
        return g.op(op_types[dtype is not torch.bool], operand(g, self, dtype), operand(g, other, dtype))

    return rule


def logical_not(g: OnnxGraph, self: fx.Node) -> str:
    """aten::logical_not(Tensor self) -> Tensor"""
    return g.op("Not", g.cast(self, torch.bool))


def bitwise_not(g: OnnxGraph, self: fx.Node) -> str:
    """aten::bitwise_not(Tensor self) -> Tensor"""
    return g.op("Not" if g.dtype() is torch.bool else "BitwiseNot", self)


def isnan(g: OnnxGraph, self: fx.Node) -> str:
    """aten::isnan(Tensor self) -> Tensor"""
    return g.op("IsNaN", self) if g.dtype(self).is_floating_point else never(g, self)


def isinf(g: OnnxGraph, self: fx.Node) -> str:
    """aten::isinf(Tensor self) -> Tensor"""
    return g.op("IsInf", self) if g.dtype(self).is_floating_point else never(g, self)


def isfinite(g: OnnxGraph, self: fx.Node) -> str:
    """aten::isfinite(Tensor self) -> Tensor"""
    if not g.dtype(self).is_floating_point:
        return g.op("Equal", self, self)
    return g.op("Not", g.op("Or", g.op("IsNaN", self), g.op("IsInf", self)))


def never(g: OnnxGraph, node: fx.Node) -> str:
    """Return False for every element of an integer tensor."""
    return g.op("Not", g.op("Equal", node, node))


def isin(g: OnnxGraph, elements: fx.Node, test_elements: fx.Node, assume_unique: bool, invert: bool) -> str:
    """aten::isin.Tensor_Tensor(Tensor elements, Tensor test_elements, *, bool assume_unique=False, bool invert=False) -> Tensor"""  # noqa: E501
    dtype = common_dtype(g, elements, test_elements)
    single = unsqueeze(g, operand(g, elements, dtype), -1)
    equal = g.op("Equal", single, g.op("Reshape", operand(g, test_elements, dtype), [-1]))
    found = reduced(g, "ReduceMax", equal, [-1], False, torch.bool)
    return g.op("Not", found) if invert else found


RULES: dict[Any, Rule] = {
    **table(COMPARISONS, comparison),
    **table(LOGICAL, logical),
    **table(BITWISE, bitwise),
    aten.logical_not.default: logical_not,
    aten.bitwise_not.default: bitwise_not,
    aten.isnan.default: isnan,
    aten.isinf.default: isinf,
    aten.isfinite.default: isfinite,
    aten.isin.Tensor_Tensor: isin,
}
