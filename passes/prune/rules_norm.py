"""Rows of normalizations.

Batch and instance norm treat every channel by itself. Layer, root-mean-square and group norm average over channels:
without some of them they compute something else, which is what the original would compute on those that stay.
"""

from __future__ import annotations

from typing import Any

import torch

from fxopt.passes.prune.rule import Call, ChannelRule, Labels, Shrink, without
from fxopt.passes.prune.symbols import fixed

aten = torch.ops.aten


def _tie(call: Call, label: Any, names: tuple[str, ...]) -> None:
    for name in names:
        parameter = call.optional(name)
        if parameter is not None:
            call.unify(label, parameter[0])


def _batch_norm(call: Call) -> Labels:
    """Exact with running statistics; with those of the input itself, it averages over all else than channels."""
    x = call.labels("input")
    if call["running_mean"] is None or call["training"]:
        call.inexact.extend(without(x, [1]))
    _tie(call, x[1], ("weight", "bias", "running_mean", "running_var"))
    return x


def _instance_norm(call: Call) -> Labels:
    x = call.labels("input")
    _tie(call, x[1], ("weight", "bias", "running_mean", "running_var"))
    call.freeze(*x[2:], because="it is averaged over")
    return x


def _group_norm(call: Call) -> Labels:
    """Channels are (group, j): whole groups can go exactly."""
    x, groups = call.labels("input"), int(call["num_groups"])
    _tie(call, x[1], ("weight", "bias"))
    _, within = call.split(x[1], groups, len(x[1]) // groups)
    call.inexact.append(within)
    call.freeze(*x[2:], because="it is averaged over")
    return x


def _fewer_groups(shrink: Shrink) -> None:
    x = shrink.call.labels("input")
    groups = int(shrink.call["num_groups"])
    rows, _ = shrink.call.split(x[1], groups, len(x[1]) // groups)
    shrink.set(num_groups=shrink.count(rows))


def _layer_norm(call: Call) -> Labels:
    x, count = call.labels("input"), len(call["normalized_shape"])
    for name in ("weight", "bias"):
        if name == "bias" and call.node.target is aten.rms_norm.default:
            continue
        parameter = call.optional(name)
        if parameter is not None:
            call.unify_all(x[-count:], parameter)
    call.inexact.extend(x[-count:])
    return x


def _smaller_shape(shrink: Shrink) -> None:
    shape = shrink.argument("normalized_shape")
    shrink.set(normalized_shape=shrink.sizes(shape, shrink.call.labels("input")[-len(shape) :]))


def _weight_norm(call: Call) -> Labels:
    """v, divided by the norm of all of its dimensions but one, times g."""
    v, g = call.labels("v"), call.labels("g")
    dim = call["dim"] % len(v)
    call.freeze(*(label for position, label in enumerate(v) if position != dim), because="a norm is taken over it")
    call.unify(v[dim], g[dim] if len(g) == len(v) else fixed(len(v[dim])))
    return v


NORM_RULES: dict[Any, ChannelRule] = {
    aten.batch_norm.default: ChannelRule(_batch_norm),
    aten.instance_norm.default: ChannelRule(_instance_norm),
    aten.group_norm.default: ChannelRule(_group_norm, _fewer_groups),
    aten.layer_norm.default: ChannelRule(_layer_norm, _smaller_shape),
    aten.rms_norm.default: ChannelRule(_layer_norm, _smaller_shape),
    aten._weight_norm.default: ChannelRule(_weight_norm),
}
