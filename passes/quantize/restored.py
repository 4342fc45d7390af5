"""What RestoreBatchNorm makes, found again in the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxopt.graph.batch_norm_factor import batch_norm_factor
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import argument
from fxopt.passes.cleanup.layers import LAYERS

aten = torch.ops.aten


@dataclass(frozen=True)
class Restored:
    """A batch norm that RestoreBatchNorm made, and the nodes before it. `weight`, `bias`: reads of what is stored."""

    norm: fx.Node
    layer: fx.Node
    product: fx.Node
    weight: fx.Node
    bias: fx.Node | None


def restored_at(norm: fx.Node) -> Restored | None:
    """Return what RestoreBatchNorm made that ends at a batch norm, or None for any other norm."""
    value: Any = norm.args[0]
    bias = None
    if _calls(value, aten.add.Tensor):
        value, shift = value.args[:2]
        if not _calls(shift, aten.reshape.default):
            return None
        bias = shift.args[0]
    if not (_calls(value, aten.div.Tensor) and _is_factor(value.args[1]) and value.args[0].target in LAYERS):
        return None
    layer = value.args[0]
    product = argument(layer, "weight").args[0]
    return Restored(norm, layer, product, product.args[0], bias)


def is_weight(value: Any) -> bool:
    """Say whether a value is a stored weight, as it is or times the factor of a restored batch norm."""
    return is_constant(value) or (
        _calls(value, aten.mul.Tensor) and is_constant(value.args[0]) and _is_factor(value.args[1])
    )


def _calls(value: Any, op: Any) -> bool:
    return isinstance(value, fx.Node) and value.target is op


def _is_factor(value: Any) -> bool:
    return _calls(value, aten.reshape.default) and _calls(value.args[0], batch_norm_factor)
