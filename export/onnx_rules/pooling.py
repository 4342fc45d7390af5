"""Pooling with fixed windows, and means.

ONNX and torch disagree on ceil_mode: torch drops a last window that would start in the padding at the end. So the
attribute is not used; the ends are padded by what the last window needs instead (`_end_pads`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule, Value
from fxopt.export.onnx_rules.spatial import batched, is_static, repeat, spatial_rank, spatial_sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class _Window:
    """The geometry of a pooling: `extra` is what ceil_mode adds at the ends, None where onnxruntime has to decide."""

    kernel: list[int]
    strides: list[int]
    pads: list[int]
    dilations: list[int]
    extra: list[int] | None

    def attributes(self) -> dict[str, Any]:
        ends = [pad + more for pad, more in zip(self.pads, self.extra or [0] * len(self.pads), strict=True)]
        return {
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "pads": [*self.pads, *ends],
            "dilations": self.dilations if max(self.dilations) > 1 else None,
            "ceil_mode": 1 if self.extra is None else None,
        }


def _window(
    g: OnnxGraph,
    self: fx.Node,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> _Window:
    spatial = spatial_rank(g)
    kernel = repeat(kernel_size, spatial)
    strides = repeat(stride, spatial) if stride else kernel
    pads, dilations = repeat(padding, spatial), repeat(dilation, spatial)
    extra: list[int] | None = [0] * spatial
    if ceil_mode:
        reaches = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        extra = _end_pads(spatial_sizes(g, self, spatial), reaches, strides, pads)
    return _Window(kernel, strides, pads, dilations, extra)


def _end_pads(sizes: Sequence[Any], reaches: list[int], strides: list[int], pads: list[int]) -> list[int] | None:
    """Return the end padding that makes floor give torch's ceil_mode output; None if that hangs on an unknown size."""
    extra = []
    for size, reach, stride, pad in zip(sizes, reaches, strides, pads, strict=True):
        if isinstance(size, int):
            rest = (size + 2 * pad - reach) % stride
            starts_inside = size + 2 * pad - reach + stride - rest < size + pad
            extra.append(stride - rest if rest and starts_inside else 0)
        elif pad + stride <= reach:  # then the last window always starts inside, and a pad of stride - 1 is enough
            extra.append(stride - 1)
        else:
            return None
    return extra


# --- maximum --------------------------------------------------------------------------------------------------------


def max_pool(
    g: OnnxGraph,
    self: fx.Node,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> str:
    """aten::max_pool1d(Tensor self, int[1] kernel_size, int[1] stride=[], int[1] padding=[0], int[1] dilation=[1], bool ceil_mode=False) -> Tensor
    aten::max_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, bool ceil_mode=False) -> Tensor
    aten::max_pool3d(Tensor self, int[3] kernel_size, int[3] stride=[], int[3] padding=0, int[3] dilation=1, bool ceil_mode=False) -> Tensor
    """  # noqa: E501
    window = _window(g, self, kernel_size, stride, padding, dilation, ceil_mode)

    def emit(x: str) -> str:
        ends = window.attributes()["pads"][len(window.kernel) :]
        if all(end < k for end, k in zip(ends, window.kernel, strict=True)):
            return g.op("MaxPool", x, **window.attributes())
        # onnxruntime refuses so much padding, which only dilated windows need.
        padded = g.op("Pad", x, [0, 0, *window.pads, 0, 0, *ends], _lowest(g))
        none = [0] * len(window.kernel)
        return g.op("MaxPool", padded, **replace(window, pads=none, extra=none).attributes())

    return batched(g, self, len(window.kernel), emit)


def _lowest(g: OnnxGraph) -> str:
    dtype = g.dtype()
    return g.constant(-inf if dtype.is_floating_point else torch.iinfo(dtype).min, dtype)


def max_pool_with_indices(
    g: OnnxGraph,
    self: fx.Node,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
) -> Value:
    """aten::max_pool1d_with_indices(Tensor self, int[1] kernel_size, int[1] stride=[], int[1] padding=[0], int[1] dilation=[1], bool ceil_mode=False) -> (Tensor, Tensor)
    aten::max_pool2d_with_indices(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1, bool ceil_mode=False) -> (Tensor, Tensor)
    aten::max_pool3d_with_indices(Tensor self, int[3] kernel_size, int[3] stride=[], int[3] padding=0, int[3] dilation=1, bool ceil_mode=False) -> (Tensor, Tensor)
    """  # noqa: E501
    if not _reads_indices(g):
        return max_pool(g, self, kernel_size, stride, padding, dilation, ceil_mode), ""
    window = _window(g, self, kernel_size, stride, padding, dilation, ceil_mode)
    return _with_indices(g, self, window)


def _reads_indices(g: OnnxGraph) -> bool:
    return any(user.args[1:] == (1,) for user in g.node.users)


def _with_indices(g: OnnxGraph, self: fx.Node, window: _Window) -> Value:
    """Emit the maxima and where they are: ONNX counts through the whole tensor, torch through one channel."""
    spatial = len(window.kernel)
    unbatched = g.rank(self) == spatial + 1
    source = g.op("Unsqueeze", self, [0]) if unbatched else g.value(self)
    values, places = g.ops("MaxPool", source, outputs=2, **window.attributes())
    sizes = spatial_sizes(g, self, spatial)
    plane = [prod(sizes)] if is_static(sizes) else g.op("ReduceProd", g.op("Shape", source, start=2), [0], keepdims=1)
    indices = g.op("Mod", places, plane)
    if unbatched:
        return g.op("Squeeze", values, [0]), g.op("Squeeze", indices, [0])
    return values, indices


# --- average --------------------------------------------------------------------------------------------------------


def avg_pool(
    g: OnnxGraph,
    self: fx.Node,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None = None,
) -> str:
    """aten::avg_pool1d(Tensor self, int[1] kernel_size, int[1] stride=[], int[1] padding=[0], bool ceil_mode=False, bool count_include_pad=True) -> Tensor
    aten::avg_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor
    aten::avg_pool3d(Tensor self, int[3] kernel_size, int[3] stride=[], int[3] padding=0, bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor
    """  # noqa: E501
    window = _window(g, self, kernel_size, stride, padding, [1], ceil_mode)

    def emit(x: str) -> str:
        if divisor_override is not None:
            mean = g.op("AveragePool", x, count_include_pad=1, **window.attributes())
            return g.op("Mul", mean, g.constant(prod(window.kernel) / divisor_override, g.dtype()))
        if count_include_pad and any(window.pads) and window.extra != [0] * len(window.kernel):
            # torch counts its own padding, but not what ceil_mode adds: make the former part of the input.
            pads = [0, 0, *window.pads] * 2
            padded = g.op("Pad", x, pads, g.constant(0, g.dtype()))
            inner = replace(window, pads=[0] * len(window.pads))
            return g.op("AveragePool", padded, count_include_pad=0, **inner.attributes())
        return g.op(
            "AveragePool", x, count_include_pad=int(count_include_pad and any(window.pads)), **window.attributes()
        )

    return batched(g, self, len(window.kernel), emit)


def mean_dim(g: OnnxGraph, self: fx.Node, dim: list[int] | None, keepdim: bool, dtype: Any) -> str:
    """aten::mean.dim(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    rank = g.rank(self)
    axes = sorted(axis % rank for axis in dim or range(rank)) if rank else []
    source = g.cast(self, g.dtype())
    if rank < 4 or axes != list(range(2, rank)):
        return g.op("ReduceMean", source, axes or None, keepdims=int(keepdim))
    pooled = g.op("GlobalAveragePool", source)
    return pooled if keepdim else g.reshape(pooled, g.val(self), g.val())


def mean(g: OnnxGraph, self: fx.Node, dtype: Any) -> str:
    """aten::mean(Tensor self, *, ScalarType? dtype=None) -> Tensor"""
    return g.op("ReduceMean", g.cast(self, g.dtype()), keepdims=0)


RULES: dict[Any, Rule] = {
    aten.max_pool1d.default: max_pool,
    aten.max_pool2d.default: max_pool,
    aten.max_pool3d.default: max_pool,
    aten.max_pool1d_with_indices.default: max_pool_with_indices,
    aten.max_pool2d_with_indices.default: max_pool_with_indices,
    aten.max_pool3d_with_indices.default: max_pool_with_indices,
    aten.avg_pool1d.default: avg_pool,
    aten.avg_pool2d.default: avg_pool,
    aten.avg_pool3d.default: avg_pool,
    aten.mean.dim: mean_dim,
    aten.mean.default: mean,
}
