"""Reductions, sorting and running sums. Without dims, all are reduced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from onnx import helper
from torch import fx

from fxopt.export.builder import ONNX_TYPE, OnnxGraph, Rule
from fxopt.export.delegate import delegate_one
from fxopt.export.onnx_rules.elementwise import table
from fxopt.export.onnx_rules.operands import compute, kernel_dtype, operand, reduced
from fxopt.export.onnx_rules.shapes import TO_THE_END, cut, filled, ints, is_static, joined, shape_value, size_of

aten = torch.ops.aten

# (self, *, dtype) and (self, dim, keepdim, *, dtype)
SUMS: dict[Any, str] = {
    aten.sum.default: "ReduceSum",
    aten.prod.default: "ReduceProd",
}
# (self), (self, dim, keepdim): the ONNX op and whether the values are first made true or false.
EXTREMA: dict[Any, tuple[str, bool]] = {
    aten.max.default: ("ReduceMax", False),
    aten.min.default: ("ReduceMin", False),
    aten.amax.default: ("ReduceMax", False),
    aten.amin.default: ("ReduceMin", False),
    aten.any.default: ("ReduceMax", True),
    aten.any.dim: ("ReduceMax", True),
    aten.any.dims: ("ReduceMax", True),
    aten.all.default: ("ReduceMin", True),
    aten.all.dim: ("ReduceMin", True),
    aten.all.dims: ("ReduceMin", True),
}
ARGUMENTS: dict[Any, str] = {aten.argmax.default: "ArgMax", aten.argmin.default: "ArgMin"}
EXTREMA_WITH_INDEX: dict[Any, tuple[str, str]] = {
    aten.max.dim: ("ReduceMax", "ArgMax"),
    aten.min.dim: ("ReduceMin", "ArgMin"),
}


def total(op_type: str) -> Rule:
    """Make the rule of a reduction over everything, in the dtype of its result."""
    return lambda g, self, dtype: reduced(g, op_type, self, None, False, g.dtype())


def extremum(row: tuple[str, bool]) -> Rule:
    """Make the rule of a maximum or minimum over some dimensions."""
    op_type, is_logical = row

    def rule(g: OnnxGraph, self: fx.Node, dim: Any = None, keepdim: bool = False) -> str:
        value = g.cast(self, torch.bool) if is_logical and g.dtype(self) is not torch.bool else self
        result = reduced(g, op_type, value, _dims(dim), keepdim, torch.bool if is_logical else g.dtype())
        return g.cast(result, g.dtype(), torch.bool) if is_logical else result

    return rule


def argument(op_type: str) -> Rule:
    """Make the rule of argmax or argmin."""

    def rule(g: OnnxGraph, self: fx.Node, dim: int | None, keepdim: bool) -> str:
        value = operand(g, self, kernel_dtype(op_type, g.dtype(self)))
        if dim is not None and g.rank(self) > 0:
            return g.op(op_type, value, axis=dim, keepdims=int(keepdim))
        index = g.op(op_type, g.op("Reshape", value, [-1]), axis=0, keepdims=0)
        return g.op("Reshape", index, ints(g, [1] * g.rank(self))) if keepdim else index

    return rule


def extremum_with_index(op_types: tuple[str, str]) -> Rule:
    """Make the rule of max or min along one dimension, which also returns where."""

    def rule(g: OnnxGraph, self: fx.Node, dim: int, keepdim: bool) -> tuple[str, str]:
        if g.rank(self) == 0:
            return g.value(self), g.constant(0)
        values = reduced(g, op_types[0], self, [dim], keepdim, g.dtype(self))
        value = operand(g, self, kernel_dtype(op_types[1], g.dtype(self)))
        return values, g.op(op_types[1], value, axis=dim, keepdims=int(keepdim))

    return rule


def _dims(dim: Any) -> list[int] | None:
    return [dim] if isinstance(dim, int) else dim


def sum_dims(g: OnnxGraph, self: fx.Node, dim: list[int] | None, keepdim: bool, dtype: Any) -> str:
    """aten::sum.dim_IntList(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    return reduced(g, "ReduceSum", self, _dims(dim), keepdim, g.dtype())


def prod_dim(g: OnnxGraph, self: fx.Node, dim: int, keepdim: bool, dtype: Any) -> str:
    """aten::prod.dim_int(Tensor self, int dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    return reduced(g, "ReduceProd", self, [dim], keepdim, g.dtype())


def count_nonzero(g: OnnxGraph, self: fx.Node, dim: Any) -> str:
    """aten::count_nonzero(Tensor self, int? dim=None) -> Tensor
    aten::count_nonzero.dim_IntList(Tensor self, int[] dim) -> Tensor
    """
    ones = g.op("Cast", g.cast(self, torch.bool), to=ONNX_TYPE[torch.int64])
    return reduced(g, "ReduceSum", ones, _dims(dim), False, torch.int64)


def moments(
    g: OnnxGraph, self: fx.Node, dims: list[int] | None, correction: float | None, keepdim: bool
) -> tuple[str, str]:
    """Return the variance, with `correction` (default 1) subtracted from the count, and the mean."""
    dtype = g.dtype(self)
    mean = reduced(g, "ReduceMean", self, dims, True, dtype)
    squares = compute(g, "Mul", *[compute(g, "Sub", self, mean, dtype=dtype)] * 2, dtype=dtype)
    correction = 1 if correction is None else correction
    if correction == 0:
        variance = reduced(g, "ReduceMean", squares, dims, keepdim, dtype)
    else:
        count = compute(g, "Sub", element_count(g, self, dims, dtype), correction, dtype=dtype)
        variance = compute(g, "Div", reduced(g, "ReduceSum", squares, dims, keepdim, dtype), count, dtype=dtype)
    return variance, mean if keepdim else reduced(g, "ReduceMean", self, dims, False, dtype)


def element_count(g: OnnxGraph, node: fx.Node, dims: Sequence[int] | None, dtype: torch.dtype) -> str:
    """Return how many elements the dimensions hold together, as a 0-D value of a float dtype."""
    rank = g.rank(node)
    sizes = [g.val(node).shape[dim] for dim in (dims or range(rank))]
    if is_static(sizes):
        return g.constant(math.prod(sizes), dtype)
    counts = joined(g, [size_of(g, node, dim) for dim in (dims or range(rank))])
    return g.cast(g.op("ReduceProd", counts, keepdims=0), dtype, torch.int64)


def _arguments(dim: Any, rest: tuple[Any, ...]) -> tuple[list[int] | None, float | None, bool]:
    """Read (unbiased), (dim, unbiased, keepdim) or (dim, correction, keepdim)."""
    if not rest:
        return None, int(dim), False
    return _dims(dim) or None, rest[0], rest[1]


def variance(g: OnnxGraph, self: fx.Node, dim: Any, *rest: Any) -> str:
    """aten::var(Tensor self, bool unbiased=True) -> Tensor
    aten::var.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> Tensor
    aten::var.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> Tensor
    """
    return moments(g, self, *_arguments(dim, rest))[0]


def deviation(g: OnnxGraph, self: fx.Node, dim: Any, *rest: Any) -> str:
    """aten::std(Tensor self, bool unbiased=True) -> Tensor
    aten::std.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> Tensor
    aten::std.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> Tensor
    """
    return compute(g, "Sqrt", moments(g, self, *_arguments(dim, rest))[0])


def variance_mean(g: OnnxGraph, self: fx.Node, dim: Any, *rest: Any) -> tuple[str, str]:
    """aten::var_mean(Tensor self, bool unbiased=True) -> (Tensor, Tensor)
    aten::var_mean.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> (Tensor, Tensor)
    aten::var_mean.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> (Tensor, Tensor)
    """  # noqa: E501
    return moments(g, self, *_arguments(dim, rest))


def deviation_mean(g: OnnxGraph, self: fx.Node, dim: Any, *rest: Any) -> tuple[str, str]:
    """aten::std_mean(Tensor self, bool unbiased=True) -> (Tensor, Tensor)
    aten::std_mean.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False) -> (Tensor, Tensor)
    aten::std_mean.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False) -> (Tensor, Tensor)
    """  # noqa: E501
    found, mean = moments(g, self, *_arguments(dim, rest))
    return compute(g, "Sqrt", found, dtype=g.dtype(self)), mean


def logsumexp(g: OnnxGraph, self: fx.Node, dim: list[int], keepdim: bool) -> str:
    """aten::logsumexp(Tensor self, int[1] dim, bool keepdim=False) -> Tensor"""
    return reduced(g, "ReduceLogSumExp", self, _dims(dim), keepdim, g.dtype())


def vector_norm(g: OnnxGraph, self: fx.Node, ord: float, dim: Any, keepdim: bool, dtype: Any) -> str:
    """aten::linalg_vector_norm(Tensor self, Scalar ord=2, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""  # noqa: E501
    dims, kind = _dims(dim), g.dtype()
    if ord in (1, 2):
        return reduced(g, f"ReduceL{int(ord)}", self, dims, keepdim, kind)
    if ord == 0:
        return reduced(g, "ReduceSum", g.cast(g.cast(self, torch.bool), kind, torch.bool), dims, keepdim, kind)
    size = compute(g, "Abs", self)
    if math.isinf(ord):
        return reduced(g, "ReduceMax" if ord > 0 else "ReduceMin", size, dims, keepdim, kind)
    return compute(g, "Pow", reduced(g, "ReduceSum", compute(g, "Pow", size, ord), dims, keepdim, kind), 1 / ord)


def linalg_norm(g: OnnxGraph, self: fx.Node, ord: float | None, dim: Any, keepdim: bool, dtype: Any) -> str:
    """aten::linalg_norm(Tensor self, Scalar? ord=None, int[1]? dim=None, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""  # noqa: E501
    is_matrix_norm = ord is not None and len(_dims(dim) or range(g.rank(self))) == 2
    if is_matrix_norm:
        return delegate_one(g)
    return vector_norm(g, self, 2 if ord is None else ord, dim, keepdim, dtype)


def norm(
    g: OnnxGraph, self: fx.Node, p: float | None, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> str:
    """aten::norm.ScalarOpt_dim(Tensor self, Scalar? p, int[1] dim, bool keepdim=False) -> Tensor
    aten::norm.ScalarOpt_dim_dtype(Tensor self, Scalar? p, int[1] dim, bool keepdim, *, ScalarType dtype) -> Tensor
    """
    return vector_norm(g, self, 2 if p is None else p, dim, keepdim, dtype)


def norm_all(g: OnnxGraph, self: fx.Node, p: float | None, dtype: Any = None) -> str:
    """aten::norm.Scalar(Tensor self, Scalar p=2) -> Tensor
    aten::norm.ScalarOpt_dtype(Tensor self, Scalar? p, *, ScalarType dtype) -> Tensor
    """
    return vector_norm(g, self, 2 if p is None else p, None, False, dtype)


def cumsum(g: OnnxGraph, self: fx.Node, dim: int, dtype: Any) -> str:
    """aten::cumsum(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor"""
    if g.rank(self) == 0:
        return g.cast(self, g.dtype())
    inner = kernel_dtype("CumSum", g.dtype())
    return g.cast(g.op("CumSum", operand(g, self, inner), g.constant(dim)), g.dtype(), inner)


def cumprod(g: OnnxGraph, self: fx.Node, dim: int, dtype: Any) -> str:
    """aten::cumprod(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor"""
    kind, rank = g.dtype(), g.rank(self)
    value = operand(g, self, kind)
    if rank == 0:
        return value
    dim %= rank
    names = {name: g.unique(f"{g.node.name}.{name}") for name in ("product", "slice", "next", "result")}
    body = helper.make_graph(
        [
            helper.make_node("Mul", [names["product"], names["slice"]], [names["next"]]),
            helper.make_node("Identity", [names["next"]], [names["result"]]),
        ],
        "cumprod",
        [helper.make_tensor_value_info(names[name], ONNX_TYPE[kind], None) for name in ("product", "slice")],
        [helper.make_tensor_value_info(names[name], ONNX_TYPE[kind], None) for name in ("next", "result")],
    )
    sizes = [size for position, size in enumerate(g.val(self).shape) if position != dim]
    ones = filled(g, shape_value(g, sizes, [self]), 1, kind)
    along: dict[str, Any] = {"num_scan_inputs": 1, "scan_input_axes": [dim], "scan_output_axes": [dim]}
    return g.ops("Scan", ones, value, outputs=2, body=body, **along)[1]


def diff(g: OnnxGraph, self: fx.Node, n: int, dim: int, prepend: fx.Node | None, append: fx.Node | None) -> str:
    """aten::diff(Tensor self, int n=1, int dim=-1, Tensor? prepend=None, Tensor? append=None) -> Tensor"""
    ends = [g.cast(part, g.dtype()) for part in (prepend, self, append) if part is not None]
    value = ends[0] if len(ends) == 1 else g.op("Concat", *ends, axis=dim)
    for _ in range(n):
        later, earlier = cut(g, value, dim, 1, TO_THE_END), cut(g, value, dim, 0, -1)
        value = g.op("Xor", later, earlier) if g.dtype() is torch.bool else g.op("Sub", later, earlier)
    return value


def topk(g: OnnxGraph, self: fx.Node, k: Any, dim: int, largest: bool, sorted: bool) -> tuple[str, str]:
    """aten::topk(Tensor self, SymInt k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor values, Tensor indices)"""  # noqa: E501
    return _top(g, self, ints(g, [k]) if isinstance(k, int) else g.value(k), dim, largest)


def _top(g: OnnxGraph, node: fx.Node, count: str, dim: int, largest: bool) -> tuple[str, str]:
    dtype = g.dtype(node)
    if g.rank(node) == 0:
        return g.value(node), g.constant(0)
    inner = kernel_dtype("TopK", dtype)
    values, indices = g.ops("TopK", operand(g, node, inner), count, outputs=2, axis=dim, largest=int(largest), sorted=1)
    return g.cast(values, dtype, inner), indices


def sort(g: OnnxGraph, self: fx.Node, dim: int, descending: bool) -> tuple[str, str]:
    """aten::sort(Tensor self, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)"""
    # TopK puts the lower index first among equals, so that it sorts stably.
    return _top(g, self, size_of(g, self, dim) if g.rank(self) else "", dim, descending)


def sort_stable(g: OnnxGraph, self: fx.Node, stable: bool | None, dim: int, descending: bool) -> tuple[str, str]:
    """aten::sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False) -> (Tensor values, Tensor indices)"""  # noqa: E501
    return sort(g, self, dim, descending)


def argsort(g: OnnxGraph, self: fx.Node, dim: int, descending: bool) -> str:
    """aten::argsort(Tensor self, int dim=-1, bool descending=False) -> Tensor"""
    return sort(g, self, dim, descending)[1]


def argsort_stable(g: OnnxGraph, self: fx.Node, stable: bool, dim: int, descending: bool) -> str:
    """aten::argsort.stable(Tensor self, *, bool stable, int dim=-1, bool descending=False) -> Tensor"""
    return sort(g, self, dim, descending)[1]


RULES: dict[Any, Rule] = {
    **table(SUMS, total),
    **table(EXTREMA, extremum),
    **table(ARGUMENTS, argument),
    **table(EXTREMA_WITH_INDEX, extremum_with_index),
    aten.sum.dim_IntList: sum_dims,
    aten.prod.dim_int: prod_dim,
    aten.count_nonzero.default: count_nonzero,
    aten.count_nonzero.dim_IntList: count_nonzero,
    aten.var.default: variance,
    aten.var.dim: variance,
    aten.var.correction: variance,
    aten.std.default: deviation,
    aten.std.dim: deviation,
    aten.std.correction: deviation,
    aten.var_mean.default: variance_mean,
    aten.var_mean.dim: variance_mean,
    aten.var_mean.correction: variance_mean,
    aten.std_mean.default: deviation_mean,
    aten.std_mean.dim: deviation_mean,
    aten.std_mean.correction: deviation_mean,
    aten.logsumexp.default: logsumexp,
    aten.linalg_vector_norm.default: vector_norm,
    aten.linalg_norm.default: linalg_norm,
    aten.norm.ScalarOpt_dim: norm,
    aten.norm.ScalarOpt_dim_dtype: norm,
    aten.norm.Scalar: norm_all,
    aten.norm.ScalarOpt_dtype: norm_all,
    aten.cumsum.default: cumsum,
    aten.cumprod.default: cumprod,
    aten.diff.default: diff,
    aten.topk.default: topk,
    aten.sort.default: sort,
    aten.sort.stable: sort_stable,
    aten.argsort.default: argsort,
    aten.argsort.stable: argsort_stable,
}
