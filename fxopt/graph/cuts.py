"""Cuts: values through which everything passes that was computed so far, such as the ends of residual blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxopt.graph.learned import learned_fake_quantize
from fxopt.graph.ops import fake_quantize, observe
from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument, argument_names

aten = torch.ops.aten
WEIGHTS = frozenset({"weight", "params", "w_ih"})  # as the schemas name them: of layers, recurrent layers and cells
QUANTIZING = frozenset({observe, fake_quantize, learned_fake_quantize})  # ops that keep a value, but for its rounding
# Functions of each element of their first argument: the error that counts is the one behind them.
ACTIVATIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        aten.clamp.default,
        aten.clamp_min.default,
        aten.elu.default,
        aten.gelu.default,
        aten.hardsigmoid.default,
        aten.hardswish.default,
        aten.hardtanh.default,
        aten.leaky_relu.default,
        aten.mish.default,
        aten.relu.default,
        aten.relu6.default,
        aten.sigmoid.default,
        aten.silu.default,
        aten.softplus.default,
        aten.tanh.default,
    }
)


def stage_values(program: Program) -> tuple[fx.Node, ...]:
    """Return the values between the parts of a network: after each, nothing computed before it is read any more.

    One a part that has layers of its own, the last such value of the part. In a residual network these are the ends of
    its blocks, in a chain those of its layers.
    """
    order = list(program.graph.nodes)
    found: dict[int, fx.Node] = {}
    before, layers = 0, 0
    for end, value in cuts(order):
        layers += sum(map(_is_layer, order[before:end]))
        before = end
        if value is not None and layers and value.target not in QUANTIZING:
            found[layers] = value
    return tuple(found.values())


def cuts(order: Sequence[fx.Node]) -> Iterator[tuple[int, fx.Node | None]]:
    """Yield the positions after which at most one value behind weights is still to be read, and that value.

    The cuts of a residual network are the results of its additions, those of a plain chain all its values. Only values
    behind an op with weights count, not masks and the like that are made of the inputs alone. There is no cut between
    a layer and its activation function.
    """
    position = {node: index for index, node in enumerate(order)}
    behind: set[fx.Node] = set()
    last_read: dict[fx.Node, int] = {}
    for index, node in enumerate(order):
        if has_weight(node) or behind.intersection(node.all_input_nodes):
            behind.add(node)
            # An output that nothing else reads does not stand in the way of a cut.
            last_read[node] = max((position[user] for user in node.users if user.op != "output"), default=index)
        live = [value for value in behind if last_read[value] > index]
        if len(live) <= 1 and not any(activation(value) or is_no_tensor(value) for value in live):
            yield index + 1, (live[0] if live else None)


def activation(layer: fx.Node) -> tuple[fx.Node, ...]:
    """Return the activation function that alone reads a value, and the quantization between the two, or nothing."""
    path: list[fx.Node] = []
    value = layer
    while len(value.users) == 1:
        value = next(iter(value.users))
        path.append(value)
        if value.target in ACTIVATIONS:
            return tuple(path)
        if value.target not in QUANTIZING:
            break
    return ()


def has_weight(node: fx.Node) -> bool:
    """Say whether a node is a call of an op with weights."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(parameter.name in WEIGHTS for parameter in schema.arguments)


def count_layers(program: Program) -> int:
    """Count the calls of ops with weights that are no mere scale of each channel."""
    return sum(map(_is_layer, program.graph.nodes))


def _is_layer(node: fx.Node) -> bool:
    """Say whether a node is a call of an op with weights that are no mere scale of each channel."""
    if not has_weight(node):
        return False
    weights = [argument(node, name) for name in argument_names(node) if name in WEIGHTS]
    return any(leaf.meta["val"].ndim > 1 for leaf in pytree.tree_leaves(weights) if isinstance(leaf, fx.Node))


def is_no_tensor(value: fx.Node) -> bool:
    """Say whether a value is anything but a floating-point tensor."""
    return not isinstance(value.meta["val"], Tensor) or not value.meta["val"].is_floating_point()
