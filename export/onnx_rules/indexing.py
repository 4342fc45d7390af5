"""Reading by index: index tensors and masks, gather, embedding, one-hot, searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.delegate import delegate_one
from fxopt.export.onnx_rules.operands import common_dtype, operand, reduced
from fxopt.export.onnx_rules.shapes import front_order, ints, move_dims, shape_value, unsqueeze

aten = torch.ops.aten

MASKS = (torch.bool, torch.uint8)


@dataclass(frozen=True)
class Indices:
    """The index tensors of `x[i, :, j]` as ONNX needs them.

    - `coordinates`: int64, of the common shape of the index tensors, with one more dimension at the end, over `dims`.
    - `dims`: the indexed dimensions. `rank`: how many dimensions the common shape has.
    - `place`: where the common shape stands in the result.
    """

    coordinates: str
    dims: list[int]
    rank: int
    place: int


def index_tensor(g: OnnxGraph, self: fx.Node, indices: list[fx.Node | None]) -> str:
    """aten::index.Tensor(Tensor self, Tensor?[] indices) -> Tensor
    aten::_unsafe_index.Tensor(Tensor self, Tensor?[] indices) -> Tensor
    """
    given = [(dim, node) for dim, node in enumerate(indices) if node is not None]
    if len(given) == 1 and g.dtype(given[0][1]) not in MASKS:
        return g.op("Gather", self, given[0][1], axis=given[0][0])
    found = coordinates(g, indices)
    order = front_order(g.rank(self), found.dims)
    picked = g.op("GatherND", move_dims(g, self, order), found.coordinates)
    return move_dims(g, picked, result_order(found, g.rank(self)))


def result_order(found: Indices, rank: int) -> list[int]:
    """Return the order that moves the common shape of the index tensors from the front to its place."""
    others = list(range(found.rank, found.rank + rank - len(found.dims)))
    return [*others[: found.place], *range(found.rank), *others[found.place :]]


def coordinates(g: OnnxGraph, indices: Sequence[fx.Node | None]) -> Indices:
    """Combine index tensors (int tensors, masks, None for whole dimensions) into one tensor of coordinates."""
    values: list[tuple[str, int]] = []
    fakes: list[Tensor] = []
    nodes: list[fx.Node] = []
    dims: list[int] = []
    dim = 0
    for node in indices:
        if node is None:
            dim += 1
        elif g.dtype(node) in MASKS:
            values += [(row, 1) for row in nonzero_rows(g, node)]
            dims += range(dim, dim + g.rank(node))
            dim += g.rank(node)
        else:
            values.append((g.cast(node, torch.int64), g.rank(node)))
            nodes.append(node)
            fakes.append(g.val(node))
            dims.append(dim)
            dim += 1
    rank = max(rank for _, rank in values)
    is_adjacent = dims == list(range(dims[0], dims[0] + len(dims)))
    # A mask at a scalar position or None gaps between index tensors bring their common shape to the front.
    return Indices(_stacked(g, values, nodes, rank), dims, rank, dims[0] if is_adjacent else 0)


def _stacked(g: OnnxGraph, values: list[tuple[str, int]], nodes: list[fx.Node], rank: int) -> str:
    names = [value for value, _ in values]
    if len(names) > 1 and not _all_same_shape(g, nodes, len(names)):
        shape = _common_shape(g, names, nodes)
        names = [g.op("Expand", name, shape) for name in names]
    columns = [unsqueeze(g, name, -1) for name in names]
    return columns[0] if len(columns) == 1 else g.op("Concat", *columns, axis=-1)


def _all_same_shape(g: OnnxGraph, nodes: list[fx.Node], count: int) -> bool:
    """Say whether all index tensors have one shape; rows of a mask (given without nodes) have too."""
    shapes = {str(tuple(g.val(node).shape)) for node in nodes}
    return not nodes or (len(nodes) == count and len(shapes) == 1)


def _common_shape(g: OnnxGraph, names: list[str], nodes: list[fx.Node]) -> str:
    if len(nodes) == len(names):
        sizes = [tuple(g.val(node).shape) for node in nodes]
        if all(isinstance(size, int) for shape in sizes for size in shape):
            return ints(g, np.broadcast_shapes(*sizes))
    total = names[0]
    for name in names[1:]:
        total = g.op("Add", total, name)
    return g.op("Shape", total)


def nonzero_rows(g: OnnxGraph, node: fx.Node) -> list[str]:
    """Return the places of the non-zero elements, one 1-D value a dimension."""
    rank = g.rank(node)
    places = g.op("NonZero", operand(g, node, _nonzero_dtype(g.dtype(node))))
    if rank == 1:
        return [g.op("Squeeze", places, [0])]
    return [g.op("Squeeze", row, [0]) for row in g.ops("Split", places, outputs=rank, axis=0, num_outputs=rank)]


def _nonzero_dtype(dtype: torch.dtype) -> torch.dtype:
    kernels = (torch.bool, torch.float32, torch.int32, torch.int64, torch.uint8)
    return dtype if dtype in kernels else torch.bool


def nonzero(g: OnnxGraph, self: fx.Node) -> str:
    """aten::nonzero(Tensor self) -> Tensor
    aten::argwhere(Tensor self) -> Tensor
    """
    return g.op("Transpose", g.op("NonZero", operand(g, self, _nonzero_dtype(g.dtype(self)))), perm=[1, 0])


def nonzero_numpy(g: OnnxGraph, self: fx.Node) -> tuple[str, ...]:
    """aten::nonzero_numpy(Tensor self) -> Tensor[]
    aten::where(Tensor condition) -> Tensor[]
    """
    return tuple(nonzero_rows(g, self))


def masked_select(g: OnnxGraph, self: fx.Node, mask: fx.Node) -> str:
    """aten::masked_select(Tensor self, Tensor mask) -> Tensor"""
    value, chosen = g.value(self), g.cast(mask, torch.bool)
    if str(tuple(g.val(self).shape)) != str(tuple(g.val(mask).shape)):
        value = g.op("Expand", value, g.op("Shape", chosen))
        chosen = g.op("Expand", chosen, g.op("Shape", value))
    return g.op("Compress", g.op("Reshape", value, [-1]), g.op("Reshape", chosen, [-1]), axis=0)


def gather(g: OnnxGraph, self: fx.Node, dim: int, index: fx.Node, sparse_grad: bool) -> str:
    """aten::gather(Tensor self, int dim, Tensor index, *, bool sparse_grad=False) -> Tensor"""
    if g.rank(self) == 0:
        return g.op("Expand", self, g.shape_of(index))
    if g.rank(index) == 0:
        return g.op("Gather", self, index, axis=dim)
    return g.op("GatherElements", self, index, axis=dim)


def index_select(g: OnnxGraph, self: fx.Node, dim: int, index: fx.Node) -> str:
    """aten::index_select(Tensor self, int dim, Tensor index) -> Tensor"""
    if g.rank(self) == 0:
        return g.value(self)
    places = unsqueeze(g, index, 0) if g.rank(index) == 0 else index
    return g.op("Gather", self, places, axis=dim)


def embedding(g: OnnxGraph, weight: fx.Node, indices: fx.Node, *options: Any) -> str:
    """aten::embedding(Tensor weight, Tensor indices, SymInt padding_idx=-1, bool scale_grad_by_freq=False, bool sparse=False) -> Tensor"""  # noqa: E501
    return g.op("Gather", weight, indices)


def take(g: OnnxGraph, self: fx.Node, index: fx.Node) -> str:
    """aten::take(Tensor self, Tensor index) -> Tensor"""
    return g.op("Gather", g.op("Reshape", self, [-1]), index)


def take_along_dim(g: OnnxGraph, self: fx.Node, indices: fx.Node, dim: int | None) -> str:
    """aten::take_along_dim(Tensor self, Tensor indices, int? dim=None) -> Tensor"""
    if dim is None:
        return g.op("Gather", g.op("Reshape", self, [-1]), g.op("Reshape", indices, [-1]))
    rank = g.rank(self)
    dim %= rank
    shapes = [g.val(node).shape for node in (self, indices)]
    if all(str(a) == str(b) for i, (a, b) in enumerate(zip(*shapes, strict=True)) if i != dim):
        return g.op("GatherElements", self, indices, axis=dim)
    sources = [self, indices]
    values = []
    for node, shape in zip(sources, shapes, strict=True):
        sizes = [shape[i] if i == dim else size for i, size in enumerate(g.val().shape)]
        values.append(g.op("Expand", node, shape_value(g, sizes, sources)))
    return g.op("GatherElements", *values, axis=dim)


def one_hot(g: OnnxGraph, self: fx.Node, num_classes: int) -> str:
    """aten::one_hot(Tensor self, int num_classes=-1) -> Tensor"""
    count = g.val().shape[-1] if num_classes < 0 else num_classes
    return g.op("OneHot", self, g.constant(int(count)), [0, 1], axis=-1)


def bucketize(g: OnnxGraph, self: Any, boundaries: fx.Node, out_int32: bool, right: bool) -> str:
    """aten::bucketize.Tensor(Tensor self, Tensor boundaries, *, bool out_int32=False, bool right=False) -> Tensor"""
    return _count_below(g, self, boundaries, right)


def searchsorted(
    g: OnnxGraph, sorted_sequence: fx.Node, self: fx.Node, out_int32: bool, right: bool, side: Any, sorter: Any
) -> str:
    """aten::searchsorted.Tensor(Tensor sorted_sequence, Tensor self, *, bool out_int32=False, bool right=False, str? side=None, Tensor? sorter=None) -> Tensor"""  # noqa: E501
    if sorter is not None:
        return delegate_one(g)
    return _count_below(g, self, sorted_sequence, right or side == "right")


def _count_below(g: OnnxGraph, value: fx.Node, boundaries: fx.Node, right: bool) -> str:
    """Count the boundaries below each value, with `right` also those equal to it."""
    dtype = common_dtype(g, value, boundaries)
    limits = operand(g, boundaries, dtype)
    if g.rank(boundaries) > 1:
        limits = unsqueeze(g, limits, -2)
    below = g.op("LessOrEqual" if right else "Less", limits, unsqueeze(g, operand(g, value, dtype), -1))
    return reduced(g, "ReduceSum", g.cast(below, g.dtype(), torch.bool), [-1], False, g.dtype())


RULES: dict[Any, Rule] = {
    aten.index.Tensor: index_tensor,
    aten._unsafe_index.Tensor: index_tensor,
    aten.nonzero.default: nonzero,
    aten.argwhere.default: nonzero,
    aten.nonzero_numpy.default: nonzero_numpy,
    aten.where.default: nonzero_numpy,
    aten.masked_select.default: masked_select,
    aten.gather.default: gather,
    aten.index_select.default: index_select,
    aten.embedding.default: embedding,
    aten.take.default: take,
    aten.take_along_dim.default: take_along_dim,
    aten.one_hot.default: one_hot,
    aten.bucketize.Tensor: bucketize,
    aten.searchsorted.Tensor: searchsorted,
}
