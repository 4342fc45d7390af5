"""Regions of a calibrated Program whose outputs a rounding of weights is fitted to: layers, or blocks of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.passes.quantize.placement import WEIGHTED
from fxopt.passes.quantize.rules import QUANTIZE_RULES

aten = torch.ops.aten
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


@dataclass(frozen=True)
class Region:
    """A part of a graph with quantized layers.

    - `nodes`: the nodes to compute, in graph order; whatever else they read is known before the first of them.
    - `layers`: those of them whose weights are to be rounded. `ends`: those that others read, the outputs.
    """

    nodes: tuple[fx.Node, ...]
    layers: tuple[fx.Node, ...]
    ends: tuple[fx.Node, ...]

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The values from outside that the nodes read."""
        inside = set(self.nodes)
        return tuple(dict.fromkeys(s for node in self.nodes for s in node.all_input_nodes if s not in inside))


def has_grid(node: fx.Node) -> bool:
    """Say whether a node is a layer whose stored weight is quantized."""
    rule = QUANTIZE_RULES.get(node.target) if node.op == "call_function" else None
    if rule is None or rule.role not in WEIGHTED:
        return False
    weight = node.args[1]
    return isinstance(weight, fx.Node) and weight.target is fake_quantize and is_constant(weight.args[0])


def weight_of(layer: fx.Node) -> fx.Node:
    """Return the fake_quantize node of a layer's weight."""
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    return weight


def layer_region(layer: fx.Node) -> Region:
    """Make a layer a region, with the activation function that alone reads it."""
    nodes = (layer, *_activation(layer))
    return Region(nodes, (layer,), nodes[-1:])


def layer_regions(program: Program) -> list[Region]:
    """Make each quantized layer a region."""
    return [layer_region(node) for node in program.graph.nodes if has_grid(node)]


def block_regions(program: Program) -> list[Region]:
    """Cut a graph wherever all that was computed so far passes through one value; what lies between is a region.

    The cuts of a residual network are the results of its additions, those of a plain chain all its values. Only values
    behind an op with weights count, not masks and the like that are made of the inputs alone. There is no cut between
    a layer and its activation function.
    """
    regions, start, order = [], 0, list(program.graph.nodes)
    for end in _cuts(order):
        nodes = tuple(node for node in order[start:end] if node.op in ("get_attr", "call_function"))
        if layers := tuple(filter(has_grid, nodes)):
            block, alone = Region(nodes, layers, _read_outside(nodes)), layer_region(layers[0])
            regions.append(alone if len(layers) == 1 and alone.ends == block.ends else block)
        start = end
    return regions


def _activation(layer: fx.Node) -> tuple[fx.Node, ...]:
    """Return the activation function that alone reads a value, and the quantization between the two, or nothing."""
    path: list[fx.Node] = []
    value = layer
    while len(value.users) == 1:
        value = next(iter(value.users))
        path.append(value)
        if value.target in ACTIVATIONS:
            return tuple(path)
        if value.target is not fake_quantize:
            break
    return ()


def _cuts(order: Sequence[fx.Node]) -> Iterator[int]:
    """Yield the positions after which at most one value behind weights is still to be read."""
    position = {node: index for index, node in enumerate(order)}
    behind: set[fx.Node] = set()
    last_read: dict[fx.Node, int] = {}
    for index, node in enumerate(order):
        if _has_weight(node) or behind.intersection(node.all_input_nodes):
            behind.add(node)
            # An output that nothing else reads does not stand in the way of a cut.
            last_read[node] = max((position[user] for user in node.users if user.op != "output"), default=index)
        live = [value for value in behind if last_read[value] > index]
        if len(live) <= 1 and not any(_activation(value) or _is_no_tensor(value) for value in live):
            yield index + 1


def _has_weight(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(parameter.name == "weight" for parameter in schema.arguments)


def _is_rounded(node: fx.Node) -> bool:
    return node.target is fake_quantize and not is_constant(node.args[0])


def _is_no_tensor(value: fx.Node) -> bool:
    return not isinstance(value.meta["val"], Tensor) or not value.meta["val"].is_floating_point()


def _read_outside(nodes: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the float tensors that nodes hand on, in graph order; constants are none of them."""
    inside = set(nodes)
    calls = (node for node in nodes if node.op == "call_function" and not _is_no_tensor(node))
    calls = (node for node in calls if node.target is not fake_quantize or _is_rounded(node))
    return tuple(node for node in calls if any(user not in inside for user in node.users))
