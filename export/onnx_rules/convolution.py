"""Convolutions and matrix products with weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.onnx_rules.spatial import batched, repeat

aten = torch.ops.aten


def conv(
    g: OnnxGraph,
    input: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: list[int],
    padding: list[int] | str,
    dilation: list[int],
    groups: int,
) -> str:
    """aten::conv1d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[1] stride=[1], SymInt[1] padding=[0], SymInt[1] dilation=[1], SymInt groups=1) -> Tensor
    aten::conv2d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=[1, 1], SymInt[2] padding=[0, 0], SymInt[2] dilation=[1, 1], SymInt groups=1) -> Tensor
    aten::conv3d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[3] stride=[1, 1, 1], SymInt[3] padding=[0, 0, 0], SymInt[3] dilation=[1, 1, 1], SymInt groups=1) -> Tensor
    aten::conv1d.padding(Tensor input, Tensor weight, Tensor? bias=None, SymInt[1] stride=[1], str padding="valid", SymInt[1] dilation=[1], SymInt groups=1) -> Tensor
    aten::conv2d.padding(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=[1, 1], str padding="valid", SymInt[2] dilation=[1, 1], SymInt groups=1) -> Tensor
    aten::conv3d.padding(Tensor input, Tensor weight, Tensor? bias=None, SymInt[3] stride=[1, 1, 1], str padding="valid", SymInt[3] dilation=[1, 1, 1], SymInt groups=1) -> Tensor
    """  # noqa: E501
    kernel = [int(size) for size in g.val(weight).shape[2:]]
    dilations = repeat(dilation, len(kernel))
    pads = _pads(padding, kernel, dilations)
    strides = repeat(stride, len(kernel))

    def emit(x: str) -> str:
        return g.op(
            "Conv", x, weight, bias, kernel_shape=kernel, strides=strides, pads=pads, dilations=dilations, group=groups
        )

    return batched(g, input, len(kernel), emit)


def _pads(padding: list[int] | str, kernel: list[int], dilations: list[int]) -> list[int]:
    """Return ONNX pads: all begins, then all ends. With "same", torch puts the odd one at the end."""
    if padding == "valid":
        return [0] * 2 * len(kernel)
    if isinstance(padding, str):
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        return [total // 2 for total in totals] + [total - total // 2 for total in totals]
    return repeat(padding, len(kernel)) * 2


def conv_transpose(
    g: OnnxGraph,
    input: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
) -> str:
    """aten::conv_transpose1d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[1] stride=[1], SymInt[1] padding=[0], SymInt[1] output_padding=[0], SymInt groups=1, SymInt[1] dilation=[1]) -> Tensor
    aten::conv_transpose2d.input(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=[1, 1], SymInt[2] padding=[0, 0], SymInt[2] output_padding=[0, 0], SymInt groups=1, SymInt[2] dilation=[1, 1]) -> Tensor
    aten::conv_transpose3d.input(Tensor input, Tensor weight, Tensor? bias=None, SymInt[3] stride=[1, 1, 1], SymInt[3] padding=[0, 0, 0], SymInt[3] output_padding=[0, 0, 0], SymInt groups=1, SymInt[3] dilation=[1, 1, 1]) -> Tensor
    """  # noqa: E501
    kernel = [int(size) for size in g.val(weight).shape[2:]]
    strides, pads = repeat(stride, len(kernel)), repeat(padding, len(kernel))
    # Output padding is a smaller padding at the end. Where that becomes negative, the input gets zeros at its end.
    ends = [pad - more for pad, more in zip(pads, repeat(output_padding, len(kernel)), strict=True)]
    zeros = [max(0, -(end // step)) for end, step in zip(ends, strides, strict=True)]
    ends = [end + zero * step for end, zero, step in zip(ends, zeros, strides, strict=True)]
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": strides,
        "pads": [*pads, *ends],
        "dilations": repeat(dilation, len(kernel)),
        "group": groups,
    }

    def emit(x: str) -> str:
        if any(zeros):
            x = g.op("Pad", x, [0] * (4 + len(kernel)) + zeros, g.constant(0, g.dtype()))
        return g.op("ConvTranspose", x, weight, bias, **attributes)

    return batched(g, input, len(kernel), emit)


def convolution(
    g: OnnxGraph,
    input: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> str:
    """aten::convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor"""  # noqa: E501
    if transposed:
        return conv_transpose(g, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(g, input, weight, bias, stride, padding, dilation, groups)


def linear(g: OnnxGraph, input: fx.Node, weight: fx.Node, bias: fx.Node | None) -> str:
    """aten::linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor"""
    if g.rank(input) == 2 and g.rank(weight) == 2:
        return g.op("Gemm", input, weight, bias, transB=1)
    tensor = g.tensor(weight)
    if g.rank(weight) == 1:
        transposed = g.value(weight)
    elif tensor is None:
        transposed = g.op("Transpose", weight, perm=[1, 0])
    else:
        transposed = g.constant(tensor.t(), name=str(weight.target))
    product = g.op("MatMul", input, transposed)
    return product if bias is None else g.op("Add", product, bias)


def bilinear(g: OnnxGraph, input1: fx.Node, input2: fx.Node, weight: fx.Node, bias: fx.Node | None) -> str:
    """aten::bilinear(Tensor input1, Tensor input2, Tensor weight, Tensor? bias=None) -> Tensor"""
    product = g.op("Einsum", input1, weight, input2, equation="...i,kij,...j->...k")
    return product if bias is None else g.op("Add", product, bias)


RULES: dict[Any, Rule] = {
    aten.conv1d.default: conv,
    aten.conv2d.default: conv,
    aten.conv3d.default: conv,
    aten.conv1d.padding: conv,
    aten.conv2d.padding: conv,
    aten.conv3d.padding: conv,
    aten.conv_transpose1d.default: conv_transpose,
    aten.conv_transpose2d.input: conv_transpose,
    aten.conv_transpose3d.input: conv_transpose,
    aten.convolution.default: convolution,
    aten.linear.default: linear,
    aten.bilinear.default: bilinear,
}
