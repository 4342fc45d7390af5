"""Where a scale of the channels may travel: from the op that makes a value to the layers that read it.

An op is positively homogeneous in an operand if op(s x) = s op(x) for every s > 0. If that holds channel by channel, a
positive scale of each channel can be taken out behind the op as well as in front of it, and nothing else changes. Ops
that only move values (reshapes, transposes) carry the scale to another place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxopt.graph.rewrite import argument
from fxopt.passes.cleanup.layers import Layer, layer_at

aten = torch.ops.aten


@dataclass(frozen=True)
class Channels:
    """Where the channels of a value lie.

    Position p of the dimensions `dims`, counted row by row in their order, belongs to channel p // `repeat`: heads and
    head dimension together are dims (1, 3) of [batch, heads, tokens, size], and [batch, channels, height, width] made
    flat has `repeat` height x width.
    """

    dims: tuple[int, ...]
    repeat: int = 1


@dataclass(frozen=True)
class Reader:
    """A layer whose input channels are those of a value, each `repeat` times in a row."""

    layer: Layer
    repeat: int

    def spread(self, scale: Tensor) -> Tensor:
        """Return a scale of the channels as one of the layer's inputs, `[inputs]`."""
        return scale.repeat_interleave(self.repeat)

    def gather(self, inputs: Tensor) -> Tensor:
        """Return the largest of the values `[inputs]` that belong to each channel, `[channels]`."""
        return inputs.reshape(-1, self.repeat).amax(1)


# Gets a call, the operand that is scaled, and where its channels lie; returns where they lie in the result, or None
# if the result is not scaled alike.
Path = Callable[[fx.Node, fx.Node, Channels], Channels | None]


def readers(module: nn.Module, value: fx.Node, channels: Channels) -> tuple[Reader, ...]:
    """Return the layers that read a value, at once or behind homogeneous ops; () if anything else reads it too."""
    found: list[Reader] = []
    places, waiting = {value: channels}, [value]
    while waiting:
        source = waiting.pop()
        for user in source.users:
            reader = _reader(module, user, source, places[source])
            if reader is not None:
                found.append(reader)
                continue
            path = PATHS.get(user.target) if user.op == "call_function" else None
            place = path(user, source, places[source]) if path is not None and user not in places else None
            if place is None:
                return ()
            places[user] = place
            waiting.append(user)
    return tuple(sorted(found, key=lambda reader: reader.layer.node))


def _reader(module: nn.Module, user: fx.Node, source: fx.Node, place: Channels) -> Reader | None:
    layer = layer_at(module, user)
    if layer is None or layer.source is not source or place.dims != (layer.channel_dim,):
        return None
    return Reader(layer, place.repeat) if owns_tensors(layer) else None


def owns_tensors(layer: Layer) -> bool:
    """Say whether nothing else reads the weight and bias of a layer: tied weights are better left alone."""
    tensors = [tensor for name in ("weight", "bias") if (tensor := argument(layer.node, name)) is not None]
    nodes = [node for t in tensors for node in t.graph.find_nodes(op="get_attr", target=t.target, sort=False)]
    return len(nodes) == len(tensors) and all(len(node.users) == 1 for node in nodes)


def balance(before: Tensor, after: Tensor) -> Tensor:
    """Return before / after for each channel, divided by its geometric mean; 1 where either is zero or not finite."""
    scale = before / after
    live = (scale > 0) & scale.isfinite()
    return torch.where(live, scale / scale[live].log().mean().exp(), 1.0)


def _same(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    return channels if node.args[0] is source else None


def _each_position(spatial: int) -> Path:
    """Return the path of an op that works on the last dimensions."""

    def path(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
        return channels if max(channels.dims) < source.meta["val"].ndim - spatial else None

    return path


def _resized(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    return channels if max(channels.dims) < 2 else None


def _at_least_zero(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    upper = argument(node, "max") if node.target is aten.clamp.default else None
    return channels if argument(node, "min") == 0 and upper is None else None


def _padded(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    copies = node.target is aten.pad.default and argument(node, "mode") != "constant"
    value = None if copies else argument(node, "value")
    first = source.meta["val"].ndim - len(argument(node, "pad")) // 2
    return channels if not value and max(channels.dims) < first else None


def _dims_of(node: fx.Node, rank: int, name: str = "dim") -> set[int]:
    dims = argument(node, name)
    listed = [dims] if isinstance(dims, int) else list(dims or range(rank))
    return {dim % rank for dim in listed}


def _elsewhere(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    """An op along dimensions that hold no channels."""
    name = "dim" if node.target is aten.slice.Tensor else "dims"
    return None if _dims_of(node, source.meta["val"].ndim, name) & set(channels.dims) else channels


def _reduced(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    gone = _dims_of(node, source.meta["val"].ndim)
    if gone & set(channels.dims):
        return None
    if node.target is not aten.select.int and argument(node, "keepdim"):
        return channels
    return Channels(tuple(dim - sum(other < dim for other in gone) for dim in channels.dims), channels.repeat)


def _permuted(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    rank = source.meta["val"].ndim
    if node.target is aten.permute.default:
        order = [dim % rank for dim in argument(node, "dims")]
    else:
        order = list(range(rank))
        first, second = argument(node, "dim0") % rank, argument(node, "dim1") % rank
        order[first], order[second] = order[second], order[first]
    return Channels(tuple(order.index(dim) for dim in channels.dims), channels.repeat)


def _reshaped(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    """Find the channels by counting from the last dimension; sizes behind the channels must be known."""
    before, after = list(source.meta["val"].shape), list(node.meta["val"].shape)
    first, last = channels.dims[0], channels.dims[-1]
    behind, held = before[last + 1 :], before[first : last + 1]
    if channels.dims != tuple(range(first, last + 1)) or not all(type(size) is int for size in (*behind, *held)):
        return None
    inner, width = math.prod(behind), math.prod(held)
    dims = _run(after, inner, width)
    if dims is not None:
        return Channels(dims, channels.repeat)
    dims = _run(after, 1, width * inner)  # the dimensions behind the channels are now part of theirs
    return None if dims is None else Channels(dims, channels.repeat * inner)


def _run(shape: Sequence[Any], inner: int, width: int) -> tuple[int, ...] | None:
    """Return the dimensions that together hold `width` positions and have `inner` behind them."""
    held, behind, dims = 1, 1, []
    for dim in reversed(range(len(shape))):
        if type(shape[dim]) is not int:
            return None
        if behind < inner:
            behind *= shape[dim]
        elif shape[dim] != 1:
            held *= shape[dim]
            dims.append(dim)
        if behind == inner and held == width:
            return tuple(reversed(dims)) or None
    return None


def _expanded(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    added = node.meta["val"].ndim - source.meta["val"].ndim
    return (
        Channels(tuple(dim + added for dim in channels.dims), channels.repeat)
        if _keeps(node, source, channels)
        else None
    )


def _keeps(node: fx.Node, source: fx.Node, channels: Channels) -> bool:
    """Say whether broadcasting leaves the dimensions of the channels as they are."""
    before, after = source.meta["val"].shape, node.meta["val"].shape
    return all(str(before[dim]) == str(after[dim + len(after) - len(before)]) for dim in channels.dims)


def _multiplied(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    left, right = node.args[:2]
    if left is right or (right is source and node.target is aten.div.Tensor):
        return None
    return _expanded(node, source, channels)


def _attended(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    """Attention is linear in its values, [..., tokens, size]."""
    query, key, value = node.args[:3]
    if value is not source or source in (query, key) or argument(node, "attn_mask") is source:
        return None
    return _weighted(node, source, channels) if not argument(node, "enable_gqa") else None


def _product(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    """A matrix product is linear in its right operand, [..., rows, columns]."""
    left, right = node.args[:2]
    return _weighted(node, source, channels) if right is source and left is not source else None


def _weighted(node: fx.Node, source: fx.Node, channels: Channels) -> Channels | None:
    rank = source.meta["val"].ndim
    same_rank = rank == node.meta["val"].ndim and rank - 2 not in channels.dims
    return channels if same_rank and _keeps(node, source, channels) else None


PATHS: dict[Any, Path] = {
    aten.relu.default: _same,
    aten.leaky_relu.default: _same,
    aten.prelu.default: _same,
    aten.clamp.default: _at_least_zero,
    aten.clamp_min.default: _at_least_zero,
    aten.dropout.default: _same,
    aten.feature_dropout.default: _same,
    aten.contiguous.default: _same,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.neg.default: _same,
    aten.abs.default: _same,
    aten.max_pool1d.default: _each_position(1),
    aten.max_pool2d.default: _each_position(2),
    aten.max_pool3d.default: _each_position(3),
    aten.avg_pool1d.default: _each_position(1),
    aten.avg_pool2d.default: _each_position(2),
    aten.avg_pool3d.default: _each_position(3),
    aten.adaptive_avg_pool1d.default: _each_position(1),
    aten.adaptive_avg_pool2d.default: _each_position(2),
    aten.adaptive_avg_pool3d.default: _each_position(3),
    aten.upsample_nearest1d.vec: _resized,
    aten.upsample_nearest2d.vec: _resized,
    aten.upsample_nearest3d.vec: _resized,
    aten.upsample_bilinear2d.vec: _resized,
    aten.upsample_bicubic2d.vec: _resized,
    aten.pad.default: _padded,
    aten.constant_pad_nd.default: _padded,
    aten.mean.dim: _reduced,
    aten.sum.dim_IntList: _reduced,
    aten.amax.default: _reduced,
    aten.select.int: _reduced,
    aten.slice.Tensor: _elsewhere,
    aten.roll.default: _elsewhere,
    aten.flip.default: _elsewhere,
    aten.permute.default: _permuted,
    aten.transpose.int: _permuted,
    aten.view.default: _reshaped,
    aten.reshape.default: _reshaped,
    aten.flatten.using_ints: _reshaped,
    aten.unflatten.int: _reshaped,
    aten.squeeze.default: _reshaped,
    aten.squeeze.dim: _reshaped,
    aten.squeeze.dims: _reshaped,
    aten.unsqueeze.default: _reshaped,
    aten.expand.default: _expanded,
    aten.mul.Tensor: _multiplied,
    aten.mul.Scalar: _multiplied,
    aten.div.Tensor: _multiplied,
    aten.div.Scalar: _multiplied,
    aten.scaled_dot_product_attention.default: _attended,
    aten.matmul.default: _product,
    aten.bmm.default: _product,
}
