"""Writing by index: scatter, index_put and the functional forms of writes to views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.delegate import delegate_one
from fxopt.export.onnx_rules.elementwise import compute_where, floor_divide, scaled
from fxopt.export.onnx_rules.indexing import MASKS, coordinates, result_order
from fxopt.export.onnx_rules.operands import compute, operand
from fxopt.export.onnx_rules.shapes import (
    TO_THE_END,
    cut,
    filled,
    front_order,
    ints,
    inverse_order,
    move_dims,
    same_shape,
    shape_value,
    unsqueeze,
)
from fxopt.export.onnx_rules.slicing import flat_diagonal, flat_shape

aten = torch.ops.aten

REDUCTION = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul", "amax": "max", "amin": "min"}


def scatter_src(g: OnnxGraph, self: fx.Node, dim: int, index: fx.Node, src: fx.Node) -> str:
    """aten::scatter.src(Tensor self, int dim, Tensor index, Tensor src) -> Tensor"""
    return _scatter(g, g.value(self), dim, index, _updates(g, index, src), None)


def scatter_value(g: OnnxGraph, self: fx.Node, dim: int, index: fx.Node, value: Any) -> str:
    """aten::scatter.value(Tensor self, int dim, Tensor index, Scalar value) -> Tensor"""
    return _scatter(g, g.value(self), dim, index, _updates(g, index, value), None)


def scatter_reduce(g: OnnxGraph, self: fx.Node, dim: int, index: fx.Node, src: Any, reduce: str) -> str:
    """aten::scatter.reduce(Tensor self, int dim, Tensor index, Tensor src, *, str reduce) -> Tensor
    aten::scatter.value_reduce(Tensor self, int dim, Tensor index, Scalar value, *, str reduce) -> Tensor
    """
    return _scatter(g, g.value(self), dim, index, _updates(g, index, src), REDUCTION[reduce])


def scatter_add(g: OnnxGraph, self: fx.Node, dim: int, index: fx.Node, src: fx.Node) -> str:
    """aten::scatter_add(Tensor self, int dim, Tensor index, Tensor src) -> Tensor"""
    return _scatter(g, g.value(self), dim, index, _updates(g, index, src), "add")


def scatter_reduce_two(
    g: OnnxGraph, self: fx.Node, dim: int, index: fx.Node, src: fx.Node, reduce: str, include_self: bool
) -> str:
    """aten::scatter_reduce.two(Tensor self, int dim, Tensor index, Tensor src, str reduce, *, bool include_self=True) -> Tensor"""  # noqa: E501
    start, updates = g.value(self), _updates(g, index, src)
    kind = "sum" if reduce == "mean" else reduce
    if not include_self:
        start = _scatter(g, start, dim, index, _updates(g, index, _neutral(kind, g.dtype())), None)
    total = _scatter(g, start, dim, index, updates, REDUCTION[kind])
    return total if reduce != "mean" else _divided_by_count(g, total, dim, index, include_self)


def _divided_by_count(g: OnnxGraph, total: str, dim: int, index: fx.Node, include_self: bool) -> str:
    """Divide sums by how many elements went into each."""
    count = filled(g, g.op("Shape", total), 1, g.dtype())
    if not include_self:
        count = _scatter(g, count, dim, index, _updates(g, index, 0), None)
    count = _scatter(g, count, dim, index, _updates(g, index, 1), "add")
    return compute(g, "Div", total, count) if g.dtype().is_floating_point else floor_divide(g, total, count)


def _neutral(reduce: str, dtype: torch.dtype) -> float:
    """Return the number that changes nothing under a reduction."""
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    lowest, highest = (-torch.inf, torch.inf) if dtype.is_floating_point else (limits.min, limits.max)
    return {"sum": 0, "prod": 1, "amax": lowest, "amin": highest}[reduce]


def _updates(g: OnnxGraph, index: fx.Node, src: Any) -> str:
    """Give what is written the shape of the index: numbers are repeated, a larger source is cut."""
    if not isinstance(src, fx.Node) or g.rank(src) != g.rank(index):
        return g.op("Expand", operand(g, src, g.dtype()), g.shape_of(index))
    if same_shape(g.val(src), g.val(index)):
        return g.cast(src, g.dtype())
    rank = g.rank(index)
    return g.op("Slice", g.cast(src, g.dtype()), ints(g, [0] * rank), g.shape_of(index), ints(g, range(rank)))


def _scatter(g: OnnxGraph, data: str, dim: int, index: fx.Node, updates: str, reduction: str | None) -> str:
    if g.rank() == 0:
        flat = [g.op("Reshape", value, [-1]) for value in (data, index, updates)]
        return g.op("Squeeze", g.op("ScatterElements", *flat, axis=0, reduction=reduction), [0])
    return g.op("ScatterElements", data, index, updates, axis=dim, reduction=reduction)


def index_put(g: OnnxGraph, self: fx.Node, indices: list[fx.Node | None], values: fx.Node, accumulate: bool) -> str:
    """aten::index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False) -> Tensor
    aten::_unsafe_index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False) -> Tensor
    """
    mask = indices[0]
    if len(indices) == 1 and mask is not None and g.dtype(mask) in MASKS and g.rank(values) == 0 and not accumulate:
        chosen = g.cast(mask, torch.bool)
        missing = g.rank(self) - g.rank(mask)
        chosen = unsqueeze(g, chosen, *range(-missing, 0)) if missing else chosen
        return compute_where(g, chosen, values, self)
    found = coordinates(g, indices)
    rank = g.rank(self)
    order = front_order(rank, found.dims)
    data = move_dims(g, self, order)
    place = result_order(found, rank)
    updates = move_dims(g, _spread(g, values, data, found.coordinates, place), inverse_order(place))
    written = g.op("ScatterND", data, found.coordinates, updates, reduction="add" if accumulate else None)
    return move_dims(g, written, inverse_order(order))


def _spread(g: OnnxGraph, values: fx.Node, data: str, places: str, order: Sequence[int]) -> str:
    """Broadcast the values to the shape of what is overwritten (that of indexing with the same indices)."""
    shape = g.op("Shape", move_dims(g, g.op("GatherND", data, places), order))
    return g.op("Expand", g.cast(values, g.dtype()), shape)


def slice_scatter(g: OnnxGraph, self: fx.Node, src: fx.Node, dim: int, start: Any, end: Any, step: Any) -> str:
    """aten::slice_scatter(Tensor self, Tensor src, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor"""  # noqa: E501
    value, length = g.cast(src, g.dtype()), g.val(src).shape[dim]
    if isinstance(length, int) and length == 0:
        return g.value(self)
    if step != 1:
        return _strided_scatter(g, self, value, dim, start, end, step)
    if same_shape(g.val(self), g.val(src)):
        return value
    pieces = [value]
    if start is not None and start != 0:
        pieces.insert(0, cut(g, self, dim, 0, start))
    if end is not None and not (isinstance(end, int) and end >= TO_THE_END):
        pieces.append(cut(g, self, dim, end, TO_THE_END))
    return g.op("Concat", *pieces, axis=dim)


def _strided_scatter(g: OnnxGraph, node: fx.Node, value: str, dim: int, start: Any, end: Any, step: int) -> str:
    size = g.op("Shape", node, start=dim % g.rank(node), end=dim % g.rank(node) + 1)
    everywhere = g.op("Range", g.constant(0), g.op("Squeeze", size, [0]), g.constant(1))
    places = cut(g, everywhere, 0, start or 0, TO_THE_END if end is None else end, step)
    return _write_rows(g, node, dim, places, value, None)


def _write_rows(g: OnnxGraph, node: fx.Node, dim: int, places: str, value: str, reduction: str | None) -> str:
    """Write slices along one dimension at 1-D places."""
    order = front_order(g.rank(node), [dim])
    data, rows = move_dims(g, node, order), move_dims(g, value, order)
    written = g.op("ScatterND", data, unsqueeze(g, places, -1), rows, reduction=reduction)
    return move_dims(g, written, inverse_order(order))


def select_scatter(g: OnnxGraph, self: fx.Node, src: fx.Node, dim: int, index: Any) -> str:
    """aten::select_scatter(Tensor self, Tensor src, int dim, SymInt index) -> Tensor"""
    dim %= g.rank(self)
    row = unsqueeze(g, g.cast(src, g.dtype()), dim)
    if not isinstance(index, int):
        return _write_rows(g, self, dim, g.value(index), row, None)
    size = g.val(self).shape[dim]
    if isinstance(size, int) and size == 1:
        return row
    pieces = [row]
    if index != 0:
        pieces.insert(0, cut(g, self, dim, 0, index))
    if index != -1 and not (isinstance(size, int) and index == size - 1):
        pieces.append(cut(g, self, dim, index + 1, TO_THE_END))
    return g.op("Concat", *pieces, axis=dim)


def diagonal_scatter(g: OnnxGraph, self: fx.Node, src: fx.Node, offset: int, dim1: int, dim2: int) -> str:
    """aten::diagonal_scatter(Tensor self, Tensor src, int offset=0, int dim1=0, int dim2=1) -> Tensor"""
    flat = flat_diagonal(g, self, offset, dim1, dim2)
    if flat is None:
        return delegate_one(g)
    order = front_order(g.rank(self), [dim1, dim2])
    front = move_dims(g, self, order)
    rows = g.op("Reshape", front, flat_shape(g, self, dim1, dim2))
    updates = move_dims(g, g.cast(src, g.dtype()), front_order(g.rank(src), [-1]))
    written = g.op("ScatterND", rows, unsqueeze(g, flat, -1), updates)
    sizes = [g.val(self).shape[dim] for dim in order]
    return move_dims(g, g.op("Reshape", written, shape_value(g, sizes, [self])), inverse_order(order))


def masked_scatter(g: OnnxGraph, self: fx.Node, mask: fx.Node, source: fx.Node) -> str:
    """aten::masked_scatter(Tensor self, Tensor mask, Tensor source) -> Tensor"""
    chosen = g.cast(mask, torch.bool)
    data = g.value(self)
    if not same_shape(g.val(self), g.val(mask)):
        chosen = g.op("Expand", chosen, g.shape_of(self))
        data = g.op("Expand", data, g.op("Shape", chosen))
    places = g.op("Transpose", g.op("NonZero", chosen), perm=[1, 0])
    count = g.op("Shape", places, start=0, end=1)
    updates = g.op("Slice", g.op("Reshape", g.cast(source, g.dtype()), [-1]), [0], count, [0])
    return g.op("ScatterND", data, places, updates)


def index_add(g: OnnxGraph, self: fx.Node, dim: int, index: fx.Node, source: fx.Node, alpha: Any) -> str:
    """aten::index_add(Tensor self, int dim, Tensor index, Tensor source, *, Scalar alpha=1) -> Tensor"""
    value = scaled(g, source, alpha)
    return _write_rows(g, self, dim, g.cast(index, torch.int64), g.value(value), "add")


def index_copy(g: OnnxGraph, self: fx.Node, dim: int, index: fx.Node, source: fx.Node) -> str:
    """aten::index_copy(Tensor self, int dim, Tensor index, Tensor source) -> Tensor"""
    return _write_rows(g, self, dim, g.value(index), g.value(source), None)


def index_fill(g: OnnxGraph, self: fx.Node, dim: int, index: fx.Node, value: Any) -> str:
    """aten::index_fill.int_Scalar(Tensor self, int dim, Tensor index, Scalar value) -> Tensor
    aten::index_fill.int_Tensor(Tensor self, int dim, Tensor index, Tensor value) -> Tensor
    """
    rows = g.op("Shape", g.op("Gather", self, index, axis=dim))
    return _write_rows(g, self, dim, g.value(index), g.op("Expand", operand(g, value, g.dtype()), rows), None)


RULES: dict[Any, Rule] = {
    aten.scatter.src: scatter_src,
    aten.scatter.value: scatter_value,
    aten.scatter.reduce: scatter_reduce,
    aten.scatter.value_reduce: scatter_reduce,
    aten.scatter_add.default: scatter_add,
    aten.scatter_reduce.two: scatter_reduce_two,
    aten.index_put.default: index_put,
    aten._unsafe_index_put.default: index_put,
    aten.slice_scatter.default: slice_scatter,
    aten.select_scatter.default: select_scatter,
    aten.diagonal_scatter.default: diagonal_scatter,
    aten.masked_scatter.default: masked_scatter,
    aten.index_add.default: index_add,
    aten.index_copy.default: index_copy,
    aten.index_fill.int_Scalar: index_fill,
    aten.index_fill.int_Tensor: index_fill,
}
