"""Rows of ops along dimensions: reductions, softmax, sorting, pooling, resizing."""

from __future__ import annotations

from typing import Any

import torch

from fxopt.graph.rewrite import argument_names
from fxopt.passes.prune.rule import Call, ChannelRule, Labels, Value, without
from fxopt.passes.prune.symbols import fixed

aten = torch.ops.aten


def _gone(call: Call, dims: list[int]) -> Labels:
    """Return the labels of a result from which the reduced dimensions are gone, or in which they have size 1."""
    x = call.of(call.node.args[0])
    names = argument_names(call.node)
    if "keepdim" in names and call["keepdim"]:
        return tuple(fixed(1) if dim in dims else label for dim, label in enumerate(x))
    return without(x, dims)


def _reduced_dims(call: Call) -> list[int]:
    names = argument_names(call.node)
    rank = len(call.of(call.node.args[0]))
    return call.dims(rank) if "dim" in names else list(range(rank))


def _summed(call: Call) -> Labels:
    """Positions that are 0 add nothing: exact."""
    return _gone(call, _reduced_dims(call))


def _averaged(call: Call) -> Labels:
    """An average over fewer positions is another one, of those that stay."""
    x, dims = call.of(call.node.args[0]), _reduced_dims(call)
    call.inexact.extend(x[dim] for dim in dims)
    return _gone(call, dims)


def _picked(call: Call) -> Value:
    """Any position may be the result, so all stay."""
    x, dims = call.of(call.node.args[0]), _reduced_dims(call)
    call.freeze(*(x[dim] for dim in dims), because="one position of it is picked")
    result = _gone(call, dims)
    return [result, result] if isinstance(call.node.meta["val"], (tuple, list)) else result


def _vector_norm(call: Call) -> Labels:
    """A norm of positive order is a sum; others may pick."""
    order = call["ord"]
    if not isinstance(order, (int, float)) or not 0 < order < float("inf"):
        result = _picked(call)
        assert isinstance(result, tuple)
        return result
    return _summed(call)


def _whole(name: str = "dim") -> ChannelRule:
    """An op in which every position along a dimension depends on all others: it stays, the other dimensions pass."""

    def relate(call: Call) -> Value:
        x = call.of(call.node.args[0])
        dim = call.dim(len(x), name)
        call.freeze(x[dim], because="the op runs along it")
        return x

    return ChannelRule(relate)


def _sorted(call: Call) -> list[Labels]:
    """As above; the results, values and indices, may have fewer positions."""
    x = call.labels("self")
    dim = call.dim(len(x))
    call.freeze(x[dim], because="the op runs along it")
    length = call.node.meta["val"][0].shape[dim]
    label = fixed(length) if isinstance(length, int) else fixed(len(x[dim]))
    return [(*x[:dim], label, *x[dim + 1 :])] * 2


def _differences(call: Call) -> Labels:
    """Each result depends on neighbours, and there are fewer of them."""
    x = call.labels("self")
    dim = call.dim(len(x))
    call.freeze(x[dim], because="the op runs along it")
    for name in ("prepend", "append"):
        more = call.optional(name)
        if more is not None:
            call.freeze(more[dim], because="the op runs along it")
            call.unify_all(without(x, [dim]), without(more, [dim]))
    return (*x[:dim], call.fixed_result()[dim], *x[dim + 1 :])


def _spatial(count: int) -> ChannelRule:
    """An op on the last dimensions, which stay; those in front, the channels among them, pass."""

    def relate(call: Call) -> Value:
        x = call.of(call.node.args[0])
        call.freeze(*x[-count:], because="the op runs along it")
        values = call.node.meta["val"]
        results = values if isinstance(values, (tuple, list)) else [values]
        labels = [(*x[:-count], *_sizes(value.shape[-count:])) for value in results]
        return labels if isinstance(values, (tuple, list)) else labels[0]

    return ChannelRule(relate)


def _sizes(shape: Any) -> Labels:
    return tuple(fixed(size if isinstance(size, int) else int(size.node.hint)) for size in shape)


def _sampled(call: Call) -> Labels:
    x = call.labels("input")
    call.freeze(*x[2:], *call.labels("grid"), because="it is sampled")
    return (*x[:2], *call.fixed_result()[2:])


SUM, AVERAGE, PICK = ChannelRule(_summed), ChannelRule(_averaged), ChannelRule(_picked)

REDUCE_RULES: dict[Any, ChannelRule] = {
    aten.sum.default: SUM,
    aten.sum.dim_IntList: SUM,
    aten.linalg_vector_norm.default: ChannelRule(_vector_norm),
    aten.mean.default: AVERAGE,
    aten.mean.dim: AVERAGE,
    aten.var.correction: AVERAGE,
    aten.var.dim: AVERAGE,
    aten.std.correction: AVERAGE,
    aten.std.dim: AVERAGE,
    aten.amax.default: PICK,
    aten.amin.default: PICK,
    aten.max.default: PICK,
    aten.max.dim: PICK,
    aten.min.default: PICK,
    aten.min.dim: PICK,
    aten.argmax.default: PICK,
    aten.argmin.default: PICK,
    aten.any.default: PICK,
    aten.any.dim: PICK,
    aten.all.default: PICK,
    aten.all.dim: PICK,
    aten.logsumexp.default: PICK,
    aten.prod.dim_int: PICK,
    aten.softmax.int: _whole(),
    aten._softmax.default: _whole(),
    aten.log_softmax.int: _whole(),
    aten._log_softmax.default: _whole(),
    aten.cumsum.default: _whole(),
    aten.cumprod.default: _whole(),
    aten.diff.default: ChannelRule(_differences),
    aten.topk.default: ChannelRule(_sorted),
    aten.sort.default: ChannelRule(_sorted),
    aten.max_pool1d.default: _spatial(1),
    aten.max_pool2d.default: _spatial(2),
    aten.max_pool3d.default: _spatial(3),
    aten.avg_pool1d.default: _spatial(1),
    aten.avg_pool2d.default: _spatial(2),
    aten.avg_pool3d.default: _spatial(3),
    aten.adaptive_avg_pool1d.default: _spatial(1),
    aten.adaptive_avg_pool2d.default: _spatial(2),
    aten.adaptive_avg_pool3d.default: _spatial(3),
    aten.adaptive_max_pool1d.default: _spatial(1),
    aten.adaptive_max_pool2d.default: _spatial(2),
    aten.max_pool2d_with_indices.default: _spatial(2),
    aten.upsample_nearest1d.vec: _spatial(1),
    aten.upsample_nearest2d.vec: _spatial(2),
    aten.upsample_nearest3d.vec: _spatial(3),
    aten.upsample_linear1d.vec: _spatial(1),
    aten.upsample_bilinear2d.vec: _spatial(2),
    aten.upsample_bicubic2d.vec: _spatial(2),
    aten.upsample_trilinear3d.vec: _spatial(3),
    aten._upsample_bilinear2d_aa.vec: _spatial(2),
    aten._upsample_bicubic2d_aa.vec: _spatial(2),
    aten.grid_sampler.default: ChannelRule(_sampled),
}
