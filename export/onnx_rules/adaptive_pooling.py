"""Adaptive pooling: the number of windows is given, and window i covers floor(i n / count) to ceil((i + 1) n / count).

Dimensions are pooled one by one; each takes the cheapest form that its sizes allow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import ExportError, where
from fxopt.export.builder import OnnxGraph, Rule, Value
from fxopt.export.delegate import delegate
from fxopt.export.onnx_rules.spatial import batched, multiply_along, spatial_rank, spatial_sizes

aten = torch.ops.aten


def _window_bounds(size: int, count: int) -> list[tuple[int, int]]:
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _steps(g: OnnxGraph, self: fx.Node) -> tuple[list[Any], list[Any]]:
    """Return the spatial sizes before and after, ints or symbolic."""
    spatial = spatial_rank(g)
    result = g.val()[0] if isinstance(g.val(), tuple) else g.val()
    return spatial_sizes(g, self, spatial), list(result.shape[-spatial:])


def _divides(size: Any, count: Any) -> bool:
    return isinstance(size, int) and isinstance(count, int) and size % count == 0


def _equal(size: Any, count: Any) -> bool:
    return str(size) == str(count)


def adaptive_avg_pool(g: OnnxGraph, self: fx.Node, output_size: list[Any]) -> str:
    """aten::adaptive_avg_pool1d(Tensor self, int[1] output_size) -> Tensor
    aten::adaptive_avg_pool2d(Tensor self, SymInt[2] output_size) -> Tensor
    aten::adaptive_avg_pool3d(Tensor self, SymInt[3] output_size) -> Tensor
    aten::_adaptive_avg_pool2d(Tensor self, SymInt[2] output_size) -> Tensor
    aten::_adaptive_avg_pool3d(Tensor self, SymInt[3] output_size) -> Tensor
    """
    sizes, counts = _steps(g, self)

    def emit(x: str) -> str:
        if all(count == 1 for count in counts):
            return g.op("GlobalAveragePool", x)
        windows = [size // count if _divides(size, count) else 1 for size, count in zip(sizes, counts, strict=True)]
        if any(window > 1 for window in windows):
            x = g.op("AveragePool", x, kernel_shape=windows, strides=windows)
        for dim, (size, count) in enumerate(zip(sizes, counts, strict=True), start=-len(sizes)):
            if not _equal(size, count) and not _divides(size, count):
                x = _average(g, x, dim, size, int(count), len(sizes) + 2)
        return x

    return batched(g, self, len(sizes), emit)


def _average(g: OnnxGraph, x: str, dim: int, size: Any, count: int, rank: int) -> str:
    """Average over windows that overlap or differ in size, along one dimension."""
    if count == 1:
        return g.op("ReduceMean", x, [dim], keepdims=1)
    matrix = (
        g.constant(_averaging_matrix(size, count), g.dtype())
        if isinstance(size, int)
        else _dynamic_matrix(g, x, dim, count)
    )
    return multiply_along(g, x, dim, matrix, rank)


def _averaging_matrix(size: int, count: int) -> Tensor:
    matrix = torch.zeros(size, count)
    for column, (start, end) in enumerate(_window_bounds(size, count)):
        matrix[start:end, column] = 1 / (end - start)
    return matrix


def _dynamic_matrix(g: OnnxGraph, x: str, dim: int, count: int) -> str:
    """Compute the averaging matrix (size, count) for a size that is known at run time only."""
    size = g.op("Squeeze", g.op("Slice", g.op("Shape", x), [dim], [dim + 1] if dim < -1 else [2**31]), [0])
    rows = g.op("Unsqueeze", g.op("Range", g.constant(0), size, g.constant(1)), [1])
    starts = g.op("Div", g.op("Mul", list(range(count)), size), count)
    ends = g.op("Div", g.op("Add", g.op("Mul", list(range(1, count + 1)), size), count - 1), count)
    inside = g.op("And", g.op("GreaterOrEqual", rows, starts), g.op("Less", rows, ends))
    width = g.cast(g.op("Sub", ends, starts), g.dtype())
    return g.op("Div", g.cast(inside, g.dtype()), width)


def adaptive_max_pool(g: OnnxGraph, self: fx.Node, output_size: list[int]) -> Value:
    """aten::adaptive_max_pool1d(Tensor self, int[1] output_size) -> (Tensor, Tensor)
    aten::adaptive_max_pool2d(Tensor self, int[2] output_size) -> (Tensor, Tensor)
    aten::adaptive_max_pool3d(Tensor self, int[3] output_size) -> (Tensor, Tensor)
    """
    if any(user.args[1:] == (1,) for user in g.node.users):
        return delegate(g, g.node)
    sizes, counts = _steps(g, self)

    def emit(x: str) -> str:
        if all(count == 1 for count in counts):
            return g.op("GlobalMaxPool", x)
        windows = [size // count if _divides(size, count) else 1 for size, count in zip(sizes, counts, strict=True)]
        if any(window > 1 for window in windows):
            x = g.op("MaxPool", x, kernel_shape=windows, strides=windows)
        for dim, (size, count) in enumerate(zip(sizes, counts, strict=True), start=-len(sizes)):
            if not _equal(size, count) and not _divides(size, count):
                x = _maximum(g, x, dim, size, int(count))
        return x

    return batched(g, self, len(sizes), emit), ""


def _maximum(g: OnnxGraph, x: str, dim: int, size: Any, count: int) -> str:
    if count == 1:
        return g.op("ReduceMax", x, [dim], keepdims=1)
    if not isinstance(size, int):
        raise ExportError(f"{where(g.node)} has windows whose size is unknown; capture with a fixed image size.")
    windows = [g.op("Slice", x, [start], [end], [dim]) for start, end in _window_bounds(size, count)]
    return g.op("Concat", *[g.op("ReduceMax", window, [dim], keepdims=1) for window in windows], axis=dim)


RULES: dict[Any, Rule] = {
    aten.adaptive_avg_pool1d.default: adaptive_avg_pool,
    aten.adaptive_avg_pool2d.default: adaptive_avg_pool,
    aten.adaptive_avg_pool3d.default: adaptive_avg_pool,
    aten._adaptive_avg_pool2d.default: adaptive_avg_pool,
    aten._adaptive_avg_pool3d.default: adaptive_avg_pool,
    aten.adaptive_max_pool1d.default: adaptive_max_pool,
    aten.adaptive_max_pool2d.default: adaptive_max_pool,
    aten.adaptive_max_pool3d.default: adaptive_max_pool,
}
