"""Convolutions and matrix products with weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule

aten = torch.ops.aten


def conv2d(g: OnnxGraph, input: fx.Node, weight: fx.Node, bias: fx.Node | None, stride: list[int], padding: list[int], dilation: list[int], groups: int) -> str:
    """aten::conv2d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1) -> Tensor"""  # noqa: E501
    pads = _repeat(padding, 2)
    return g.op("Conv", input, weight, bias, strides=_repeat(stride, 2), pads=pads * 2, dilations=_repeat(dilation, 2), group=groups)


def linear(g: OnnxGraph, input: fx.Node, weight: fx.Node, bias: fx.Node | None) -> str:
    """aten::linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor"""
    if g.rank(input) == 2:
        return g.op("Gemm", input, weight, bias, transB=1)
    tensor = g.tensor(weight)
    transposed = g.op("Transpose", weight, perm=[1, 0]) if tensor is None else g.constant(tensor.t())
    product = g.op("MatMul", input, transposed)
    return product if bias is None else g.op("Add", product, bias)


def _repeat(value: list[int] | int, count: int) -> list[int]:
    """Spell an argument that torch allows to give once for all dimensions."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


RULES: dict[Any, Rule] = {
    aten.conv2d.default: conv2d,
    aten.linear.default: linear,
}
