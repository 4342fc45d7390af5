"""What the rules over spatial dimensions (convolutions, pooling, resizing) share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from fxopt.export.builder import OnnxGraph


def repeat(value: Sequence[int] | int, count: int) -> list[int]:
    """Spell out an argument that torch allows to give once for all dimensions."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def batched(g: OnnxGraph, input: fx.Node, spatial: int, emit: Callable[[str], str]) -> str:
    """Emit what ONNX defines for (batch, channels, *spatial) also for an input without the batch dimension."""
    if g.rank(input) == spatial + 2:
        return emit(g.value(input))
    return g.op("Squeeze", emit(g.op("Unsqueeze", input, [0])), [0])


def spatial_sizes(g: OnnxGraph, input: fx.Node, spatial: int) -> list[Any]:
    """Return the last `spatial` sizes of a tensor, ints or symbolic."""
    return list(g.val(input).shape[-spatial:])


def is_static(sizes: Sequence[Any]) -> bool:
    """Say whether all sizes are plain ints."""
    return all(isinstance(size, int) for size in sizes)


def restore_shape(g: OnnxGraph, value: str, like: fx.Node) -> str:
    """Reshape a value to the shape of a tensor node; dimension 0 must be the same already."""
    shape = list(g.val(like).shape)
    unknown = [size for size in shape[1:] if not isinstance(size, int)]
    if len(unknown) > 1 or 0 in shape:
        return g.op("Reshape", value, g.shape_of(like))
    first = [shape[0] if isinstance(shape[0], int) else 0]
    return g.op("Reshape", value, first + [size if isinstance(size, int) else -1 for size in shape[1:]])


def per_channel(g: OnnxGraph, parameter: fx.Node, rank: int) -> str:
    """Shape a (channels,) parameter so that it broadcasts over a tensor (batch, channels, ...) of this rank."""
    shape = [-1] + [1] * max(rank - 2, 0)
    tensor = g.tensor(parameter)
    if tensor is None:
        return g.op("Reshape", parameter, shape)
    return g.constant(tensor.reshape(shape), name=str(parameter.target))


def spatial_rank(g: OnnxGraph) -> int:
    """Return N of the op being emitted, whose name has the form ...Nd."""
    return next(int(character) for character in str(g.node.target) if character.isdigit())


def multiply_along(g: OnnxGraph, x: str, dim: int, matrix: str, rank: int) -> str:
    """Multiply each vector along a (negative) dimension of a tensor by a matrix (size before, size after)."""
    if dim == -1:
        return g.op("MatMul", x, matrix)
    order = list(range(rank))
    order[dim], order[-1] = order[-1], order[dim]
    return g.op("Transpose", g.op("MatMul", g.op("Transpose", x, perm=order), matrix), perm=order)
