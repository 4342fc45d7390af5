"""The ops whose output is W x + b, and the rows x that they multiply with their weights: what least squares can fit.

Layers, and norms, whose weight and bias act on the normalized values of each channel alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxopt.graph.interpret import Values
from fxopt.graph.patches import patches, stuffed
from fxopt.graph.rewrite import Edit, argument, argument_names, constant
from fxopt.passes.cleanup.layers import (
    Layer,
    bias_name,
    explicit_padding,
    layer_at,
    like,
    replace_tensor,
    set_arguments,
    sizes,
)

aten = torch.ops.aten

# The dimension of the channels, each with a weight and a bias.
NORMS: dict[Any, int] = {
    aten.layer_norm.default: -1,
    aten.group_norm.default: 1,
    aten.batch_norm.default: 1,
}


@dataclass(frozen=True)
class LinearMap:
    """A node that computes W x + b in each of some groups, with `features` values of x and `outputs` of its own.

    - `channels`: the dimension of the node's value that groups and outputs lie in, from the front.
    - `rows(values, taken)`: x [groups, taken, features] at some positions, counted over all other dimensions.
    - `layout(change)`: a change of W, [groups, outputs, features], as the op has its weight.
    """

    node: fx.Node
    groups: int
    outputs: int
    features: int
    channels: int
    weight: Tensor
    bias: Tensor | None
    rows: Callable[[Values, Tensor], Tensor]
    layout: Callable[[Tensor], Tensor]

    def results(self, value: Tensor, taken: Tensor) -> Tensor:
        """Return a value of the node, [groups, taken, outputs], at the same positions."""
        flat = value.movedim(self.channels, -1).reshape(-1, self.groups * self.outputs)
        return flat[taken].reshape(-1, self.groups, self.outputs).transpose(0, 1)

    def changed(self, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias after a change [groups, outputs, features + 1] of both."""
        weight = self.weight.detach().double() + self.layout(change[..., :-1])
        bias = change[..., -1].flatten()
        if self.bias is not None:
            bias = bias + self.bias.detach().double()
        return like(self.weight, weight), like(self.weight if self.bias is None else self.bias, bias)

    def compute(self, values: Values, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute the node with another weight and bias."""
        return _call(self.node, values, weight.detach(), bias.detach())


def linear_map(module: nn.Module, node: fx.Node) -> LinearMap | None:
    """Return the linear map that a node is; None if it is none or shares its weight or bias with another."""
    if node.target in NORMS:
        return _norm_map(module, node)
    layer = layer_at(module, node)
    if layer is None or not _unshared(module, node):
        return None
    return _layer_map(layer)


def write_map(edit: Edit, node: fx.Node, weight: Tensor, bias: Tensor) -> None:
    """Give a node that is a linear map another weight and bias."""
    old_weight, old_bias = argument(node, "weight"), argument(node, "bias")
    changes = {"weight": replace_tensor(edit, node, old_weight, weight)}
    if old_bias is None:
        changes["bias"] = edit.add_constant(bias_name(str(old_weight.target)), bias, before=node)
    else:
        changes["bias"] = replace_tensor(edit, node, old_bias, bias)
    set_arguments(node, **changes)


def _call(node: fx.Node, values: Values, weight: Tensor, bias: Tensor) -> Tensor:
    given = {name: argument(node, name) for name in argument_names(node)}
    given = {**fx.map_arg(given, values.__getitem__), "weight": weight, "bias": bias}
    assert callable(node.target)
    result: Tensor = node.target(**given)
    return result


def _unshared(module: nn.Module, node: fx.Node) -> bool:
    """Say whether nothing else reads the tensors of a node, under any name."""
    own = [constant(module, source) for source in node.all_input_nodes]
    readers = (source for source in node.graph.find_nodes(op="get_attr") if set(source.users) != {node})
    others = {id(constant(module, source)) for source in readers}
    return not any(tensor is not None and id(tensor) in others for tensor in own)


def _norm_map(module: nn.Module, node: fx.Node) -> LinearMap | None:
    weight, bias = (constant(module, argument(node, name)) for name in ("weight", "bias"))
    if (
        weight is None
        or bias is None
        or weight.ndim != 1
        or not weight.is_floating_point()
        or not _unshared(module, node)
    ):
        return None
    ones, zeros = torch.ones_like(weight.detach()), torch.zeros_like(bias.detach())
    channels, width = NORMS[node.target] % node.meta["val"].ndim, len(weight)

    def rows(values: Values, taken: Tensor) -> Tensor:
        normalized = _call(node, values, ones, zeros).movedim(channels, -1).reshape(-1, width)[taken]
        return normalized.t()[..., None]

    return LinearMap(node, width, 1, 1, channels, weight, bias, rows, lambda change: change.flatten())


def _layer_map(layer: Layer) -> LinearMap | None:
    groups, outputs = layer.groups, layer.outputs // layer.groups
    features = layer.weight.numel() // layer.outputs
    padding = _padding(layer)
    if padding is None:
        return None

    def rows(values: Values, taken: Tensor) -> Tensor:
        found = _rows(layer, values[layer.source], taken, padding)
        return found.reshape(len(taken), groups, features).transpose(0, 1)

    def layout(change: Tensor) -> Tensor:
        if layer.kind.transposed:
            change = change.reshape(groups, outputs, layer.inputs // groups, -1).transpose(1, 2)
        return change.reshape(layer.weight.shape)

    return LinearMap(layer.node, groups, outputs, features, layer.channel_dim, layer.weight, layer.bias, rows, layout)


def _padding(layer: Layer) -> list[tuple[int, int]] | None:
    """Return the zeros around each spatial dimension of the (stuffed) input; None for "same" with uneven sides."""
    kind, node = layer.kind, layer.node
    if not kind.transposed:
        padding = explicit_padding(node) if kind.spatial else []
        return None if padding is None else [(side, side) for side in padding]
    apart, side, more = (
        sizes(argument(node, name), kind.spatial) for name in ("dilation", "padding", "output_padding")
    )
    reach = [a * (size - 1) - p for a, size, p in zip(apart, layer.weight.shape[2:], side, strict=True)]
    return [(left, left + added) for left, added in zip(reach, more, strict=True)]


def _rows(layer: Layer, x: Tensor, taken: Tensor, padding: list[tuple[int, int]]) -> Tensor:
    kind = layer.kind
    if kind.spatial == 0:
        return x.reshape(-1, x.shape[-1])[taken]
    x = x if x.ndim == kind.spatial + 2 else x[None]
    stride, apart = (sizes(argument(layer.node, name), kind.spatial) for name in ("stride", "dilation"))
    kernel = layer.weight.shape[2:]
    if not kind.transposed:
        return patches(x, taken, kernel, stride, padding, apart)
    found = patches(stuffed(x, stride), taken, kernel, [1] * kind.spatial, padding, apart)
    return found.flip(tuple(range(2, 2 + kind.spatial)))
