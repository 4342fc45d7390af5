"""Arithmetic on sizes: every symbolic number is a 1-D value of one element, int64, float64 or bool."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from fxopt.export.builder import ONNX_TYPE, OnnxGraph, Rule
from fxopt.export.onnx_rules.shapes import size_of

aten = torch.ops.aten

ARITHMETIC: dict[Any, str] = {
    operator.add: "Add",
    operator.sub: "Sub",
    operator.mul: "Mul",
    operator.mod: "Mod",
    operator.pow: "Pow",
    torch.sym_max: "Max",
    torch.sym_min: "Min",
}
COMPARISONS: dict[Any, str] = {
    operator.eq: "Equal",
    operator.lt: "Less",
    operator.le: "LessOrEqual",
    operator.gt: "Greater",
    operator.ge: "GreaterOrEqual",
}
LOGIC: dict[Any, str] = {operator.and_: "And", operator.or_: "Or"}
UNARY: dict[Any, str] = {operator.neg: "Neg", operator.abs: "Abs", getattr(torch, "_sym_sqrt"): "Sqrt"}  # noqa: B009
# From a float to an int.
ROUNDINGS: dict[Any, str | None] = {
    math.ceil: "Ceil",
    math.floor: "Floor",
    math.trunc: None,
    round: "Round",
}


def number(g: OnnxGraph, value: Any, dtype: torch.dtype | None = None) -> str:
    """Return a symbolic or plain number as a 1-D value of one element."""
    if isinstance(value, fx.Node):
        return g.cast(value, dtype or g.dtype(value))
    found = dtype or (torch.float64 if isinstance(value, float) else g.dtype(value))
    return g.constant(torch.tensor([value], dtype=found))


def common(g: OnnxGraph, *values: Any) -> torch.dtype:
    """Return float64 if one of the numbers is a float, else int64."""
    return torch.float64 if any(g.dtype(value).is_floating_point for value in values) else torch.int64


def arithmetic(op_type: str) -> Rule:
    """Make the rule of an operator on two numbers."""

    def rule(g: OnnxGraph, a: Any, b: Any) -> str:
        dtype = common(g, a, b)
        if op_type == "Mod" and dtype is torch.float64:
            whole = g.op("Mul", floordiv(g, a, b), number(g, b, dtype))
            return g.op("Sub", number(g, a, dtype), whole)
        return g.op(op_type, number(g, a, dtype), number(g, b, dtype))

    return rule


def comparison(op_type: str) -> Rule:
    """Make the rule of a comparison of two numbers."""
    return lambda g, a, b: g.op(op_type, number(g, a, common(g, a, b)), number(g, b, common(g, a, b)))


def logic(op_type: str) -> Rule:
    """Make the rule of an operator on two truth values."""
    return lambda g, a, b: g.op(op_type, number(g, a, torch.bool), number(g, b, torch.bool))


def unary(op_type: str) -> Rule:
    """Make the rule of an operator on one number."""
    return lambda g, a: g.op(op_type, number(g, a, torch.float64 if op_type == "Sqrt" else None))


def rounding(op_type: str | None) -> Rule:
    """Make the rule of a conversion from float to int; without an op, decimals are cut off."""

    def rule(g: OnnxGraph, a: Any, digits: None = None) -> str:
        if not g.dtype(a).is_floating_point:
            return number(g, a)
        value = number(g, a)
        return g.op("Cast", g.op(op_type, value) if op_type else value, to=ONNX_TYPE[torch.int64])

    return rule


def truediv(g: OnnxGraph, a: Any, b: Any) -> str:
    """operator.truediv(a, b)"""
    return g.op("Div", number(g, a, torch.float64), number(g, b, torch.float64))


def floordiv(g: OnnxGraph, a: Any, b: Any) -> str:
    """operator.floordiv(a, b)"""
    dtype = common(g, a, b)
    left, right = number(g, a, dtype), number(g, b, dtype)
    if dtype is torch.float64:
        return g.op("Floor", g.op("Div", left, right))
    if _is_size(a) and isinstance(b, int) and b > 0:
        return g.op("Div", left, right)
    return g.op("Div", g.op("Sub", left, g.op("Mod", left, right)), right)


def _is_size(value: Any) -> bool:
    """Say whether a number is read off a shape, so that it is not negative and may be divided towards zero."""
    return isinstance(value, fx.Node) and value.target is aten.sym_size.int


def ne(g: OnnxGraph, a: Any, b: Any) -> str:
    """operator.ne(a, b)"""
    return g.op("Not", comparison("Equal")(g, a, b))


def sym_not(g: OnnxGraph, a: Any) -> str:
    """torch.sym_not(a)"""
    return g.op("Not", number(g, a, torch.bool))


def sym_float(g: OnnxGraph, a: Any) -> str:
    """torch.sym_float(a)"""
    return number(g, a, torch.float64)


def sym_ite(g: OnnxGraph, b: Any, t: Any, f: Any) -> str:
    """torch.sym_ite(b, t, f)"""
    dtype = common(g, t, f)
    return g.op("Where", number(g, b, torch.bool), number(g, t, dtype), number(g, f, dtype))


def sym_sum(g: OnnxGraph, args: Any) -> str:
    """torch.sym_sum(args)"""
    total = number(g, args[0])
    for value in args[1:]:
        total = g.op("Add", total, number(g, value))
    return total


def sym_size(g: OnnxGraph, self: fx.Node, dim: int) -> str:
    """aten::sym_size.int(Tensor self, int dim) -> SymInt"""
    return size_of(g, self, dim)


def sym_numel(g: OnnxGraph, self: fx.Node) -> str:
    """aten::sym_numel(Tensor self) -> SymInt"""
    return g.op("Reshape", g.op("Size", self), g.constant(np.array([1])))


def item(g: OnnxGraph, self: fx.Node) -> str:
    """aten::item(Tensor self) -> Scalar
    aten::_local_scalar_dense(Tensor self) -> Scalar
    """
    return g.op("Reshape", g.cast(self, g.dtype(g.node)), g.constant(np.array([1])))


def described(rows: dict[Any, Any], make: Callable[[Any], Rule]) -> dict[Any, Rule]:
    """Make a rule of each row, with the function's name as its docstring."""
    rules = {}
    for function, row in rows.items():
        rules[function] = make(row)
        rules[function].__doc__ = f"{function.__module__}.{function.__name__}"
    return rules


RULES: dict[Any, Rule] = {
    **described(ARITHMETIC, arithmetic),
    **described(COMPARISONS, comparison),
    **described(LOGIC, logic),
    **described(UNARY, unary),
    **described(ROUNDINGS, rounding),
    operator.truediv: truediv,
    operator.floordiv: floordiv,
    operator.ne: ne,
    torch.sym_not: sym_not,
    torch.sym_float: sym_float,
    torch.sym_ite: sym_ite,
    torch.sym_sum: sym_sum,
    aten.sym_size.int: sym_size,
    aten.sym_numel.default: sym_numel,
    aten.item.default: item,
    aten._local_scalar_dense.default: item,
}
