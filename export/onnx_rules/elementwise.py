"""Elementwise arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule

aten = torch.ops.aten


def relu(g: OnnxGraph, self: fx.Node) -> str:
    """aten::relu(Tensor self) -> Tensor"""
    return g.op("Relu", self)


def add_tensor(g: OnnxGraph, self: fx.Node, other: fx.Node, alpha: float) -> str:
    """aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    right = g.cast(other, g.dtype())
    if alpha != 1:
        right = g.op("Mul", right, g.constant(alpha, g.dtype()))
    return g.op("Add", g.cast(self, g.dtype()), right)


RULES: dict[Any, Rule] = {
    aten.relu.default: relu,
    aten.add.Tensor: add_tensor,
}
