"""Activations without an integer kernel, spelled with ops that have one, where they stand between integer values.

    silu(x)        = x · sigmoid(x)
    hardsigmoid(x) = relu6(x + 3) / 6: adding 3 into the range [0, 6] saturates as relu6 does, and reading the result
                     with a sixth of the scale divides by 6
    hardswish(x)   = x · hardsigmoid(x)

The scales of the inner values follow from the functions: nothing is calibrated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.quantized import is_dequantized
from fxopt.graph.rewrite import Edit, argument
from fxopt.target import Target

aten = torch.ops.aten

# 255 steps reach 6, and a little more: with 6 / 255 the sum 0 + 3 would lie halfway between two steps, where kernels
# round differently, and zero is the most frequent value there is.
SIX_STEP = 6 / 254.9


def expand_activations(edit: Edit, target: Target) -> None:
    """Spell every silu, hardsigmoid and hardswish between dequantize and quantize with integer ops."""
    for node in edit.calls(*EXPANSIONS):
        if is_dequantized(node.args[0]) and node.users and all(user.target is quantize for user in node.users):
            EXPANSIONS[node.target](edit, node, target)


def _silu(edit: Edit, node: fx.Node, target: Target) -> None:
    x = node.args[0]
    gate = edit.call(aten.sigmoid.default, x, before=node, name=f"{node.name}_sigmoid")
    scale, zero_point = _parameters(edit, node, "unit", 1 / 256, target)
    _become(node, aten.mul.Tensor, x, _requantized(edit, node, gate, scale, scale, zero_point, target))


def _hardswish(edit: Edit, node: fx.Node, target: Target) -> None:
    x = node.args[0]
    shifted = edit.call(aten.add.Tensor, x, _three(edit, node, target), before=node, name=f"{node.name}_shifted")
    six, zero_point = _parameters(edit, node, "six", SIX_STEP, target)
    one, _ = _parameters(edit, node, "one", SIX_STEP / 6, target)
    _become(node, aten.mul.Tensor, x, _requantized(edit, node, shifted, six, one, zero_point, target))


def _hardsigmoid(edit: Edit, node: fx.Node, target: Target) -> None:
    quantizers = list(node.users)
    scales = {user.args[1] for user in quantizers}
    readers = {reader for user in quantizers for reader in user.users}
    if len(quantizers) != 1 or any(set(scale.users) - readers - set(quantizers) for scale in scales):  # type: ignore[union-attr]
        return  # other values share the scale: it is not ours to choose
    (quantizer,) = quantizers
    lowest, highest = argument(quantizer, "quant_min"), argument(quantizer, "quant_max")
    step = 6 / (highest - lowest - 0.1)
    six, zero_point = _parameters(edit, node, "six", step, target, lowest)
    one, _ = _parameters(edit, node, "one", step / 6, target, lowest)
    _become(node, aten.add.Tensor, node.args[0], _three(edit, node, target))
    quantizer.args = (node, six, zero_point, *quantizer.args[3:])
    for reader in readers:
        reader.args = (quantizer, one, zero_point, *reader.args[3:])


def _requantized(
    edit: Edit, node: fx.Node, value: fx.Node, scale: fx.Node, read_scale: fx.Node, zero_point: fx.Node, target: Target
) -> fx.Node:
    info = torch.iinfo(target.activation)
    q = edit.call(
        quantize, value, scale, zero_point, None, info.min, info.max, target.activation,
        before=node, name=f"{value.name}_quantized",
    )  # fmt: skip
    return edit.call(dequantize, q, read_scale, zero_point, None, before=node, name=f"{value.name}_dequantized")


def _parameters(
    edit: Edit, node: fx.Node, name: str, scale: float, target: Target, lowest: int | None = None
) -> tuple[fx.Node, fx.Node]:
    """Return scale and zero point of values from 0 upwards, whose smallest integer is `lowest`."""
    zero = torch.tensor(torch.iinfo(target.activation).min if lowest is None else lowest, dtype=target.activation)
    return (
        edit.add_constant(f"{node.name}_{name}_scale", torch.tensor(scale, dtype=torch.float32), before=node),
        edit.add_constant(f"{node.name}_{name}_zero_point", zero, before=node),
    )


def _three(edit: Edit, node: fx.Node, target: Target) -> fx.Node:
    """Return the constant 3, of the rank of the node's value, as an integer step of 3."""
    rank = node.meta["val"].ndim
    scale = edit.add_constant(f"{node.name}_three_scale", torch.tensor(3.0), before=node)
    zero_point = edit.add_constant(
        f"{node.name}_three_zero_point", torch.tensor(0, dtype=target.activation), before=node
    )
    one = edit.add_constant(f"{node.name}_three", torch.ones([1] * rank, dtype=target.activation), before=node)
    return edit.call(dequantize, one, scale, zero_point, None, before=node, name=f"{node.name}_three_dequantized")


def _become(node: fx.Node, op: Any, *args: Any) -> None:
    """Let a node call another op with a result of the same shape; it keeps its name and place."""
    node.target = op
    node.args, node.kwargs = args, {}


EXPANSIONS: dict[Any, Callable[[Edit, fx.Node, Target], None]] = {
    aten.silu.default: _silu,
    aten.hardswish.default: _hardswish,
    aten.hardsigmoid.default: _hardsigmoid,
}
