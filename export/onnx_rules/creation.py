"""New tensors: constants where the shape is static, ConstantOfShape, Range and EyeLike where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxopt.export.builder import ONNX_TYPE, OnnxGraph, Rule
from fxopt.export.onnx_rules.elementwise import table
from fxopt.export.onnx_rules.operands import compute, kernel_dtype, operand
from fxopt.export.onnx_rules.shapes import filled, is_static

aten = torch.ops.aten

# Larger constants are left to ConstantOfShape, to keep the file small.
MAX_CONSTANT = 256

# (size, ...): the number that fills; empty tensors hold zeros.
SIZED: dict[Any, int] = {
    aten.zeros.default: 0,
    aten.ones.default: 1,
    aten.empty.memory_format: 0,
}
# (self, size, ...)
NEW: dict[Any, int] = {
    aten.new_zeros.default: 0,
    aten.new_ones.default: 1,
    aten.new_empty.default: 0,
}
# (self, ...)
LIKE: dict[Any, int] = {aten.zeros_like.default: 0, aten.ones_like.default: 1, aten.empty_like.default: 0}


def sized(fill: int) -> Rule:
    """Make the rule of a tensor of one number and a given size."""
    return lambda g, size, *options: fill_shape(g, size, fill)


def new(fill: int) -> Rule:
    """Make the rule of a tensor of one number and a given size, with the dtype of another."""
    return lambda g, self, size, *options: fill_shape(g, size, fill)


def like(fill: int) -> Rule:
    """Make the rule of a tensor of one number in the shape of another."""
    return lambda g, self, *options: fill_like(g, self, fill)


def fill_shape(g: OnnxGraph, size: Sequence[Any], fill: Any) -> str:
    """Return a tensor of one number (plain or symbolic) with sizes that are ints or nodes."""
    shape, dtype = g.val().shape, g.dtype()
    known = [now if isinstance(now, int) else given for now, given in zip(shape, size, strict=True)]
    if isinstance(fill, fx.Node):
        return g.op("Expand", operand(g, fill, dtype), g.sizes(known))
    if is_static(known) and g.val().numel() <= MAX_CONSTANT:
        return g.constant(torch.full(tuple(known), fill, dtype=dtype))
    return filled(g, g.sizes(known), fill, dtype)


def fill_like(g: OnnxGraph, node: fx.Node, fill: Any) -> str:
    """Return a tensor of one number (plain or symbolic) in the shape of a tensor."""
    shape = g.val().shape
    if is_static(shape):
        return fill_shape(g, shape, fill)
    if isinstance(fill, fx.Node):
        return g.op("Expand", operand(g, fill, g.dtype()), g.shape_of(node))
    return filled(g, g.shape_of(node), fill, g.dtype())


def full(g: OnnxGraph, size: list[Any], fill_value: Any, *options: Any) -> str:
    """aten::full(SymInt[] size, Scalar fill_value, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""  # noqa: E501
    return fill_shape(g, size, fill_value)


def new_full(g: OnnxGraph, self: fx.Node, size: list[Any], fill_value: Any, *options: Any) -> str:
    """aten::new_full(Tensor self, SymInt[] size, Scalar fill_value, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""  # noqa: E501
    return fill_shape(g, size, fill_value)


def full_like(g: OnnxGraph, self: fx.Node, fill_value: Any, *options: Any) -> str:
    """aten::full_like(Tensor self, Scalar fill_value, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor
    aten::fill.Scalar(Tensor self, Scalar value) -> Tensor
    aten::fill.Tensor(Tensor self, Tensor value) -> Tensor
    """  # noqa: E501
    return fill_like(g, self, fill_value)


def scalar_tensor(g: OnnxGraph, s: Any, *options: Any) -> str:
    """aten::scalar_tensor(Scalar s, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""  # noqa: E501
    return operand(g, s, g.dtype())


def arange(g: OnnxGraph, end: Any, *options: Any) -> str:
    """aten::arange(Scalar end, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""  # noqa: E501
    return sequence(g, 0, end, 1)


def arange_start(g: OnnxGraph, start: Any, end: Any, *options: Any) -> str:
    """aten::arange.start(Scalar start, Scalar end, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""  # noqa: E501
    return sequence(g, start, end, 1)


def arange_start_step(g: OnnxGraph, start: Any, end: Any, step: Any, *options: Any) -> str:
    """aten::arange.start_step(Scalar start, Scalar end, Scalar step=1, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""  # noqa: E501
    return sequence(g, start, end, step)


def sequence(g: OnnxGraph, start: Any, end: Any, step: Any) -> str:
    """Return the numbers from start (included) to end (excluded), in the dtype of the result."""
    bounds = [start, end, step]
    if not any(isinstance(bound, fx.Node) for bound in bounds):
        return g.constant(torch.arange(start, end, step, dtype=g.dtype()))
    are_ints = all(g.dtype(bound) is torch.int64 for bound in bounds)
    inner = torch.int64 if are_ints else kernel_dtype("Range", g.dtype())
    return g.cast(g.op("Range", *[operand(g, bound, inner) for bound in bounds]), g.dtype(), inner)


def linspace(g: OnnxGraph, start: Any, end: Any, steps: int, *options: Any) -> str:
    """aten::linspace(Scalar start, Scalar end, int steps, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""  # noqa: E501
    dtype = g.dtype()
    if not isinstance(start, fx.Node) and not isinstance(end, fx.Node):
        return g.constant(torch.linspace(start, end, steps, dtype=dtype))
    along = g.constant(torch.linspace(0, 1, steps, dtype=dtype))
    return compute(g, "Add", start, compute(g, "Mul", along, compute(g, "Sub", end, start)))


def eye(g: OnnxGraph, n: Any, *options: Any) -> str:
    """aten::eye(SymInt n, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""  # noqa: E501
    return identity_matrix(g, n, n)


def eye_m(g: OnnxGraph, n: Any, m: Any, *options: Any) -> str:
    """aten::eye.m(SymInt n, SymInt m, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""  # noqa: E501
    return identity_matrix(g, n, m)


def identity_matrix(g: OnnxGraph, rows: Any, columns: Any) -> str:
    """Return a matrix with ones on its diagonal."""
    dtype = g.dtype()
    if isinstance(rows, int) and isinstance(columns, int):
        return g.constant(torch.eye(rows, columns, dtype=dtype))
    inner = kernel_dtype("EyeLike", dtype)
    zeros = filled(g, g.sizes([rows, columns]), 0, torch.int32)
    return g.cast(g.op("EyeLike", zeros, dtype=ONNX_TYPE[inner]), dtype, inner)


RULES: dict[Any, Rule] = {
    **table(SIZED, sized),
    **table(NEW, new),
    **table(LIKE, like),
    aten.full.default: full,
    aten.new_full.default: new_full,
    aten.full_like.default: full_like,
    aten.fill.Scalar: full_like,
    aten.fill.Tensor: full_like,
    aten.scalar_tensor.default: scalar_tensor,
    aten.arange.default: arange,
    aten.arange.start: arange_start,
    aten.arange.start_step: arange_start_step,
    aten.linspace.default: linspace,
    aten.eye.default: eye,
    aten.eye.m: eye_m,
}
