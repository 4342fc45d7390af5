"""Regions of a calibrated Program whose outputs a rounding of weights is fitted to: layers, or blocks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from fxopt.graph.cuts import activation, cuts, is_no_tensor
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.passes.quantize.placement import WEIGHTED
from fxopt.passes.quantize.rules import QUANTIZE_RULES


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
    nodes = (layer, *activation(layer))
    return Region(nodes, (layer,), nodes[-1:])


def layer_regions(program: Program) -> list[Region]:
    """Make each quantized layer a region."""
    return [layer_region(node) for node in program.graph.nodes if has_grid(node)]


def block_regions(program: Program) -> list[Region]:
    """Cut a graph wherever all that was computed so far passes through one value; what lies between is a region."""
    regions, start, order = [], 0, list(program.graph.nodes)
    for end, _ in cuts(order):
        nodes = tuple(node for node in order[start:end] if node.op in ("get_attr", "call_function"))
        if layers := tuple(filter(has_grid, nodes)):
            block, alone = Region(nodes, layers, _read_outside(nodes)), layer_region(layers[0])
            regions.append(alone if len(layers) == 1 and alone.ends == block.ends else block)
        start = end
    return regions


def _is_rounded(node: fx.Node) -> bool:
    return node.target is fake_quantize and not is_constant(node.args[0])


def _read_outside(nodes: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the float tensors that nodes hand on, in graph order; constants are none of them."""
    inside = set(nodes)
    calls = (node for node in nodes if node.op == "call_function" and not is_no_tensor(node))
    calls = (node for node in calls if node.target is not fake_quantize or _is_rounded(node))
    return tuple(node for node in calls if any(user not in inside for user in node.users))
