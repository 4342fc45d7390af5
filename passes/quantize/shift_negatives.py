"""ShiftNegatives: what swish-like ops leave just below zero moves above it, so that no bit is spent on a sign.

    W f(x) + b = W (f(x) + s) + (b - s sum W),    s = -min f

Zero padding in between becomes padding with s. (Habi et al. 2021, "HPTQ: Hardware-Friendly Post Training
Quantization", shift negative correction.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from fxopt.data import samples_of
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument
from fxopt.passes.cleanup.layers import (
    PADDED_BY_NAME,
    Layer,
    explicit_padding,
    layer_at,
    scale_inputs,
    set_arguments,
    write,
)
from fxopt.passes.quantize.channel_paths import owns_tensors
from fxopt.passes.quantize.improve import improve
from fxopt.passes.quantize.quantize import Quantize
from fxopt.passes.quantize.scheme import FIXED_POINT, Scheme

aten = torch.ops.aten
SAMPLES, AT_ONCE = 16, 4  # that the outputs' noise is measured on


def _gelu(node: fx.Node) -> float:
    return 0.17005 if argument(node, "approximate") == "tanh" else 0.16998


def _elu(node: fx.Node) -> float:
    return max(0.0, float(argument(node, "alpha") * argument(node, "scale")))


# How far below zero the results of an op reach, rounded up in the last digit; for all inputs there can be.
DEPTHS: dict[Any, Callable[[fx.Node], float]] = {
    aten.silu.default: lambda node: 0.27847,
    aten.hardswish.default: lambda node: 0.375,
    aten.mish.default: lambda node: 0.30885,
    aten.gelu.default: _gelu,
    aten.elu.default: _elu,
}


@dataclass(frozen=True)
class ShiftNegatives:
    """Shift the results of silu, hardswish, mish, gelu and elu above zero, before InsertObservers.

    - `data`: any iterable of items like the example inputs; the shift stays only if it takes noise out of the outputs
      of its first samples, quantized under `scheme` for `target`. None: it stays.

    It is for schemes that are symmetric, where a value with negative parts takes signed integers: nearly half of those
    stand for numbers that never come. An affine scheme has a zero point for that. Shifted are results that only linears
    and convolutions with weights of their own read. The float outputs stay the same, up to rounding. Raises DataError
    for data that is empty, does not fit, or holds NaN or infinity.
    """

    data: Iterable[Any] | None = field(default=None, repr=False)
    scheme: Scheme = FIXED_POINT
    target: str = "x86"

    def __call__(self, program: Program) -> Program:
        """Return the shifted Program, or `program` itself if there is nothing to shift or it does not help."""
        if self.data is None:
            return self._shifted(program)
        items = samples_of(self.data, program, SAMPLES, AT_ONCE)
        trial = Quantize(items, self.target, scheme=self.scheme).calibrated
        return improve(program, (replace(self, data=None),), trial, items)

    def _shifted(self, program: Program) -> Program:
        found = [node for node in program.graph.nodes if node.target in DEPTHS and _readers(program.module, node)]
        if not found:
            return program
        edit = Edit(program, by=self)
        for node in found:
            _shift(edit, edit.copies[node])
        return edit.finish()


def _readers(module: torch.nn.Module, value: fx.Node) -> list[Layer]:
    """Return the layers that read a value, once each, if nothing else does and all can take a shift; else none."""
    found = [layer_at(module, user) for user in value.users]
    layers = [layer for layer in found if layer is not None and _can_take(layer, value)]
    return layers if len(layers) == len(found) else []


def _can_take(layer: Layer, value: fx.Node) -> bool:
    node = layer.node
    if layer.kind.transposed or node.args[0] is not value or not owns_tensors(layer):
        return False
    return not layer.kind.spatial or explicit_padding(node) is not None


def _shift(edit: Edit, node: fx.Node) -> None:
    depth = DEPTHS[node.target](node)
    readers = _readers(edit.module, node)
    moved = edit.call(aten.add.Tensor, node, depth, before=node.next, name=f"{node.name}_shifted")
    for layer in readers:
        one, shift = torch.ones((), dtype=torch.float64), torch.full((), -depth, dtype=torch.float64)
        _, bias = scale_inputs(layer, one, shift)
        write(edit, layer, layer.weight.detach(), bias)
        layer.node.replace_input_with(node, _padded(edit, layer, moved, depth))


def _padded(edit: Edit, layer: Layer, value: fx.Node, fill: float) -> fx.Node:
    """Pad a value as a convolution would, but with another number than zero."""
    node, spatial = layer.node, layer.kind.spatial
    padding = explicit_padding(node) if spatial else None
    if not padding or not any(padding):
        return value
    node.target = PADDED_BY_NAME.get(node.target, node.target)
    set_arguments(node, padding=[0] * spatial)
    amounts = [amount for one in reversed(padding) for amount in (one, one)]
    return edit.call(aten.pad.default, value, amounts, "constant", fill, before=node, name=f"{value.name}_padded")
