"""In-place ops become functional: x.relu_() -> relu(x), y[:, 0] = v -> select_scatter(y, v).

Every later read of a changed tensor, or of another view of the same storage, is redirected to a new value. Which
nodes share storage is read off the fake tensors of the capture. Writes to buffers and inputs are not kept: what the
forward pass returns is the same, the state after it is not, and the caller gets a note for each.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import CaptureError, where
from fxopt.graph.rewrite import fake_value

aten = torch.ops.aten
Op = Callable[..., Any]

# Functional forms whose name is not simply the in-place one without its underscore.
FUNCTIONAL_FORM: dict[Op, Op] = {
    aten.detach_.default: aten.alias.default,
    aten.fill_.Scalar: aten.full_like.default,
    aten.zero_.default: aten.zeros_like.default,
    aten.dropout_.default: aten.dropout.default,
    aten.__iand__.Tensor: aten.bitwise_and.Tensor,
    aten.__ior__.Tensor: aten.bitwise_or.Tensor,
    aten.__ixor__.Tensor: aten.bitwise_xor.Tensor,
    aten.__iand__.Scalar: aten.bitwise_and.Scalar,
    aten.__ior__.Scalar: aten.bitwise_or.Scalar,
    aten.__ixor__.Scalar: aten.bitwise_xor.Scalar,
}

# How a write to a view becomes a new value of its base. Partial views have a scatter op with the view's own arguments.
SCATTER: dict[Op, Op] = {
    aten.select.int: aten.select_scatter.default,
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
}
# Views that keep all elements in order: the base is a reshape of the view.
RESHAPING_VIEWS = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.default, aten.squeeze.dims, aten._unsafe_view.default, aten.unflatten.int, aten.view_as.default,
    aten.reshape_as.default,
}  # fmt: skip
# Views that undo themselves, with the same arguments.
SWAPS = {
    aten.transpose.int, aten.t.default, aten.mT.default, aten.mH.default, aten.numpy_T.default, aten.adjoint.default,
    aten.swapaxes.default, aten.swapdims.default,
}  # fmt: skip
# Views that are the base itself.
SAME_VIEWS = {
    aten.alias.default, aten.detach.default, aten.contiguous.default, aten.to.dtype, aten.to.device,
    aten.to.dtype_layout, aten.dropout.default, aten.lift_fresh_copy.default, aten.type_as.default,
}  # fmt: skip


def functional_form(op: Op) -> Op | None:
    """Return the functional op of an in-place op, or None if `op` is no in-place op."""
    if not isinstance(op, torch._ops.OpOverload) or not op._schema.is_mutable:
        return None
    if op in FUNCTIONAL_FORM:
        return FUNCTIONAL_FORM[op]
    packet = op._schema.name.removeprefix("aten::").rstrip("_")
    form = getattr(getattr(aten, packet, None), op._overloadname, None)
    return None if form is None or form._schema.is_mutable else form


def functionalize(graph: fx.Graph) -> tuple[fx.Graph, list[str]]:
    """Return the graph without in-place ops, and the names of inputs and tensors whose update is not kept.

    Raises CaptureError for an in-place op without functional form, or a write through a view that has no inverse.
    """
    if not any(is_inplace(node) for node in graph.nodes):
        return graph, []
    return _Functionalizer(graph).run()


def is_inplace(node: fx.Node) -> bool:
    """Say whether a node calls an op that changes one of its arguments."""
    target = node.target
    return node.op == "call_function" and isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _is_whole(view: fx.Node, base: fx.Node) -> bool:
    """Say whether an expand expands nothing."""
    same = str(tuple(view.meta["val"].shape)) == str(tuple(base.meta["val"].shape))
    return same and view.target in (aten.expand.default, aten.expand_as.default)


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


class _Functionalizer:
    """One walk over the old graph: `env` maps each old node to the new node that holds its value now."""

    def __init__(self, graph: fx.Graph) -> None:
        self.old = graph
        self.new = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.aliases: dict[int, list[fx.Node]] = defaultdict(list)
        position = {node: number for number, node in enumerate(graph.nodes)}
        self.last_use = {node: max((position[user] for user in node.users), default=-1) for node in graph.nodes}
        self.position = position

    def run(self) -> tuple[fx.Graph, list[str]]:
        written: dict[str, None] = {}
        for node in self.old.nodes:
            if is_inplace(node):
                root = self._write(node)
                if root.op in ("placeholder", "get_attr") and node.target is not aten.detach_.default:
                    written[str(root.target)] = None
            else:
                self.env[node] = self.new.node_copy(node, self.env.__getitem__)
            if (storage := _storage(node)) is not None:
                self.aliases[storage].append(node)
        return self.new, list(written)

    def _base(self, node: fx.Node) -> fx.Node | None:
        """Return the old node that `node` is a view of (it shares its storage), or None."""
        if node.op != "call_function" or not node.all_input_nodes or node.target is aten.lift_fresh_copy.default:
            return None  # lift_fresh_copy copies, although its fake tensor does not
        source = node.all_input_nodes[0]
        if node.target is operator.getitem:
            source = source.all_input_nodes[0]
        storage = _storage(node)
        return source if storage is not None and _storage(source) == storage else None

    def _write(self, node: fx.Node) -> fx.Node:
        """Emit the functional form of an in-place call and carry its effect to all aliases; returns the root."""
        target = node.args[0]
        assert isinstance(target, fx.Node)
        form = functional_form(node.target)  # type: ignore[arg-type]
        if form is None:
            raise CaptureError(
                f"The in-place op at {where(node)} has no functional form; use the out-of-place op there."
            )
        drop_value = node.target in (aten.zero_.default, aten.detach_.default)
        args, kwargs = fx.map_arg((node.args[:1] if drop_value else node.args, node.kwargs), self.env.__getitem__)
        new = self._emit(node, form, *args, **kwargs)
        promoted = fake_value(new, node.meta["val"].fake_mode)
        if promoted.dtype != node.meta["val"].dtype:  # in place, the dtype stays
            new.meta["val"] = promoted
            new = self._emit(node, aten.to.dtype, new, node.meta["val"].dtype)
        self.env[node] = self.env[target] = new
        chain = self._chain(target)
        later = self.position[node]
        stale = [alias for alias in self.aliases[_storage(target) or 0] if self.last_use[alias] > later]
        if any(alias is not target for alias in stale):
            for view, base in pairwise(chain):
                self.env[base] = self._scatter(node, view, base)
            fresh = set(chain)
            for alias in stale:
                self._rebuild(alias, fresh)
        return chain[-1]

    def _rebuild(self, alias: fx.Node, fresh: set[fx.Node]) -> None:
        """View the new value of the base again, for an alias that is not `fresh` yet."""
        base = self._base(alias)
        if alias in fresh or base is None:
            return
        fresh.add(alias)
        self._rebuild(base, fresh)
        if is_inplace(alias):
            self.env[alias] = self.env[base]
            return
        if alias.target is operator.getitem:
            parts = alias.args[0]
            assert isinstance(parts, fx.Node)
            self.env[parts] = self.new.node_copy(parts, self.env.__getitem__)
        self.env[alias] = self.new.node_copy(alias, self.env.__getitem__)

    def _chain(self, node: fx.Node) -> list[fx.Node]:
        chain = [node]
        while (base := self._base(chain[-1])) is not None:
            chain.append(base)
        return chain

    def _emit(self, like: fx.Node, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self.new.create_node("call_function", op, args, kwargs)
        node.meta = dict(like.meta)
        return node

    def _scatter(self, node: fx.Node, view: fx.Node, base: fx.Node) -> fx.Node:
        """Return the new value of `base` after its view `view` was changed."""
        value, old, op = self.env[view], self.env[base], view.target
        rest = list(fx.map_arg(view.args[1:], self.env.__getitem__))
        if op in SAME_VIEWS or is_inplace(view) or _is_whole(view, base):
            return value
        if op in SCATTER:
            return self._emit(base, SCATTER[op], old, value, *rest)
        if op in SWAPS:
            return self._emit(base, op, value, *rest)
        if op is aten.narrow.default and all(isinstance(number, int) for number in rest):
            dim, start, length = view.args[1:]
            assert isinstance(start, int) and isinstance(length, int)
            return self._emit(base, aten.slice_scatter.default, old, value, dim, start, start + length)
        if op is aten.permute.default:
            dims: Any = view.args[1]
            order = [int(dim) % len(dims) for dim in dims]
            return self._emit(base, op, value, [order.index(d) for d in range(len(order))])
        if op in RESHAPING_VIEWS:
            sizes = [self._size(base, dim) for dim in range(base.meta["val"].ndim)]
            return self._emit(base, aten.reshape.default, value, sizes)
        if op is operator.getitem:
            return self._scatter_part(view, base)
        raise CaptureError(
            f"{where(node)} writes through a view made by {op}, which cannot be undone; write to a copy instead "
            "(for example torch.cat or torch.where in place of the assignment)."
        )

    def _size(self, base: fx.Node, dim: int) -> Any:
        size = base.meta["val"].shape[dim]
        if isinstance(size, int):
            return size
        node = self.new.call_function(aten.sym_size.int, (self.env[base], dim))
        node.meta["val"] = size
        return node

    def _scatter_part(self, view: fx.Node, base: fx.Node) -> fx.Node:
        """Undo one part of unbind, split or chunk."""
        parts, index = view.args
        assert isinstance(parts, fx.Node) and isinstance(index, int)
        value, old, values = self.env[view], self.env[base], parts.meta["val"]
        if parts.target is aten.unbind.int:
            dim = parts.args[1] if len(parts.args) > 1 else 0
            return self._emit(base, aten.select_scatter.default, old, value, dim, index)
        dim = parts.args[2] if len(parts.args) > 2 else 0
        assert isinstance(dim, int)
        start = sum(int(v.shape[dim]) for v in values[:index])
        return self._emit(
            base, aten.slice_scatter.default, old, value, dim, start, start + int(values[index].shape[dim])
        )
