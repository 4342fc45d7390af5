"""Calls that return their input are dropped, and those that undo or repeat each other become one.

dropout(x) in inference, x + 0, x * 1, x[:], x.to(float32) of float32 -> x
permute(permute(x, p), q) -> permute(x, [p[i] for i in q])
reshape(reshape(x, a), b) -> reshape(x, b)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument, same_metadata
from fxopt.passes.cleanup.purity import is_training

aten = torch.ops.aten
Op = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """What a call becomes in its place; the value keeps its shape and dtype."""

    op: Op
    args: tuple[Any, ...]


Simpler = fx.Node | Call | None


@dataclass(frozen=True)
class DropInferenceNoOps:
    """Drop calls that do nothing in inference. Values stay exactly the same; their layout in memory may differ.

    Dropped:
    1. dropout in inference mode, and with probability 0.
    2. alias, detach, clone, contiguous, lift_fresh_copy.
    3. to, type_as: to the dtype and device that the tensor has.
    4. slice, expand, repeat, pad and the like, if they keep the shape.
    5. view, reshape, flatten, squeeze and the like, if the shape is the same as before.
    6. permute and transpose that keep the order of the dimensions.
    7. x + 0, x - 0, x * 1, x / 1, x ** 1 with a number, unless the dtype changes.
    Made one:
    8. permute and transpose in a row, dropped if they undo each other.
    9. reshape after any reshaping: the first has no effect; dropped if the shape is that before the first.
    10. view is spelled reshape, so that the layout that contiguous made is not needed; so are view_as and reshape_as,
        so that they do not keep another value in use.
    Left alone:
    11. dropout in training mode.
    12. Calls that change the dtype, broadcast, or cut something off.
    13. clone and contiguous in a Program that reads raw strides (as_strided, view as another dtype).
    """

    def __call__(self, program: Program) -> Program:
        """Return the simpler Program, or `program` itself if every call does something."""
        rows = LAYOUT_READING_ROWS if any(node.target in READS_STRIDES for node in program.graph.nodes) else ROWS
        if not any(_simpler(node, rows) is not None for node in program.graph.nodes):
            return program
        edit = Edit(program, by=self)
        for node in edit.calls(*rows):
            while not node._erased and (simpler := _simpler(node, rows)) is not None:
                if isinstance(simpler, fx.Node):
                    edit.replace(node, simpler)
                    break
                node.target, node.args, node.kwargs = simpler.op, simpler.args, {}
        return edit.finish()


def _simpler(node: fx.Node, rows: dict[Op, Callable[[fx.Node], Simpler]]) -> Simpler:
    row = rows.get(node.target) if node.op == "call_function" else None  # type: ignore[arg-type]
    return row(node) if row is not None else None


def same_tensor(left: fx.Node, right: fx.Node) -> bool:
    """Say whether two values have the same shape, dtype and device."""
    a, b = left.meta.get("val"), right.meta.get("val")
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.device == b.device and same_metadata(a, b)


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.args else next(iter(node.kwargs.values()))
    assert isinstance(source, fx.Node)
    return source


def _if_same(node: fx.Node) -> Simpler:
    """Drop a call that can change only shape, dtype, device or layout, if it changes none of the first three."""
    return _source(node) if same_tensor(node, _source(node)) else None


def _dropout(node: fx.Node) -> Simpler:
    return None if is_training(node) and argument(node, "p") != 0 else _source(node)


def _pad(node: fx.Node) -> Simpler:
    return _source(node) if all(amount == 0 for amount in argument(node, "pad")) else None


def _neutral(name: str, value: float) -> Callable[[fx.Node], Simpler]:
    """Drop a call whose argument `name` is the number that changes nothing."""

    def row(node: fx.Node) -> Simpler:
        number, source = argument(node, name), _source_of_scalar_op(node, name)
        if source is None or isinstance(number, (bool, fx.Node)) or number != value:
            return None
        return source if same_tensor(node, source) else None

    return row


def _source_of_scalar_op(node: fx.Node, name: str) -> fx.Node | None:
    source = argument(node, "self")
    return source if isinstance(source, fx.Node) and name != "self" else None


RESHAPES = {
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.view_as.default,
    aten.reshape_as.default,
}  # fmt: skip
EXPLICIT_RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}


def _reshape(node: fx.Node) -> Simpler:
    source = root = _source(node)
    while root.target in RESHAPES and root.op == "call_function":
        root = _source(root)
        if same_tensor(node, root):
            return root
    if same_tensor(node, source):
        return source
    if node.target in (aten.view_as.default, aten.reshape_as.default):
        sizes = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
        return Call(aten.reshape.default, (root, sizes)) if sizes.count(-1) <= 1 else None
    if node.target in EXPLICIT_RESHAPES and (root is not source or node.target is not aten.reshape.default):
        return Call(aten.reshape.default, (root, node.args[1] if len(node.args) > 1 else argument(node, "shape")))
    return None


ORDERS: dict[Op, Callable[[fx.Node, int], list[int]]] = {
    aten.permute.default: lambda node, ndim: [int(dim) % ndim for dim in argument(node, "dims")],
    aten.transpose.int: lambda node, ndim: _swapped(ndim, argument(node, "dim0"), argument(node, "dim1")),
    aten.swapaxes.default: lambda node, ndim: _swapped(ndim, argument(node, "axis0"), argument(node, "axis1")),
    aten.swapdims.default: lambda node, ndim: _swapped(ndim, argument(node, "dim0"), argument(node, "dim1")),
    aten.t.default: lambda node, ndim: list(range(ndim))[::-1],
    aten.numpy_T.default: lambda node, ndim: list(range(ndim))[::-1],
    aten.mT.default: lambda node, ndim: _swapped(ndim, -1, -2),
}


def _swapped(ndim: int, first: int, second: int) -> list[int]:
    order = list(range(ndim))
    if ndim:
        order[first], order[second] = order[second], order[first]
    return order


def _order(node: fx.Node) -> list[int] | None:
    """Return the order of the dimensions that a transposing call gives; None for any other node."""
    order = ORDERS.get(node.target) if node.op == "call_function" else None  # type: ignore[arg-type]
    return order(node, node.meta["val"].ndim) if order is not None else None


def _transpose(node: fx.Node) -> Simpler:
    order, source = _order(node), _source(node)
    assert order is not None
    identity, inner = list(range(len(order))), _order(source)
    if order == identity:
        return source
    if inner is None:
        return None
    composed = [inner[dim] for dim in order]
    return _source(source) if composed == identity else Call(aten.permute.default, (_source(source), composed))


# One row an op: what the call can be replaced by.
LAYOUT_READING_ROWS: dict[Op, Callable[[fx.Node], Simpler]] = {
    aten.dropout.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.alpha_dropout.default: _dropout,
    aten.alias.default: _if_same,
    aten.detach.default: _if_same,
    aten.lift_fresh_copy.default: _if_same,
    aten.slice.Tensor: _if_same,  # with a step, the shape stays the same only if there is one element
    aten.expand.default: _if_same,
    aten.expand_as.default: _if_same,
    aten.broadcast_to.default: _if_same,
    aten.repeat.default: _if_same,
    aten.tile.default: _if_same,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.add.Tensor: _neutral("other", 0),
    aten.add.Scalar: _neutral("other", 0),
    aten.sub.Tensor: _neutral("other", 0),
    aten.sub.Scalar: _neutral("other", 0),
    aten.mul.Tensor: _neutral("other", 1),
    aten.mul.Scalar: _neutral("other", 1),
    aten.div.Tensor: _neutral("other", 1),
    aten.div.Scalar: _neutral("other", 1),
    aten.pow.Tensor_Scalar: _neutral("exponent", 1),
    **dict.fromkeys(ORDERS, _transpose),
}
# These change the layout at most, which nothing can see once every view is a reshape.
ROWS: dict[Op, Callable[[fx.Node], Simpler]] = {
    **LAYOUT_READING_ROWS,
    aten.clone.default: _if_same,
    aten.contiguous.default: _if_same,
    aten.to.dtype: _if_same,
    aten.to.device: _if_same,
    aten.to.dtype_layout: _if_same,
    aten.to.other: _if_same,
    aten.type_as.default: _if_same,
    **dict.fromkeys(RESHAPES, _reshape),
}
READS_STRIDES = {aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default, aten.view_as_real.default}
