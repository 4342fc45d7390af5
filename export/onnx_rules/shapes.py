"""Shapes as ONNX values: constants where they are static, slices of Shape where they are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor, fx

from fxopt.errors import ExportError, where
from fxopt.export.builder import OnnxGraph

TO_THE_END = 2**63 - 1


def same_size(left: Any, right: Any) -> bool:
    """Say whether two sizes, ints or symbolic integers, are known to be equal."""
    return str(left) == str(right)


def same_shape(left: Tensor, right: Tensor) -> bool:
    """Say whether two fake tensors are known to have the same shape."""
    return len(left.shape) == len(right.shape) and all(map(same_size, left.shape, right.shape))


def is_static(sizes: Iterable[Any]) -> bool:
    """Say whether all sizes are plain ints."""
    return all(isinstance(size, int) for size in sizes)


def ints(g: OnnxGraph, values: Sequence[int]) -> str:
    """Return a 1-D int64 constant."""
    return g.constant(np.array(values, dtype=np.int64))


def size_of(g: OnnxGraph, node: fx.Node, dim: int) -> str:
    """Return the size of one dimension of a tensor node as a 1-D int64 value of one element."""
    dim %= max(g.rank(node), 1)
    size = g.val(node).shape[dim]
    return ints(g, [size]) if isinstance(size, int) else g.op("Shape", node, start=dim, end=dim + 1)


def shape_value(g: OnnxGraph, sizes: Sequence[Any], sources: Sequence[fx.Node]) -> str:
    """Return sizes (ints, symbolic integers, or their nodes) as a 1-D int64 value.

    A symbolic integer is read from the first of the tensors `sources` that has a dimension of that size.
    """
    if is_static(sizes):
        return ints(g, list(sizes))
    for source in sources:
        if same_sizes(g.val(source).shape, sizes):
            return g.op("Shape", source)
    return joined(g, [_one_size(g, size, sources) for size in sizes])


def same_sizes(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Say whether two lists of sizes are known to be equal."""
    return len(left) == len(right) and all(map(same_size, left, right))


def joined(g: OnnxGraph, parts: Sequence[str]) -> str:
    """Concatenate 1-D values."""
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=0)


def _one_size(g: OnnxGraph, size: Any, sources: Sequence[fx.Node]) -> str:
    if isinstance(size, int):
        return ints(g, [size])
    if isinstance(size, fx.Node):
        return g.value(size)
    for source in sources:
        for dim, other in enumerate(g.val(source).shape):
            if same_size(size, other):
                return size_of(g, source, dim)
    raise ExportError(f"{where(g.node)} has the size {size}, which none of its inputs has.")


def reshape(g: OnnxGraph, node: fx.Node, given: Sequence[Any] | None = None) -> str:
    """Reshape `node` to the shape of the node being emitted; `given` are the sizes (ints, -1, nodes) its call has."""
    source, result = g.val(node), g.val()
    moved = [
        size
        for dim, size in enumerate(result.shape)
        if not isinstance(size, int) and not (dim < source.ndim and same_size(size, source.shape[dim]))
    ]
    if given is None and (len(moved) > 1 or 0 in [size for size in result.shape if isinstance(size, int)]):
        given = _sizes_with_one_unknown(g, node, result)
    return g.reshape(node, source, result, given)


def _sizes_with_one_unknown(g: OnnxGraph, node: fx.Node, result: Tensor) -> list[Any]:
    """List sizes as ints and values, the one that is no size of `node` as -1."""
    known = [str(size) for size in g.val(node).shape]
    sizes: list[Any] = list(result.shape)
    for dim, size in enumerate(sizes):
        if not isinstance(size, int):
            sizes[dim] = size_of(g, node, known.index(str(size))) if str(size) in known else -1
    return sizes


def move_dims(g: OnnxGraph, value: Any, order: Sequence[int]) -> str:
    """Transpose, unless `order` keeps all dimensions in place."""
    if list(order) == list(range(len(order))):
        return g.value(value)
    return g.op("Transpose", value, perm=list(order))


def front_order(rank: int, dims: Sequence[int]) -> list[int]:
    """Return the order that brings `dims` to the front and keeps the others as they are."""
    dims = [dim % rank for dim in dims]
    return [*dims, *(dim for dim in range(rank) if dim not in dims)]


def inverse_order(order: Sequence[int]) -> list[int]:
    """Return the order that undoes a transposition."""
    return [list(order).index(dim) for dim in range(len(order))]


def cut(g: OnnxGraph, value: Any, dim: int, start: Any, end: Any, step: int = 1) -> str:
    """Emit Slice along one dimension; bounds are ints, symbolic nodes, or names of 1-D values."""
    bounds = [ints(g, [bound]) if isinstance(bound, int) else bound for bound in (start, end)]
    return g.op("Slice", value, *bounds, ints(g, [dim]), ints(g, [step]) if step != 1 else None)


def unsqueeze(g: OnnxGraph, value: Any, *dims: int) -> str:
    """Emit Unsqueeze."""
    return g.op("Unsqueeze", value, ints(g, dims))


def filled(g: OnnxGraph, shape: str, value: float, dtype: torch.dtype) -> str:
    """Return a tensor of one number, of a shape given as a value."""
    fill = torch.tensor([value], dtype=dtype)
    if dtype is torch.bfloat16:
        return g.op("Expand", g.constant(fill), shape)
    return g.op("ConstantOfShape", shape, value=numpy_helper.from_array(fill.numpy()))
