"""Insertion of nodes whose fake tensor is known, for the passes that insert hundreds of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from fxopt.graph.rewrite import Edit, Op


def insert(edit: Edit, op: Op, *args: Any, before: fx.Node, name: str, value: Tensor, like: fx.Node) -> fx.Node:
    """Insert a call as Edit.call does, with a given fake tensor instead of a computed one."""
    with edit.graph.inserting_before(before):
        node = edit.graph.create_node("call_function", op, args, {}, name=name)
    node.meta = {key: like.meta[key] for key in ("stack_trace", "nn_module_stack") if key in like.meta}
    node.meta["val"] = value
    return node
