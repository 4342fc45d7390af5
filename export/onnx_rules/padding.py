"""Padding, sliding windows, and their inverse."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.onnx_rules.spatial import batched, is_static, repeat

aten = torch.ops.aten

ONNX_MODE = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
WRAP_OPSET = 19


def pad(g: OnnxGraph, self: fx.Node, pad: list[Any], mode: str, value: float | None) -> str:
    """aten::pad(Tensor self, SymInt[] pad, str mode="constant", float? value=None) -> Tensor"""
    if all(size == 0 for size in pad if isinstance(size, int)) and is_static(pad):
        return g.value(self)
    if mode == "circular" and g.opset < WRAP_OPSET:
        return _wrap(g, self, pad)
    rank = g.rank(self)
    begins: list[Any] = [0] * rank
    ends: list[Any] = [0] * rank
    for position, size in enumerate(pad):  # torch lists (begin, end) from the last dimension on
        (ends if position % 2 else begins)[rank - 1 - position // 2] = size
    fill = g.constant(value or 0, g.dtype()) if mode == "constant" else None
    return g.op("Pad", self, g.sizes(begins + ends), fill, mode=ONNX_MODE[mode])


def _wrap(g: OnnxGraph, self: fx.Node, pad: list[int]) -> str:
    """Pad circularly by joining slices, dimension by dimension."""
    result = g.value(self)
    for position in range(0, len(pad), 2):
        begin, end = pad[position : position + 2]
        dim = -1 - position // 2
        parts = [result]
        if begin > 0:
            parts.insert(0, g.op("Slice", result, [-begin], [2**31], [dim]))
        if end > 0:
            parts.append(g.op("Slice", result, [0], [end], [dim]))
        result = g.op("Concat", *parts, axis=dim) if len(parts) > 1 else result
    return result


def constant_pad_nd(g: OnnxGraph, self: fx.Node, padding: list[Any], value: float) -> str:
    """aten::constant_pad_nd(Tensor self, SymInt[] pad, Scalar value=0) -> Tensor"""
    return pad(g, self, padding, "constant", value)


def reflection_pad(g: OnnxGraph, self: fx.Node, padding: list[Any]) -> str:
    """aten::reflection_pad1d(Tensor self, SymInt[2] padding) -> Tensor
    aten::reflection_pad2d(Tensor self, SymInt[4] padding) -> Tensor
    aten::reflection_pad3d(Tensor self, SymInt[6] padding) -> Tensor
    """
    return pad(g, self, padding, "reflect", None)


def replication_pad(g: OnnxGraph, self: fx.Node, padding: list[Any]) -> str:
    """aten::replication_pad1d(Tensor self, SymInt[2] padding) -> Tensor
    aten::replication_pad2d(Tensor self, SymInt[4] padding) -> Tensor
    aten::replication_pad3d(Tensor self, SymInt[6] padding) -> Tensor
    """
    return pad(g, self, padding, "replicate", None)


def im2col(
    g: OnnxGraph, self: fx.Node, kernel_size: list[int], dilation: list[int], padding: list[int], stride: list[int]
) -> str:
    """aten::im2col(Tensor self, int[2] kernel_size, int[2] dilation, int[2] padding, int[2] stride) -> Tensor"""
    kernel, channels = repeat(kernel_size, 2), int(g.val(self).shape[-3])
    area = kernel[0] * kernel[1]
    # A convolution with one-hot kernels: onnxruntime runs it faster than any gathering or slicing of the image.
    one_hot = torch.eye(area).reshape(area, 1, *kernel).repeat(channels, 1, 1, 1)
    geometry: dict[str, Any] = {
        "strides": repeat(stride, 2),
        "pads": repeat(padding, 2) * 2,
        "dilations": repeat(dilation, 2),
        "group": channels,
    }

    def emit(x: str) -> str:
        return g.op("Reshape", g.op("Conv", x, g.constant(one_hot, g.dtype()), **geometry), [0, channels * area, -1])

    return batched(g, self, 2, emit)


def col2im(
    g: OnnxGraph,
    self: fx.Node,
    output_size: list[Any],
    kernel_size: list[int],
    dilation: list[int],
    padding: list[int],
    stride: list[int],
) -> str:
    """aten::col2im(Tensor self, SymInt[2] output_size, int[2] kernel_size, int[2] dilation, int[2] padding, int[2] stride) -> Tensor"""  # noqa: E501
    kernel, image = repeat(kernel_size, 2), g.sizes(output_size)
    geometry: dict[str, Any] = {
        "dilations": repeat(dilation, 2),
        "pads": repeat(padding, 2) * 2,
        "strides": repeat(stride, 2),
    }
    return batched(g, self, 1, lambda x: g.op("Col2Im", x, image, kernel, **geometry))


RULES: dict[Any, Rule] = {
    aten.pad.default: pad,
    aten.constant_pad_nd.default: constant_pad_nd,
    aten.reflection_pad1d.default: reflection_pad,
    aten.reflection_pad2d.default: reflection_pad,
    aten.reflection_pad3d.default: reflection_pad,
    aten.replication_pad1d.default: replication_pad,
    aten.replication_pad2d.default: replication_pad,
    aten.replication_pad3d.default: replication_pad,
    aten.im2col.default: im2col,
    aten.col2im.default: col2im,
}
