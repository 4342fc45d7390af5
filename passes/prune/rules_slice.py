"""Rows of ops that take positions out of tensors or put them together: cat, split, slice, index, pad, roll."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxopt.passes.prune.rule import (
    Call,
    CannotRelate,
    ChannelRule,
    Labels,
    Shrink,
    kept_before,
    shape_of,
    size_of,
    without,
)
from fxopt.passes.prune.rules_index import select_index
from fxopt.passes.prune.symbols import Label, Mask, fixed

aten = torch.ops.aten


def _cat(call: Call) -> Labels:
    tensors = call["tensors"]
    parts = [call.of(tensor) for tensor in tensors]
    if len({len(part) for part in parts}) > 1:
        raise CannotRelate("a cat with an empty tensor of another rank")
    dim = call.dim(len(parts[0]))
    for part in parts[1:]:
        call.unify_all(without(parts[0], [dim]), without(part, [dim]))
    return (*parts[0][:dim], np.concatenate([part[dim] for part in parts]), *parts[0][dim + 1 :])


def _pieces(call: Call) -> list[Labels]:
    """Split into tensors of the sizes that the results have."""
    x = call.labels("self")
    dim = call.dim(len(x))
    lengths = [size_of(value.shape[dim]) for value in call.node.meta["val"]]
    return [(*x[:dim], x[dim][a:b], *x[dim + 1 :]) for a, b in itertools.pairwise([0, *itertools.accumulate(lengths)])]


def _smaller_pieces(shrink: Shrink) -> None:
    """Every kind of split becomes a split into listed sizes, where a piece shrinks."""
    call, result = shrink.call, shrink.result
    assert isinstance(result, list)
    dim = call.dim(len(call.labels("self")))
    if any(shrink.cuts(piece[dim]) for piece in result):
        sizes = [shrink.count(piece[dim]) for piece in result]
        shrink.become(aten.split_with_sizes.default, shrink.argument("self"), sizes, dim)


def _bounds(call: Call, length: int) -> slice | None:
    """Return the slice of a call as python means it; None if a bound is computed and not the whole."""
    start, end, step = (call[name] for name in ("start", "end", "step"))
    if not all(value is None or isinstance(value, int) for value in (start, end, step)):
        return None
    return slice(*slice(start, end, step).indices(length))


def _slice(call: Call) -> Labels:
    x = call.labels("self")
    dim = call.dim(len(x))
    bounds = _bounds(call, len(x[dim]))
    if bounds is None or not isinstance(shape_of(call["self"])[dim], int):
        call.freeze(x[dim], because="it is sliced at a computed place")
        return (*x[:dim], call.fixed_result()[dim], *x[dim + 1 :])
    return (*x[:dim], x[dim][bounds], *x[dim + 1 :])


def _new_bounds(shrink: Shrink, mask: Mask, dim: int) -> tuple[int, int, int] | None:
    """Return start, end and step of what stays of a slice; None if that is no slice."""
    bounds = _bounds(shrink.call, len(mask))
    assert bounds is not None
    picked = np.arange(len(mask))[bounds]
    picked = np.cumsum(mask)[picked[mask[picked]]] - 1
    if len(picked) == 0:
        return 0, 0, 1
    step = int(picked[1] - picked[0]) if len(picked) > 1 else 1
    if (np.diff(picked) != step).any():
        return None
    return int(picked[0]), int(picked[-1]) + 1, step


def _move_bounds(shrink: Shrink) -> None:
    x = shrink.call.labels("self")
    dim = shrink.call.dim(len(x))
    if not shrink.cuts(x[dim]):
        return
    mask = shrink.keep(x[dim])
    bounds = _new_bounds(shrink, mask, dim)
    if bounds is not None:
        shrink.set(start=bounds[0], end=bounds[1], step=bounds[2])
        return
    picked = np.arange(len(mask))[_bounds(shrink.call, len(mask))]
    index = torch.from_numpy(np.cumsum(mask)[picked[mask[picked]]] - 1)
    select_index(shrink, dim, index)


def _narrow(call: Call) -> Labels:
    x, start, length = call.labels("self"), call["start"], call["length"]
    dim = call.dim(len(x))
    if not isinstance(start, int) or not isinstance(length, int):
        call.freeze(x[dim], because="it is sliced at a computed place")
        return (*x[:dim], call.fixed_result()[dim], *x[dim + 1 :])
    start %= max(len(x[dim]), 1)
    return (*x[:dim], x[dim][start : start + length], *x[dim + 1 :])


def _move_start(shrink: Shrink) -> None:
    x, result = shrink.call.labels("self"), shrink.result
    assert isinstance(result, tuple)
    dim = shrink.call.dim(len(x))
    if shrink.cuts(x[dim]):
        start = shrink.call["start"] % len(x[dim])
        shrink.set(start=kept_before(shrink.keep(x[dim]), start), length=shrink.count(result[dim]))


def _slice_scatter(call: Call) -> Labels:
    x, source = call.labels("self"), call.labels("src")
    dim = call.dim(len(x))
    bounds = _bounds(call, len(x[dim]))
    if bounds is None or call["step"] != 1:
        raise CannotRelate("a slice_scatter at a computed place, or with steps")
    call.unify_all((*x[:dim], x[dim][bounds], *x[dim + 1 :]), source)
    return x


def _move_scatter(shrink: Shrink) -> None:
    x = shrink.call.labels("self")
    dim = shrink.call.dim(len(x))
    if shrink.cuts(x[dim]):
        bounds = _new_bounds(shrink, shrink.keep(x[dim]), dim)
        assert bounds is not None
        shrink.set(start=bounds[0], end=bounds[1])


def _select_scatter(call: Call) -> Labels:
    x, source = call.labels("self"), call.labels("src")
    dim = call.dim(len(x))
    call.freeze(x[dim], because="one position is replaced")
    call.unify_all(without(x, [dim]), source)
    return x


def _glu(call: Call) -> Labels:
    x = call.labels("self")
    dim = call.dim(len(x))
    half = len(x[dim]) // 2
    call.unify(x[dim][:half], x[dim][half:])
    return (*x[:dim], x[dim][:half], *x[dim + 1 :])


def _pad(call: Call) -> Labels:
    """Padding is new and stays. What is mirrored or repeated at an end depends on what lies there, so it stays too."""
    x, amounts = list(call.labels("self")), list(call["pad"])
    constant = call.node.target is aten.constant_pad_nd.default or call["mode"] == "constant"
    result = call.fixed_result()
    for number in range(len(amounts) // 2):
        dim, before, after = len(x) - 1 - number, amounts[2 * number], amounts[2 * number + 1]
        if before == 0 == after:
            continue
        if not constant or not isinstance(before, int) or not isinstance(after, int):
            call.freeze(x[dim], because="it is padded")
            x[dim] = result[dim]
        else:
            x[dim] = _padded(x[dim], before, after)
    return tuple(x)


def _padded(label: Label, before: int, after: int) -> Label:
    cut = label[max(-before, 0) : len(label) - max(-after, 0)]
    return np.concatenate([fixed(max(before, 0)), cut, fixed(max(after, 0))])


def _smaller_crop(shrink: Shrink) -> None:
    """Where a pad crops, it crops what stays of that end."""
    x, amounts = shrink.call.labels("self"), list(shrink.call["pad"])
    new = list(shrink.argument("pad"))
    for number, amount in enumerate(amounts):
        mask = shrink.keep(x[len(x) - 1 - number // 2])
        if isinstance(amount, int) and amount < 0:
            new[number] = -kept_before(mask[:: 1 if number % 2 == 0 else -1], -amount)
    shrink.set(pad=new)


def _roll(call: Call) -> Labels:
    x = list(call.labels("self"))
    if not call["dims"] or not all(isinstance(shift, int) for shift in call["shifts"]):
        raise CannotRelate("a roll of the flat tensor, or by a computed shift")
    for dim, shift in zip(call["dims"], call["shifts"], strict=True):
        x[dim] = np.roll(x[dim], shift)
    return tuple(x)


def _smaller_shift(shrink: Shrink) -> None:
    """What wraps around is what stays of the last positions."""
    x, shifts = shrink.call.labels("self"), []
    for dim, shift in zip(shrink.call["dims"], shrink.call["shifts"], strict=True):
        mask = shrink.keep(x[dim])
        shifts.append(kept_before(mask[::-1], shift % len(mask)) if not mask.all() else shift)
    shrink.set(shifts=shifts)


def _flip(call: Call) -> Labels:
    x = call.labels("self")
    flipped = call.dims(len(x), "dims")
    return tuple(label[::-1].copy() if dim in flipped else label for dim, label in enumerate(x))


def _meshgrid(call: Call) -> list[Labels]:
    sizes: Sequence[Tensor] = call.node.meta["val"]
    for tensor in call.tensors:
        call.freeze(*call.of(tensor), because="it makes a grid")
    return [tuple(fixed(size_of(size)) for size in value.shape) for value in sizes]


PIECES = ChannelRule(_pieces, _smaller_pieces)

SLICE_RULES: dict[Any, ChannelRule] = {
    aten.cat.default: ChannelRule(_cat),
    aten.concat.default: ChannelRule(_cat),
    aten.split.Tensor: PIECES,
    aten.split.sizes: PIECES,
    aten.split_with_sizes.default: PIECES,
    aten.chunk.default: PIECES,
    aten.tensor_split.sections: PIECES,
    aten.tensor_split.indices: PIECES,
    aten.slice.Tensor: ChannelRule(_slice, _move_bounds),
    aten.narrow.default: ChannelRule(_narrow, _move_start),
    aten.slice_scatter.default: ChannelRule(_slice_scatter, _move_scatter),
    aten.select_scatter.default: ChannelRule(_select_scatter),
    aten.glu.default: ChannelRule(_glu),
    aten.pad.default: ChannelRule(_pad, _smaller_crop),
    aten.constant_pad_nd.default: ChannelRule(_pad, _smaller_crop),
    aten.roll.default: ChannelRule(_roll, _smaller_shift),
    aten.flip.default: ChannelRule(_flip),
    aten.meshgrid.indexing: ChannelRule(_meshgrid),
    aten.meshgrid.default: ChannelRule(_meshgrid),
}
