"""Rows of ops that give the same values another shape: reshapes, permutations, copies along a dimension.

A reshape is a row of blocks, in each of which a few dimensions become a few others with as many positions. A block is
merged to one dimension and then divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fxopt.passes.prune.dynamic_reshape import BECAUSE, reshape_dynamic
from fxopt.passes.prune.factor import merge, merge_all, split_all
from fxopt.passes.prune.rule import Call, CannotRelate, ChannelRule, Labels, Shrink, shape_of, size_of, without
from fxopt.passes.prune.symbols import Label, fixed

aten = torch.ops.aten

Sizes = Sequence[Any]


def _reshape(call: Call) -> Labels:
    """Sizes are read off the fake tensors, so every spelling of a reshape is the same to this rule."""
    source = call.node.args[0]
    before, labels, after = shape_of(source), call.of(source), call.shape  # type: ignore[arg-type]
    result: dict[int, Label] = {dim: fixed(size_of(size)) for dim, size in enumerate(after)}
    for old, new in _blocks(before, after):
        if len(old) == len(new) == 1:
            result[new[0]] = labels[old[0]]
        elif all(isinstance(size, int) for size in (*(before[d] for d in old), *(after[d] for d in new))):
            whole = merge_all(call.symbols, [labels[dim] for dim in old])
            result.update(zip(new, split_all(call.symbols, whole, [after[dim] for dim in new]), strict=True))
        else:
            of_block = reshape_dynamic(
                call, [labels[d] for d in old], [before[d] for d in old], [after[d] for d in new]
            )
            if of_block is None:
                call.freeze(*(labels[dim] for dim in old), because=BECAUSE)
                of_block = [call.staying(after[dim], because=BECAUSE) for dim in new]
            result.update(zip(new, of_block, strict=True))
    for dim, size in enumerate(before):
        if isinstance(size, int) and size == 1:
            call.freeze(labels[dim], because="it has one position")
    return tuple(result[dim] for dim in range(len(after)))


def _blocks(before: Sizes, after: Sizes) -> list[tuple[list[int], list[int]]]:
    """Pair runs of old dimensions with runs of new ones that hold as many positions; those of size 1 are in none."""
    old = [dim for dim, size in enumerate(before) if not _is_one(size)]
    new = [dim for dim, size in enumerate(after) if not _is_one(size)]
    front: list[tuple[list[int], list[int]]] = []
    back: list[tuple[list[int], list[int]]] = []
    while old and new and str(before[old[0]]) == str(after[new[0]]):
        front.append(([old.pop(0)], [new.pop(0)]))
    while old and new and str(before[old[-1]]) == str(after[new[-1]]):
        back.append(([old.pop()], [new.pop()]))
    middle = _divided(before, after, old, new) if old or new else []
    return [*front, *middle, *reversed(back)]


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _divided(before: Sizes, after: Sizes, old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    if not all(isinstance(size, int) for size in (*(before[d] for d in old), *(after[d] for d in new))):
        return _divided_from_end(before, after, old, new)
    blocks: list[tuple[list[int], list[int]]] = []
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (a := math.prod(before[d] for d in left)) != (b := math.prod(after[d] for d in right)):
            if a < b:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        blocks.append((left, right))
    return blocks


def _divided_from_end(before: Sizes, after: Sizes, old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    """Divide what lies behind the last dynamic dimension; the rest is one block."""
    blocks: list[tuple[list[int], list[int]]] = []
    while True:
        left: list[int] = []
        right: list[int] = []
        a = b = 1
        while not left or not right or a != b:
            side, sizes, chosen = (old, before, left) if a < b or not left else (new, after, right)
            if len(side) <= len(chosen) or not isinstance(sizes[side[-1 - len(chosen)]], int):
                return [(old, new), *reversed(blocks)]
            chosen.insert(0, side[-1 - len(chosen)])
            a, b = math.prod(before[d] for d in left), math.prod(after[d] for d in right)
        del old[-len(left) :], new[-len(right) :]
        blocks.append((left, right))


def _resized(name: str) -> Callable[[Shrink], None]:
    """Recompute the sizes that a call lists, one for each dimension of its result."""

    def resize(shrink: Shrink) -> None:
        sizes, result = shrink.argument(name), shrink.result
        assert isinstance(result, tuple)
        shrink.set(**{name: shrink.sizes(sizes, result)})

    return resize


def _unflattened(shrink: Shrink) -> None:
    sizes, result = shrink.argument("sizes"), shrink.result
    assert isinstance(result, tuple)
    dim = shrink.call.dim(len(result) - len(sizes) + 1)
    shrink.set(sizes=shrink.sizes(sizes, result[dim : dim + len(sizes)]))


def _like_other(call: Call) -> Labels:
    """The sizes are those of another tensor, which must shrink alike."""
    result = _reshape(call)
    call.unify_all(result, call.labels("other"))
    return result


def _permute(order_of: Callable[[Call, int], Sequence[int]]) -> ChannelRule:
    def relate(call: Call) -> Labels:
        labels = call.of(call.node.args[0])
        return tuple(labels[dim] for dim in order_of(call, len(labels)))

    return ChannelRule(relate)


def _swapped(first: str, second: str) -> Callable[[Call, int], list[int]]:
    def order(call: Call, rank: int) -> list[int]:
        dims = list(range(rank))
        a, b = call.dim(rank, first), call.dim(rank, second)
        dims[a], dims[b] = dims[b], dims[a]
        return dims

    return order


def _moved(call: Call, rank: int) -> list[int]:
    source, target = call["source"], call["destination"]
    sources, targets = ([source], [target]) if isinstance(source, int) else (source, target)
    moved = {to % rank: at % rank for at, to in zip(sources, targets, strict=True)}
    rest = iter(dim for dim in range(rank) if dim not in moved.values())
    return [moved[dim] if dim in moved else next(rest) for dim in range(rank)]


def _expand(call: Call) -> Labels:
    """Each position of a dimension that is made larger is new, and can go."""
    return _expanded(call, call.fresh)


def _expanded(call: Call, make: Callable[[Any], Label]) -> Labels:
    x, sizes = call.of(call.node.args[0]), shape_of(call.node.args[0])  # type: ignore[arg-type]
    added = len(call.shape) - len(x)
    result = [make(size) for size in call.shape[:added]]
    for label, old, new in zip(x, sizes, call.shape[added:], strict=True):
        if _is_one(old) and not _is_one(new):
            call.freeze(label, because="it is broadcast")
            result.append(make(new))
        else:
            result.append(label)
    return tuple(result)


def _expand_as(call: Call) -> Labels:
    result = _expanded(call, call.fresh)
    call.unify_all(result, call.labels("other"))
    return result


def _repeat(call: Call) -> Labels:
    """The number of copies stays, and every copy loses the same positions."""
    x, sizes = call.of(call.node.args[0]), shape_of(call.node.args[0])  # type: ignore[arg-type]
    rank = len(call.shape)
    x, sizes = (*map(fixed, [1] * (rank - len(x))), *x), (*[1] * (rank - len(sizes)), *sizes)
    for label, old, new in zip(x, sizes, call.shape, strict=True):
        if str(old) != str(new) and not isinstance(new, int):
            call.freeze(label, because="it is repeated a dynamic number of times")
    return tuple(
        label if str(old) == str(new) else np.tile(label, size_of(new) // max(len(label), 1))
        for label, old, new in zip(x, sizes, call.shape, strict=True)
    )


def _repeat_interleave(call: Call) -> Labels:
    """Position i becomes positions (i, 0), (i, 1), ...; copies can go if they go everywhere."""
    x, repeats = call.labels("self"), call["repeats"]
    if call["dim"] is None or not isinstance(repeats, int):
        raise CannotRelate("repeat_interleave of the flat tensor, or a computed number of times")
    dim = call.dim(len(x))
    copies = call.symbols.fresh(repeats)
    return (*x[:dim], merge(call.symbols, x[dim], copies), *x[dim + 1 :])


def _fewer_copies(shrink: Shrink) -> None:
    x, result = shrink.call.labels("self"), shrink.result
    assert isinstance(result, tuple)
    dim = shrink.call.dim(len(x))
    shrink.set(repeats=shrink.count(result[dim]) // max(shrink.count(x[dim]), 1))


def _stack(call: Call) -> Labels:
    tensors = call["tensors"]
    first = call.of(tensors[0])
    for tensor in tensors[1:]:
        call.unify_all(first, call.of(tensor))
    dim = call.dim(len(first) + 1)
    return (*first[:dim], fixed(len(tensors)), *first[dim:])


def _unbind(call: Call) -> list[Labels]:
    x = call.labels("self")
    dim = call.dim(len(x))
    call.freeze(x[dim], because="each position becomes a tensor")
    return [without(x, [dim]) for _ in x[dim]]


def _select(call: Call) -> Labels:
    x = call.labels("self")
    dim = call.dim(len(x))
    call.freeze(x[dim], because="one position is selected")
    return without(x, [dim])


RESHAPE = ChannelRule(_reshape, dynamic=True)

SHAPE_RULES: dict[Any, ChannelRule] = {
    aten.view.default: ChannelRule(_reshape, _resized("size"), dynamic=True),
    aten._unsafe_view.default: ChannelRule(_reshape, _resized("size"), dynamic=True),
    aten.reshape.default: ChannelRule(_reshape, _resized("shape"), dynamic=True),
    aten.flatten.using_ints: RESHAPE,
    aten.ravel.default: RESHAPE,
    aten.unflatten.int: ChannelRule(_reshape, _unflattened, dynamic=True),
    aten.squeeze.default: RESHAPE,
    aten.squeeze.dim: RESHAPE,
    aten.squeeze.dims: RESHAPE,
    aten.unsqueeze.default: RESHAPE,
    aten.reshape_as.default: ChannelRule(_like_other),
    aten.view_as.default: ChannelRule(_like_other),
    aten.permute.default: _permute(lambda call, rank: [dim % rank for dim in call["dims"]]),
    aten.transpose.int: _permute(_swapped("dim0", "dim1")),
    aten.swapdims.default: _permute(_swapped("dim0", "dim1")),
    aten.swapaxes.default: _permute(_swapped("axis0", "axis1")),
    aten.movedim.int: _permute(_moved),
    aten.movedim.intlist: _permute(_moved),
    aten.t.default: _permute(lambda call, rank: list(reversed(range(rank)))),
    aten.numpy_T.default: _permute(lambda call, rank: list(reversed(range(rank)))),
    aten.mT.default: _permute(lambda call, rank: [*range(rank - 2), rank - 1, rank - 2]),
    aten.expand.default: ChannelRule(_expand, _resized("size")),
    aten.broadcast_to.default: ChannelRule(_expand, _resized("size")),
    aten.expand_as.default: ChannelRule(_expand_as),
    aten.repeat.default: ChannelRule(_repeat),
    aten.tile.default: ChannelRule(_repeat),
    aten.repeat_interleave.self_int: ChannelRule(_repeat_interleave, _fewer_copies),
    aten.stack.default: ChannelRule(_stack),
    aten.unbind.int: ChannelRule(_unbind),
    aten.select.int: ChannelRule(_select),
}
