"""Rows of ops that create tensors. Positions of a constant fill are all alike and can go; those of a range cannot."""

from __future__ import annotations

from typing import Any

import torch

from fxopt.passes.prune.rule import Call, ChannelRule, Labels, Shrink

aten = torch.ops.aten


def _filled(call: Call) -> Labels:
    return tuple(call.fresh(size) for size in call.shape)


def _smaller(shrink: Shrink) -> None:
    result = shrink.result
    assert isinstance(result, tuple)
    shrink.set(size=shrink.sizes(shrink.argument("size"), result))


def _fixed(call: Call) -> Labels:
    """What the result is made of stays too."""
    for tensor in call.tensors:
        call.freeze(*call.of(tensor), because="positions are counted along it")
    return call.fixed_result()


def _one_hot(call: Call) -> Labels:
    """Classes stay, each position has its own."""
    return (*call.labels("self"), call.fixed_result()[-1])


FILLED = ChannelRule(_filled, _smaller)
FIXED = ChannelRule(_fixed)

CREATE_RULES: dict[Any, ChannelRule] = {
    aten.zeros.default: FILLED,
    aten.ones.default: FILLED,
    aten.full.default: FILLED,
    aten.new_zeros.default: FILLED,
    aten.new_ones.default: FILLED,
    aten.new_full.default: FILLED,
    aten.arange.default: FIXED,
    aten.arange.start: FIXED,
    aten.arange.start_step: FIXED,
    aten.linspace.default: FIXED,
    aten.eye.default: FIXED,
    aten.eye.m: FIXED,
    aten.scalar_tensor.default: FIXED,
    aten.one_hot.default: ChannelRule(_one_hot),
    aten.tril.default: FIXED,
    aten.triu.default: FIXED,
}
