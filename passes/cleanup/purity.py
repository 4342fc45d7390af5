"""Which calls may be merged, moved or computed ahead: those that depend on nothing but their arguments."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from fxopt.graph.program import NORMS, TRAINING_ARGUMENT

aten = torch.ops.aten

# Their contents are whatever the memory held: two calls never mean the same value.
UNINITIALISED = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_permuted.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}


def is_training(node: fx.Node) -> bool:
    """Say whether a call behaves as in training: it draws random numbers or updates running statistics."""
    position = TRAINING_ARGUMENT.get(node.target)
    if position is None:
        return False
    name = node.target._schema.arguments[position].name  # type: ignore[union-attr]
    training = node.kwargs.get(name, node.args[position] if position < len(node.args) else False)
    if node.target in NORMS and node.args[3] is None:
        return False  # without running statistics there is nothing to update
    return bool(training)


@functools.cache
def _is_deterministic(op: Any) -> bool:
    if not isinstance(op, torch._ops.OpOverload):
        return getattr(op, "__module__", None) in ("_operator", "math") or op in (torch.sym_min, torch.sym_max)
    return not op._schema.is_mutable and op not in UNINITIALISED and torch.Tag.nondeterministic_seeded not in op.tags


def is_pure(node: fx.Node) -> bool:
    """Say whether equal arguments give an equal result, each time, without side effects."""
    if node.op != "call_function" or is_training(node):
        return False
    return node.target in TRAINING_ARGUMENT or _is_deterministic(node.target)
