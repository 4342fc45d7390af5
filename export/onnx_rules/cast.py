"""Conversions between dtypes; devices and layouts have no meaning in ONNX."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.onnx_rules.elementwise import table
from fxopt.export.onnx_rules.shapes import same_shape, shape_value

aten = torch.ops.aten

CASTS = [
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
    aten._to_copy.default,
]


def cast(_: None) -> Rule:
    """Make the rule of an op that only changes the dtype, to that of its result."""
    return lambda g, self, *options: g.cast(self, g.dtype())


def copy(g: OnnxGraph, self: fx.Node, src: fx.Node, non_blocking: bool) -> str:
    """aten::copy(Tensor self, Tensor src, bool non_blocking=False) -> Tensor"""
    value = g.cast(src, g.dtype())
    if same_shape(g.val(self), g.val(src)):
        return value
    return g.op("Expand", value, shape_value(g, g.val().shape, [self]))


RULES: dict[Any, Rule] = {**table(dict.fromkeys(CASTS), cast), aten.copy.default: copy}
