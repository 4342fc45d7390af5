"""Rows of ops that pick positions by an index. A constant index is renumbered; a computed one may pick any position."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxopt.passes.prune.rule import (
    Call,
    CannotRelate,
    ChannelRule,
    Labels,
    Shrink,
    broadcast,
    operand,
    shape_of,
    without,
)
from fxopt.passes.prune.symbols import Mask

aten = torch.ops.aten


def select_index(shrink: Shrink, dim: int, index: Tensor) -> None:
    """Turn a call into one that picks constant positions of its argument `self`."""
    constant = shrink.edit.add_constant(f"{shrink.node.name}_index", index, before=shrink.node)
    shrink.become(aten.index_select.default, shrink.argument("self"), dim, constant)


def _index(call: Call) -> Labels:
    """Dimensions that are indexed by computed positions stay whole; one constant index picks positions."""
    x, indices = call.labels("self"), call["indices"]
    picked = [dim for dim, index in enumerate(indices) if index is not None]
    constant = _constant_index(call)
    if constant is not None:
        dim, node, index = constant
        label = x[dim][index.numpy()]
        call.unify(call.of(node)[0], label)
        return (*x[:dim], label, *x[dim + 1 :])
    if any(indices[dim].meta["val"].dtype is torch.bool for dim in picked):
        raise CannotRelate("a mask as an index")
    for dim in picked:
        call.freeze(x[dim], because="it is indexed by computed positions")
    places = broadcast(call, [operand(call, indices[dim]) for dim in picked])
    rest = without(x, picked)
    adjacent = picked == list(range(picked[0], picked[-1] + 1))
    first = picked[0] if adjacent else 0
    return (*rest[:first], *places, *rest[first:])


def _constant_index(call: Call) -> tuple[int, fx.Node, Tensor] | None:
    """Return dimension, node and values of the one index of a call, if it is a constant list of positions."""
    picked = [(dim, index) for dim, index in enumerate(call["indices"]) if index is not None]
    if len(picked) != 1:
        return None
    dim, node = picked[0]
    return _positions(call, dim, node)


def _positions(call: Call, dim: int, node: fx.Node) -> tuple[int, fx.Node, Tensor] | None:
    index = call.constants(node)
    size = shape_of(call["self"])[dim]
    if index is None or index.ndim != 1 or index.dtype not in (torch.int64, torch.int32) or not isinstance(size, int):
        return None
    return dim, node, torch.where(index < 0, index + size, index)


def _remap_index(shrink: Shrink) -> None:
    constant = _constant_index(shrink.call)
    if constant is None or not shrink.cuts(shrink.call.labels("self")[constant[0]]):
        return
    dim, _, index = constant
    select_index(shrink, dim, _renumbered(shrink.keep(shrink.call.labels("self")[dim]), index))


def _renumbered(mask: Mask, index: Tensor) -> Tensor:
    """Return the new positions of those of the index that stay."""
    places = index.numpy()
    return torch.from_numpy((np.cumsum(mask) - 1)[places[mask[places]]])


def _index_select(call: Call) -> Labels:
    x = call.labels("self")
    dim = call.dim(len(x))
    constant = _positions(call, dim, call["index"])
    if constant is None:
        call.freeze(x[dim], because="it is indexed by computed positions")
        return (*x[:dim], *call.labels("index"), *x[dim + 1 :])
    label = x[dim][constant[2].numpy()]
    call.unify(call.labels("index")[0], label)
    return (*x[:dim], label, *x[dim + 1 :])


def _remap_index_select(shrink: Shrink) -> None:
    x = shrink.call.labels("self")
    dim = shrink.call.dim(len(x))
    constant = _positions(shrink.call, dim, shrink.call["index"])
    if constant is not None and shrink.cuts(x[dim]):
        select_index(shrink, dim, _renumbered(shrink.keep(x[dim]), constant[2]))


def _gather(call: Call) -> Labels:
    """Other dimensions go along with those of the index where they are as large."""
    x, index = call.labels("self"), call.labels("index")
    dim = call.dim(len(x))
    call.freeze(x[dim], because="it is indexed by computed positions")
    call.unify_all(without(x, [dim]), without(index, [dim]))
    return index


INDEX_RULES: dict[Any, ChannelRule] = {
    aten.index.Tensor: ChannelRule(_index, _remap_index),
    aten.index_select.default: ChannelRule(_index_select, _remap_index_select),
    aten.gather.default: ChannelRule(_gather),
}
