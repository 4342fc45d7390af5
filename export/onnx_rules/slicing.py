"""Parts of tensors and tensors from parts: slice, select, split, concatenate, repeat, roll."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.delegate import delegate_one
from fxopt.export.onnx_rules.operands import kernel_dtype, operand
from fxopt.export.onnx_rules.shapes import (
    TO_THE_END,
    cut,
    front_order,
    ints,
    is_static,
    joined,
    move_dims,
    same_shape,
    shape_value,
    size_of,
    unsqueeze,
)

aten = torch.ops.aten


def slice_tensor(g: OnnxGraph, self: fx.Node, dim: int, start: Any, end: Any, step: int) -> str:
    """aten::slice.Tensor(Tensor(a) self, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1) -> Tensor(a)"""  # noqa: E501
    if step == 1 and same_shape(g.val(self), g.val()):
        return g.value(self)
    return cut(g, self, dim, 0 if start is None else start, TO_THE_END if end is None else end, step)


def narrow(g: OnnxGraph, self: fx.Node, dim: int, start: Any, length: Any) -> str:
    """aten::narrow(Tensor(a) self, int dim, SymInt start, SymInt length) -> Tensor(a)"""
    if same_shape(g.val(self), g.val()):
        return g.value(self)
    if isinstance(start, int) and isinstance(length, int):
        return cut(g, self, dim, start, start + length if start >= 0 or start + length < 0 else TO_THE_END)
    bounds = [ints(g, [bound]) if isinstance(bound, int) else g.value(bound) for bound in (start, length)]
    if isinstance(start, int) and start < 0:
        bounds[0] = g.op("Add", size_of(g, self, dim), bounds[0])
    return cut(g, self, dim, bounds[0], g.op("Add", *bounds))


def select(g: OnnxGraph, self: fx.Node, dim: int, index: Any) -> str:
    """aten::select.int(Tensor(a) self, int dim, SymInt index) -> Tensor(a)"""
    return g.op("Gather", self, g.scalar(index), axis=dim)


def parts(g: OnnxGraph, node: fx.Node, dim: int, sizes: Sequence[Any] | None) -> tuple[str, ...]:
    """Split along a dimension into parts of the given sizes (ints and nodes), or into equal ones but for the last."""
    count = len(g.val())
    if count == 1:
        return (g.value(node),)
    if sizes is None:
        return g.ops("Split", node, outputs=count, axis=dim, num_outputs=count)
    return g.ops("Split", node, g.sizes(sizes), outputs=count, axis=dim)


def split(g: OnnxGraph, self: fx.Node, split_size: Any, dim: int) -> tuple[str, ...]:
    """aten::split.Tensor(Tensor(a -> *) self, SymInt split_size, int dim=0) -> Tensor(a)[]
    aten::unsafe_split.Tensor(Tensor self, SymInt split_size, int dim=0) -> Tensor[]
    """
    sizes = [part.shape[dim] for part in g.val()]
    if is_static(sizes) or len(sizes) == 1:
        return parts(g, self, dim, sizes)
    starts = [
        split_size * i if isinstance(split_size, int) else g.op("Mul", split_size, ints(g, [i]))
        for i in range(len(sizes))
    ]
    return tuple(cut(g, self, dim, *bounds) for bounds in zip(starts, [*starts[1:], TO_THE_END], strict=True))


def split_with_sizes(g: OnnxGraph, self: fx.Node, split_sizes: list[Any], dim: int) -> tuple[str, ...]:
    """aten::split_with_sizes(Tensor(a -> *) self, SymInt[] split_sizes, int dim=0) -> Tensor(a)[]
    aten::split.sizes(Tensor(a -> *) self, SymInt[] split_size, int dim=0) -> Tensor(a)[]
    """
    return parts(g, self, dim, split_sizes)


def chunk(g: OnnxGraph, self: fx.Node, chunks: int, dim: int) -> tuple[str, ...]:
    """aten::chunk(Tensor(a -> *) self, int chunks, int dim=0) -> Tensor(a)[]
    aten::unsafe_chunk(Tensor self, int chunks, int dim=0) -> Tensor[]
    """
    sizes = [part.shape[dim] for part in g.val()]
    return parts(g, self, dim, sizes if is_static(sizes) else None)


def tensor_split(g: OnnxGraph, self: fx.Node, indices: Any, dim: int) -> tuple[str, ...]:
    """aten::tensor_split.sections(Tensor(a -> *) self, SymInt sections, int dim=0) -> Tensor(a)[]
    aten::tensor_split.indices(Tensor(a -> *) self, SymInt[] indices, int dim=0) -> Tensor(a)[]
    """
    sizes = [part.shape[dim] for part in g.val()]
    if is_static(sizes):
        return parts(g, self, dim, sizes)
    starts = [0, *(indices if isinstance(indices, (list, tuple)) else _section_starts(g, self, dim, len(sizes)))]
    return tuple(cut(g, self, dim, *bounds) for bounds in zip(starts, [*starts[1:], TO_THE_END], strict=True))


def _section_starts(g: OnnxGraph, node: fx.Node, dim: int, count: int) -> list[str]:
    """Return where all sections but the first begin; the first ones have one element more where it does not divide."""
    size = size_of(g, node, dim)
    least, longer = g.op("Div", size, [count]), g.op("Mod", size, [count])
    return [g.op("Add", g.op("Mul", least, [i]), g.op("Min", longer, [i])) for i in range(1, count)]


def unbind(g: OnnxGraph, self: fx.Node, dim: int) -> tuple[str, ...]:
    """aten::unbind.int(Tensor(a -> *) self, int dim=0) -> Tensor(a)[]"""
    return tuple(g.op("Gather", self, g.constant(index), axis=dim) for index in range(len(g.val())))


def cat(g: OnnxGraph, tensors: list[fx.Node], dim: int) -> str:
    """aten::cat(Tensor[] tensors, int dim=0) -> Tensor
    aten::concat(Tensor[] tensors, int dim=0) -> Tensor
    aten::concatenate(Tensor[] tensors, int dim=0) -> Tensor
    """
    # torch lets an empty 1-D tensor be joined with tensors of any rank.
    kept = [node for node in tensors if g.rank(node) == g.rank() and str(g.val(node).shape[dim]) != "0"]
    values = [g.cast(node, g.dtype()) for node in kept or tensors[:1]]
    return values[0] if len(values) == 1 else g.op("Concat", *values, axis=dim)


def stack(g: OnnxGraph, tensors: list[fx.Node], dim: int) -> str:
    """aten::stack(Tensor[] tensors, int dim=0) -> Tensor"""
    rows = [unsqueeze(g, g.cast(node, g.dtype()), dim % g.rank()) for node in tensors]
    return rows[0] if len(rows) == 1 else g.op("Concat", *rows, axis=dim)


def repeat(g: OnnxGraph, self: fx.Node, repeats: list[Any]) -> str:
    """aten::repeat(Tensor self, SymInt[] repeats) -> Tensor
    aten::tile(Tensor self, SymInt[] dims) -> Tensor
    """
    missing = len(repeats) - g.rank(self)
    value = unsqueeze(g, self, *range(missing)) if missing > 0 else g.value(self)
    counts = [1] * max(-missing, 0) + list(repeats)
    return value if all(isinstance(n, int) and n == 1 for n in counts) else g.op("Tile", value, g.sizes(counts))


def repeat_interleave(g: OnnxGraph, self: fx.Node, repeats: Any, dim: int | None, output_size: Any) -> str:
    """aten::repeat_interleave.self_int(Tensor self, SymInt repeats, int? dim=None, *, SymInt? output_size=None) -> Tensor"""  # noqa: E501
    rank = g.rank(self)
    if dim is None or rank == 0:
        pairs = g.op("Expand", g.op("Reshape", self, [-1, 1]), g.sizes([1, repeats]))
        return g.op("Reshape", pairs, [-1])
    axis = dim % rank + 1
    copies = g.op("Expand", unsqueeze(g, self, axis), g.sizes([*[1] * axis, repeats, *[1] * (rank - axis)]))
    head, tail = [*[0] * (axis - 1), -1], g.val(self).shape[axis:]
    if is_static(tail):
        return g.op("Reshape", copies, ints(g, [*head, *tail]))
    return g.op("Reshape", copies, joined(g, [ints(g, head), g.op("Shape", self, start=axis)]))


def roll(g: OnnxGraph, self: fx.Node, shifts: Any, dims: Any) -> str:
    """aten::roll(Tensor self, SymInt[1] shifts, int[1] dims=[]) -> Tensor"""
    shifts = shifts if isinstance(shifts, (list, tuple)) else [shifts]
    dims = [dims] if isinstance(dims, int) else dims
    if not dims:
        flat = g.op("Reshape", self, [-1])
        sizes = g.val(self).shape
        size = int(np.prod([int(s) for s in sizes])) if is_static(sizes) else None
        return g.op("Reshape", _roll(g, flat, shifts[0], 0, size, g.op("Size", self)), g.shape_of(self))
    value = g.value(self)
    for shift, dim in zip(shifts, dims, strict=True):
        size = g.val(self).shape[dim]
        known = size if isinstance(size, int) else None
        value = _roll(g, value, shift, dim, known, g.op("Squeeze", size_of(g, self, dim)))
    return value


def _roll(g: OnnxGraph, value: str, shift: Any, dim: int, size: int | None, length: str) -> str:
    """Roll along one dimension of a known size, or of the size in the 0-D value `length`."""
    if size is not None and isinstance(shift, int):
        start = -shift % max(size, 1)
        if start == 0:
            return value
        return g.op("Concat", cut(g, value, dim, start, TO_THE_END), cut(g, value, dim, 0, start), axis=dim)
    places = g.op("Range", g.constant(0), length, g.constant(1))
    return g.op("Gather", value, g.op("Mod", g.op("Sub", places, g.scalar(shift)), length), axis=dim)


def flip(g: OnnxGraph, self: fx.Node, dims: list[int]) -> str:
    """aten::flip(Tensor self, int[] dims) -> Tensor"""
    count = len(dims) if g.rank(self) else 0
    if count == 0:
        return g.value(self)
    return g.op(
        "Slice", self, ints(g, [-1] * count), ints(g, [-TO_THE_END] * count), ints(g, dims), ints(g, [-1] * count)
    )


def rot90(g: OnnxGraph, self: fx.Node, k: int, dims: list[int]) -> str:
    """aten::rot90(Tensor self, int k=1, int[] dims=[0, 1]) -> Tensor"""
    if k % 4 == 0:
        return g.value(self)
    if k % 4 == 2:
        return flip(g, self, dims)
    order = list(range(g.rank(self)))
    order[dims[0]], order[dims[1]] = order[dims[1]], order[dims[0]]
    flipped = dims[0] if k % 4 == 1 else dims[1]
    return cut(g, move_dims(g, self, order), flipped, -1, -TO_THE_END, -1)


def unfold(g: OnnxGraph, self: fx.Node, dimension: int, size: int, step: int) -> str:
    """aten::unfold(Tensor(a) self, int dimension, int size, int step) -> Tensor(a)"""
    rank = g.rank(self)
    if rank == 0:
        return unsqueeze(g, self, 0)
    dim = dimension % rank
    length = g.val(self).shape[dim]
    if isinstance(length, int):
        places = g.constant(np.arange(0, length - size + 1, step)[:, None] + np.arange(size))
    else:
        end = g.op("Sub", g.op("Squeeze", size_of(g, self, dim)), g.constant(size - 1))
        starts = g.op("Range", g.constant(0), end, g.constant(step))
        places = g.op("Add", unsqueeze(g, starts, 1), g.constant(np.arange(size)))
    windows = g.op("Gather", self, places, axis=dim)
    return move_dims(g, windows, [*(d for d in range(rank + 1) if d != dim + 1), dim + 1])


def diagonal(g: OnnxGraph, self: fx.Node, offset: int, dim1: int, dim2: int) -> str:
    """aten::diagonal(Tensor(a) self, int offset=0, int dim1=0, int dim2=1) -> Tensor(a)"""
    flat = flat_diagonal(g, self, offset, dim1, dim2)
    if flat is None:
        return delegate_one(g)
    rows = g.op("Reshape", move_dims(g, self, front_order(g.rank(self), [dim1, dim2])), flat_shape(g, self, dim1, dim2))
    return move_dims(g, g.op("Gather", rows, flat, axis=0), [*range(1, g.rank(self) - 1), 0])


def flat_diagonal(g: OnnxGraph, node: fx.Node, offset: int, dim1: int, dim2: int) -> str | None:
    """List the places of a diagonal in the two dimensions laid out as one; None unless their sizes are known."""
    rows, columns = g.val(node).shape[dim1], g.val(node).shape[dim2]
    if not (isinstance(rows, int) and isinstance(columns, int)):
        return None
    places = np.arange(rows * columns).reshape(rows, columns).diagonal(offset)
    return g.constant(places.astype(np.int64))


def flat_shape(g: OnnxGraph, node: fx.Node, dim1: int, dim2: int) -> str:
    """Return the shape with two dimensions laid out as one, in front of the others."""
    others = [g.val(node).shape[dim] for dim in front_order(g.rank(node), [dim1, dim2])[2:]]
    return shape_value(g, [-1, *others], [node])


def tril(g: OnnxGraph, self: fx.Node, diagonal: Any) -> str:
    """aten::tril(Tensor self, SymInt diagonal=0) -> Tensor"""
    return triangle(g, self, diagonal, upper=0)


def triu(g: OnnxGraph, self: fx.Node, diagonal: Any) -> str:
    """aten::triu(Tensor self, SymInt diagonal=0) -> Tensor"""
    return triangle(g, self, diagonal, upper=1)


def triangle(g: OnnxGraph, node: fx.Node, diagonal: Any, upper: int) -> str:
    """Emit Trilu."""
    inner = kernel_dtype("Trilu", g.dtype())
    offset = None if isinstance(diagonal, int) and diagonal == 0 else g.scalar(diagonal)
    return g.cast(g.op("Trilu", operand(g, node, inner), offset, upper=upper), g.dtype(), inner)


RULES: dict[Any, Rule] = {
    aten.slice.Tensor: slice_tensor,
    aten.narrow.default: narrow,
    aten.select.int: select,
    aten.split.Tensor: split,
    aten.unsafe_split.Tensor: split,
    aten.split_with_sizes.default: split_with_sizes,
    aten.split.sizes: split_with_sizes,
    aten.chunk.default: chunk,
    aten.unsafe_chunk.default: chunk,
    aten.tensor_split.sections: tensor_split,
    aten.tensor_split.indices: tensor_split,
    aten.unbind.int: unbind,
    aten.stack.default: stack,
    aten.cat.default: cat,
    aten.concat.default: cat,
    aten.concatenate.default: cat,
    aten.repeat.default: repeat,
    aten.tile.default: repeat,
    aten.repeat_interleave.self_int: repeat_interleave,
    aten.roll.default: roll,
    aten.flip.default: flip,
    aten.rot90.default: rot90,
    aten.unfold.default: unfold,
    aten.diagonal.default: diagonal,
    aten.tril.default: tril,
    aten.triu.default: triu,
}
