"""Views that keep elements in order or only permute or broadcast them, and values that are returned as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.onnx_rules.elementwise import table
from fxopt.export.onnx_rules.shapes import ints, move_dims, reshape, same_size, shape_value, size_of, unsqueeze

aten = torch.ops.aten

# The value of the first argument, whatever the others say (memory formats have no meaning in ONNX).
IDENTITIES = [
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.lift.default,
    aten.positive.default,
    aten.resolve_conj.default,
    aten.resolve_neg.default,
    aten.real.default,
]
# Reshapes whose sizes are arguments.
SIZED = [aten.view.default, aten.reshape.default, aten._unsafe_view.default]
# Reshapes whose sizes follow from the input.
RESHAPED = [
    aten.flatten.using_ints,
    aten.ravel.default,
    aten.atleast_1d.default,
    aten.atleast_2d.default,
    aten.atleast_3d.default,
]
LIKE = [aten.view_as.default, aten.reshape_as.default]


def identity(_: None) -> Rule:
    """Make the rule of an op that changes nothing."""
    return lambda g, self, *options: g.value(self)


def sized(_: None) -> Rule:
    """Make the rule of a reshape to given sizes."""
    return lambda g, self, size: reshape(g, self, size)


def reshaped(_: None) -> Rule:
    """Make the rule of a reshape whose result shape follows from the input's."""
    return lambda g, self, *options: reshape(g, self)


def like(_: None) -> Rule:
    """Make the rule of a reshape to the shape of another tensor."""

    def rule(g: OnnxGraph, self: fx.Node, other: fx.Node) -> str:
        symbolic = [size for size in g.val().shape if not isinstance(size, int)]
        return reshape(g, self) if len(symbolic) < 2 else g.op("Reshape", self, g.shape_of(other), allowzero=1)

    return rule


def unflatten(g: OnnxGraph, self: fx.Node, dim: int, sizes: list[Any]) -> str:
    """aten::unflatten.int(Tensor(a) self, int dim, SymInt[] sizes) -> Tensor(a)"""
    shape, dim = g.val(self).shape, dim % g.rank(self)
    after = [size if isinstance(size, int) else size_of(g, self, d) for d, size in enumerate(shape) if d > dim]
    return reshape(g, self, [*[0] * dim, *sizes, *after])


def squeeze(g: OnnxGraph, self: fx.Node, dim: Any = None) -> str:
    """aten::squeeze(Tensor(a) self) -> Tensor(a)
    aten::squeeze.dim(Tensor(a) self, int dim) -> Tensor(a)
    aten::squeeze.dims(Tensor(a) self, int[] dim) -> Tensor(a)
    """
    shape, rank = g.val(self).shape, g.rank(self)
    dims = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = sorted(d % rank for d in dims if rank and isinstance(shape[d], int) and shape[d] == 1)
    return g.op("Squeeze", self, ints(g, axes)) if axes else g.value(self)


def unsqueeze_dim(g: OnnxGraph, self: fx.Node, dim: int) -> str:
    """aten::unsqueeze(Tensor(a) self, int dim) -> Tensor(a)"""
    return unsqueeze(g, self, dim)


def transpose(g: OnnxGraph, self: fx.Node, dim0: int, dim1: int) -> str:
    """aten::transpose.int(Tensor(a) self, int dim0, int dim1) -> Tensor(a)
    aten::swapaxes(Tensor(a) self, int axis0, int axis1) -> Tensor(a)
    aten::swapdims(Tensor(a) self, int dim0, int dim1) -> Tensor(a)
    """
    order = list(range(g.rank(self)))
    if order:
        order[dim0], order[dim1] = order[dim1], order[dim0]
    return move_dims(g, self, order)


def transpose_last(g: OnnxGraph, self: fx.Node) -> str:
    """aten::t(Tensor(a) self) -> Tensor(a)
    aten::mT(Tensor(a) self) -> Tensor(a)
    aten::adjoint(Tensor(a) self) -> Tensor(a)
    """
    return transpose(g, self, -2, -1) if g.rank(self) > 1 else g.value(self)


def reverse_dims(g: OnnxGraph, self: fx.Node) -> str:
    """aten::numpy_T(Tensor(a) self) -> Tensor(a)"""
    return move_dims(g, self, list(range(g.rank(self)))[::-1])


def permute(g: OnnxGraph, self: fx.Node, dims: list[int]) -> str:
    """aten::permute(Tensor(a) self, int[] dims) -> Tensor(a)"""
    return move_dims(g, self, [dim % g.rank(self) for dim in dims])


def movedim(g: OnnxGraph, self: fx.Node, source: Any, destination: Any) -> str:
    """aten::movedim.int(Tensor(a) self, int source, int destination) -> Tensor(a)
    aten::movedim.intlist(Tensor(a) self, int[] source, int[] destination) -> Tensor(a)
    aten::moveaxis.int(Tensor(a) self, int source, int destination) -> Tensor(a)
    aten::moveaxis.intlist(Tensor(a) self, int[] source, int[] destination) -> Tensor(a)
    """
    rank = g.rank(self)
    sources = [dim % rank for dim in ([source] if isinstance(source, int) else source)]
    places = [dim % rank for dim in ([destination] if isinstance(destination, int) else destination)]
    others = iter(dim for dim in range(rank) if dim not in sources)
    moved = dict(zip(places, sources, strict=True))
    return move_dims(g, self, [moved[place] if place in moved else next(others) for place in range(rank)])


def expand(g: OnnxGraph, self: fx.Node, size: Sequence[Any], implicit: bool = False) -> str:
    """aten::expand(Tensor(a) self, SymInt[] size, *, bool implicit=False) -> Tensor(a)
    aten::broadcast_to(Tensor(a) self, SymInt[] size) -> Tensor(a)
    """
    return expanded(
        g, self, [new if isinstance(new, int) else given for new, given in zip(g.val().shape, size, strict=True)]
    )


def expanded(g: OnnxGraph, node: fx.Node, sizes: Sequence[Any], sources: Sequence[fx.Node] = ()) -> str:
    """Broadcast a tensor to sizes (ints, nodes, or symbolic integers that `sources` have); kept dimensions are 1."""
    shape = g.val(node).shape
    offset = len(sizes) - len(shape)
    fakes = [g.val(size) if isinstance(size, fx.Node) else size for size in sizes]
    target = [
        1 if dim >= offset and (given == -1 or same_size(shape[dim - offset], fake)) else given
        for dim, (given, fake) in enumerate(zip(sizes, fakes, strict=True))
    ]
    if all(isinstance(size, int) and size == 1 for size in target):
        return unsqueeze(g, node, *range(offset)) if offset else g.value(node)
    return g.op("Expand", node, shape_value(g, target, sources))


def expand_as(g: OnnxGraph, self: fx.Node, other: fx.Node) -> str:
    """aten::expand_as(Tensor(a) self, Tensor other) -> Tensor(a)"""
    return expanded(g, self, g.val().shape, [other])


def broadcast_tensors(g: OnnxGraph, tensors: list[fx.Node]) -> tuple[str, ...]:
    """aten::broadcast_tensors(Tensor[] tensors) -> Tensor[]"""
    return tuple(expanded(g, node, fake.shape, tensors) for node, fake in zip(tensors, g.val(), strict=True))


def meshgrid(g: OnnxGraph, tensors: list[fx.Node], indexing: str = "ij") -> tuple[str, ...]:
    """aten::meshgrid(Tensor[] tensors) -> Tensor[]
    aten::meshgrid.indexing(Tensor[] tensors, *, str indexing) -> Tensor[]
    """
    places = list(range(len(tensors)))
    if indexing == "xy" and len(tensors) > 1:
        places[0], places[1] = 1, 0
    shape = g.val()[0].shape
    results = []
    for node, place in zip(tensors, places, strict=True):
        row = g.op("Reshape", node, ints(g, [-1 if dim == place else 1 for dim in range(len(tensors))]))
        target = [1 if dim == place else size for dim, size in enumerate(shape)]
        results.append(g.op("Expand", row, shape_value(g, target, tensors)))
    return tuple(results)


RULES: dict[Any, Rule] = {
    **table(dict.fromkeys(IDENTITIES), identity),
    **table(dict.fromkeys(SIZED), sized),
    **table(dict.fromkeys(RESHAPED), reshaped),
    **table(dict.fromkeys(LIKE), like),
    aten.unflatten.int: unflatten,
    aten.squeeze.default: squeeze,
    aten.squeeze.dim: squeeze,
    aten.squeeze.dims: squeeze,
    aten.unsqueeze.default: unsqueeze_dim,
    aten.transpose.int: transpose,
    aten.swapaxes.default: transpose,
    aten.swapdims.default: transpose,
    aten.t.default: transpose_last,
    aten.mT.default: transpose_last,
    aten.adjoint.default: transpose_last,
    aten.numpy_T.default: reverse_dims,
    aten.permute.default: permute,
    aten.movedim.int: movedim,
    aten.movedim.intlist: movedim,
    aten.moveaxis.int: movedim,
    aten.moveaxis.intlist: movedim,
    aten.expand.default: expand,
    aten.broadcast_to.default: expand,
    aten.expand_as.default: expand_as,
    aten.broadcast_tensors.default: broadcast_tensors,
    aten.meshgrid.default: meshgrid,
    aten.meshgrid.indexing: meshgrid,
}
