"""Rows of ops that multiply and sum: convolutions, linears, matrix products, einsum.

What is summed over is the same on both sides; the other dimensions of both operands are those of the result.
"""

from __future__ import annotations

from typing import Any

import torch

from fxopt.passes.cleanup.layers import LAYERS
from fxopt.passes.prune.factor import merge
from fxopt.passes.prune.rule import Call, CannotRelate, ChannelRule, Labels, Shrink, broadcast, operand, shape_of
from fxopt.passes.prune.symbols import Label

aten = torch.ops.aten


def _convolution(call: Call) -> Labels:
    """Channels of x are (group, j), of the weight [(group, o), j, kernel], of the result (group, o).

    Depthwise, the groups are the channels. Without groups, x has the weight's second dimension.
    """
    x, weight, groups = call.labels("input"), call.labels("weight"), int(call["groups"])
    channel = _channel_dim(call, x, weight)
    of_group, of_channel = call.split(x[channel], groups, len(weight[1]))
    out_group, _ = call.split(weight[0], groups, len(weight[0]) // groups)
    call.unify(of_group, out_group)
    call.unify(of_channel, weight[1])
    return _convolved(call, x, channel, weight[0])


def _transposed(call: Call) -> Labels:
    """Channels of x and the weight's first dimension are (group, j), those of the result (group, o)."""
    x, weight, groups = call.labels("input"), call.labels("weight"), int(call["groups"])
    channel = _channel_dim(call, x, weight)
    call.unify(x[channel], weight[0])
    of_group, _ = call.split(x[channel], groups, len(weight[0]) // groups)
    return _convolved(call, x, channel, merge(call.symbols, of_group, weight[1]) if groups > 1 else weight[1])


def _channel_dim(call: Call, x: Labels, weight: Labels) -> int:
    """Return the dimension of the channels; those behind it are frozen, since the op slides along them."""
    channel = len(x) - LAYERS[call.node.target].spatial - 1
    call.freeze(*x[channel + 1 :], *weight[2:], because="a convolution slides along it")
    return channel


def _convolved(call: Call, x: Labels, channel: int, out: Label) -> Labels:
    bias = call.optional("bias")
    if bias is not None:
        call.unify(out, bias[0])
    return (*x[:channel], out, *call.fixed_result()[channel + 1 :])


def _fewer_groups(shrink: Shrink) -> None:
    call = shrink.call
    if call["groups"] == 1:
        return
    side = shrink.result if LAYERS[call.node.target].transposed else call.labels("input")
    assert isinstance(side, tuple)
    channel = len(side) - LAYERS[call.node.target].spatial - 1
    shrink.set(groups=shrink.count(side[channel]) // shrink.count(call.labels("weight")[1]))


def _linear(call: Call) -> Labels:
    x, weight, bias = call.labels("input"), call.labels("weight"), call.optional("bias")
    call.unify(x[-1], weight[-1])
    if len(weight) == 1:
        return x[:-1]
    if bias is not None:
        _add_to(call, "bias", weight[0])
    return (*x[:-1], weight[0])


def _add_to(call: Call, name: str, label: Label) -> None:
    """Tie the last dimension of an addend to that of the result; one number is added to all."""
    addend = call.labels(name)
    if addend and len(addend[-1]) == len(label):
        call.unify(addend[-1], label)
    elif addend:
        call.freeze(addend[-1], because="it is broadcast")


def product(call: Call, left: Any, right: Any) -> Labels:
    """Relate left @ right: vectors are a row or a column, dimensions before the last two are broadcast."""
    first, second = call.of(left), call.of(right)
    if not first or not second:
        raise CannotRelate("a product with a number")
    call.unify(first[-1], second[-2] if len(second) > 1 else second[0])
    batches = [(labels[:-2], shape_of(node)[:-2]) for labels, node in ((first, left), (second, right))]
    batch = broadcast(call, batches)
    rows = () if len(first) == 1 else (first[-2],)
    columns = () if len(second) == 1 else (second[-1],)
    return (*batch, *rows, *columns)


def _product_of(left: str, right: str, addend: str | None = None) -> ChannelRule:
    def relate(call: Call) -> Labels:
        result = product(call, call[left], call[right])
        if addend is not None:
            broadcast(call, [(result, call.shape), operand(call, call[addend])])
        return result

    return ChannelRule(relate)


def _outer(call: Call) -> Labels:
    return (call.labels("self")[0], call.labels("vec2")[0])


def _einsum(call: Call) -> Labels:
    """Every letter is one dimension, wherever it occurs."""
    sides = call["equation"].replace(" ", "").split("->")
    terms, tensors = sides[0].split(","), call["tensors"]
    if "." in call["equation"] or len(sides) != 2 or any(len(set(term)) < len(term) for term in terms):
        raise CannotRelate("an einsum with '...', with an implicit result or with a diagonal")
    found: dict[str, tuple[Label, Any]] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for letter, label, size in zip(term, *operand(call, tensor), strict=True):
            known, known_size = found.setdefault(letter, (label, size))
            if str(known_size) != str(size):
                raise CannotRelate("an einsum that broadcasts")
            call.unify(known, label)
    return tuple(found[letter][0] for letter in sides[1])


CONVOLUTION = ChannelRule(_convolution, _fewer_groups)
TRANSPOSED = ChannelRule(_transposed, _fewer_groups)

PRODUCT_RULES: dict[Any, ChannelRule] = {
    aten.conv1d.default: CONVOLUTION,
    aten.conv1d.padding: CONVOLUTION,
    aten.conv2d.default: CONVOLUTION,
    aten.conv2d.padding: CONVOLUTION,
    aten.conv3d.default: CONVOLUTION,
    aten.conv3d.padding: CONVOLUTION,
    aten.conv_transpose1d.default: TRANSPOSED,
    aten.conv_transpose2d.input: TRANSPOSED,
    aten.conv_transpose3d.input: TRANSPOSED,
    aten.linear.default: ChannelRule(_linear),
    aten.matmul.default: _product_of("self", "other"),
    aten.mm.default: _product_of("self", "mat2"),
    aten.bmm.default: _product_of("self", "mat2"),
    aten.mv.default: _product_of("self", "vec"),
    aten.dot.default: _product_of("self", "tensor"),
    aten.addmm.default: _product_of("mat1", "mat2", "self"),
    aten.baddbmm.default: _product_of("batch1", "batch2", "self"),
    aten.outer.default: ChannelRule(_outer),
    aten.einsum.default: ChannelRule(_einsum),
}
