"""What the folding passes know of linear and convolution layers: where their channels lie, and how to scale them.

A layer is y = W * x + b. Scaling its outputs, s * y + t, is the layer (s W) * x + (s b + t). Scaling its inputs,
W * (s x + t) + b, is (W s) * x + (W t + b), if no zero padding hides t at the borders.

A weight is seen as [groups, first, second, taps]: a convolution and a linear layer have (output, input) channels of a
group there, a transposed convolution (input, output). All arithmetic is float64, cast once at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxopt.graph.rewrite import Edit, argument, constant, same_kind, set_attribute

aten = torch.ops.aten
BLOCK = 2**22  # elements of a weight held as float64 at a time


@dataclass(frozen=True)
class Kind:
    """What sort of layer an op is: the number of its spatial dimensions, and whether it is transposed."""

    spatial: int
    transposed: bool = False


LAYERS: dict[Any, Kind] = {
    aten.linear.default: Kind(0),
    aten.conv1d.default: Kind(1),
    aten.conv1d.padding: Kind(1),
    aten.conv2d.default: Kind(2),
    aten.conv2d.padding: Kind(2),
    aten.conv3d.default: Kind(3),
    aten.conv3d.padding: Kind(3),
    aten.conv_transpose1d.default: Kind(1, transposed=True),
    aten.conv_transpose2d.input: Kind(2, transposed=True),
    aten.conv_transpose3d.input: Kind(3, transposed=True),
}
PADDED_BY_NAME: dict[Any, Any] = {
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.padding: aten.conv2d.default,
    aten.conv3d.padding: aten.conv3d.default,
}
CONVOLUTIONS = {op: kind for op, kind in LAYERS.items() if kind.spatial and not kind.transposed}


@dataclass(frozen=True)
class Layer:
    """A call of a layer op whose weight and bias are tensors of the module. `weight` has the layout of the op."""

    node: fx.Node
    kind: Kind
    weight: Tensor
    bias: Tensor | None
    groups: int

    @property
    def inputs(self) -> int:
        """The number of input channels."""
        return self.weight.shape[0] if self.kind.transposed else self.weight.shape[1] * self.groups

    @property
    def outputs(self) -> int:
        """The number of output channels."""
        return self.weight.shape[1] * self.groups if self.kind.transposed else self.weight.shape[0]

    @property
    def channel_dim(self) -> int:
        """The dimension of the channels, from the front; input and output have the same."""
        return int(self.node.meta["val"].ndim) - self.kind.spatial - 1

    @property
    def source(self) -> fx.Node:
        """The node of the input."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        return source


def layer_at(module: nn.Module, node: Any) -> Layer | None:
    """Return the layer that a node calls, or None if it is none or computes its weight or bias."""
    kind = LAYERS.get(node.target) if isinstance(node, fx.Node) else None
    if kind is None or not node.args:
        return None
    weight, bias_node = constant(module, argument(node, "weight")), argument(node, "bias")
    bias = constant(module, bias_node)
    if weight is None or not weight.is_floating_point() or (bias_node is not None and bias is None):
        return None
    return Layer(node, kind, weight, bias, argument(node, "groups") if kind.spatial else 1)


def scale_outputs(layer: Layer, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of s * y + t; scale and shift are float64, `[outputs]` or 0-dimensional.

    The weight is computed in float64 and rounded once, to the dtype it had; the bias is float64.
    """
    scale, shift = scale.expand(layer.outputs), shift.expand(layer.outputs)
    per_group = (layer.groups, 1, -1, 1) if layer.kind.transposed else (layer.groups, -1, 1, 1)
    bias = shift if layer.bias is None else layer.bias.detach().double() * scale + shift
    return _scaled(layer, scale.reshape(per_group)), bias


def scale_inputs(layer: Layer, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias of W * (s x + t) + b, as scale_outputs() does; scale and shift are `[inputs]`."""
    scale, shift = scale.expand(layer.inputs), shift.expand(layer.inputs)
    per_group = (layer.groups, -1, 1, 1) if layer.kind.transposed else (layer.groups, 1, -1, 1)
    bias = None if layer.bias is None else layer.bias.detach().double()
    if bool(shift.any()):
        assert not layer.kind.transposed
        added = (grouped_weight(layer) * shift.reshape(per_group)).sum((2, 3)).flatten()
        bias = added if bias is None else bias + added
    return _scaled(layer, scale.reshape(per_group)), bias


def _scaled(layer: Layer, factors: Tensor) -> Tensor:
    """Multiply the weight by factors that fit grouped_weight(), a part at a time: one may be most of a model."""
    weight = _grouped(layer, layer.weight.detach())
    result = torch.empty_like(weight, memory_format=torch.contiguous_format)
    factors = factors.expand(*weight.shape[:3], 1)
    step = max(1, BLOCK * weight.shape[1] // max(1, weight.numel()))
    for parts in zip(*(torch.split(tensor, step, 1) for tensor in (result, weight, factors)), strict=True):
        parts[0].copy_(parts[1].double() * parts[2])
    return result.reshape(layer.weight.shape)


def grouped_weight(layer: Layer) -> Tensor:
    """Return the weight as `[groups, first, second, taps]`, float64."""
    return _grouped(layer, layer.weight.detach().double())


def _grouped(layer: Layer, weight: Tensor) -> Tensor:
    if layer.kind.transposed:
        return weight.reshape(layer.groups, layer.inputs // layer.groups, layer.outputs // layer.groups, -1)
    return weight.reshape(layer.groups, layer.outputs // layer.groups, layer.inputs // layer.groups, -1)


def accepts_input_shift(layer: Layer) -> bool:
    """Say whether a constant added to the input reaches every output through the same taps."""
    if layer.kind.transposed:
        return False
    return layer.kind.spatial == 0 or explicit_padding(layer.node) == [0] * layer.kind.spatial


def explicit_padding(node: fx.Node) -> list[int] | None:
    """Return a convolution's zero padding a spatial dimension; None if it is not the same on both sides."""
    spatial = LAYERS[node.target].spatial
    padding = argument(node, "padding")
    if padding == "valid":
        return [0] * spatial
    if padding != "same":
        return sizes(padding, spatial)
    kernel = argument(node, "weight").meta["val"].shape[-spatial:]
    total = [d * (int(k) - 1) for d, k in zip(sizes(argument(node, "dilation"), spatial), kernel, strict=True)]
    return [t // 2 for t in total] if all(t % 2 == 0 for t in total) else None


def sizes(value: Any, spatial: int) -> list[int]:
    """Spell a size argument for every spatial dimension: 1 and [1] mean [1, 1] in two dimensions."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * spatial if len(values) == 1 else values


def write(edit: Edit, layer: Layer, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer a new weight and bias; they keep dtype, kind (Parameter or buffer) and, if unshared, name."""
    node, old_weight = layer.node, argument(layer.node, "weight")
    old_bias = argument(node, "bias")
    changes = {"weight": replace_tensor(edit, node, old_weight, like(layer.weight, weight))}
    if bias is not None:
        model = layer.weight if layer.bias is None else layer.bias
        value = like(model, bias)
        if old_bias is None:
            changes["bias"] = edit.add_constant(bias_name(str(old_weight.target)), value, before=node)
        else:
            changes["bias"] = replace_tensor(edit, node, old_bias, value)
    set_arguments(node, **changes)


def like(old: Tensor, value: Tensor) -> Tensor:
    """Give a value the dtype of `old`, and make it a Parameter if that is one."""
    return same_kind(old, value.to(old.dtype).contiguous())


def bias_name(weight_name: str) -> str:
    """Name the bias beside a weight: "conv.weight" has "conv.bias"."""
    path, dot, name = weight_name.rpartition(".")
    return path + dot + (name.replace("weight", "bias") if "weight" in name else f"{name}_bias")


def replace_tensor(edit: Edit, user: fx.Node, old: fx.Node, value: Tensor) -> fx.Node:
    """Return a node that reads `value`: under the name of `old` if `user` alone uses that, else under a new one."""
    readers = edit.graph.find_nodes(op="get_attr", target=old.target, sort=False)
    uses = sum(item is old for item in (*user.args, *user.kwargs.values()))
    other_kind = isinstance(edit.constant(old), nn.Parameter) != isinstance(value, nn.Parameter)
    if len(readers) > 1 or set(old.users) != {user} or uses > 1 or other_kind:
        return edit.add_constant(str(old.target), value, before=user)
    set_attribute(edit.module, str(old.target), value)
    if old.meta["val"].shape != value.shape:
        old.meta["val"] = edit.mode.from_tensor(value.detach(), static_shapes=True)
    return old


def set_arguments(node: fx.Node, **changes: Any) -> None:
    """Change arguments of a call by schema name. The caller sees to the fake tensor, if it changes."""
    args, kwargs = list(node.args), dict(node.kwargs)
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    names = [parameter.name for parameter in schema if not parameter.kwarg_only]
    for name, value in changes.items():
        position = names.index(name) if name in names else len(args)
        if name not in kwargs and position < len(args):
            args[position] = value
        else:
            kwargs[name] = value
    while len(args) < len(names) and names[len(args)] in kwargs:
        args.append(kwargs.pop(names[len(args)]))  # positional as far as possible: one spelling
    node.args, node.kwargs = tuple(args), kwargs
