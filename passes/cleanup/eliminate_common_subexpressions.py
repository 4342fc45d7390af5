"""Two calls of one op with the same arguments are one: f(x) + f(x) -> y = f(x); y + y."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, constant
from fxopt.passes.cleanup.purity import is_pure


@dataclass(frozen=True)
class EliminateCommonSubexpressions:
    """Let equal calls share one result. The first one stays.

    Merged:
    1. Calls of one op with equal arguments, also where those became equal by an earlier merge.
    2. Reads of one tensor under two names (tied parameters), which stay tied.
    3. An argument that is spelled out at its default, and one that is left out.
    Kept apart:
    4. Random ops, ops in training mode, and uninitialised memory: each call has its own result.
    5. Arguments that compare equal but differ in type: x * 1 is not x * 1.0 on integers.
    6. Different tensors with equal values: training moves them apart.
    """

    def __call__(self, program: Program) -> Program:
        """Return the Program without repetition, or `program` itself if there is none."""
        first_of = repetitions(program)
        if not first_of:
            return program
        edit = Edit(program, by=self)
        for node, first in first_of.items():
            edit.replace(edit.copies[node], edit.copies[first])
        return edit.finish()


def repetitions(program: Program) -> dict[fx.Node, fx.Node]:
    """Map each node that repeats an earlier one to the first of its kind."""
    first: dict[Hashable, fx.Node] = {}
    first_of: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        key = _key(program, node, first_of)
        if key is not None and first.setdefault(key, node) is not node:
            first_of[node] = first[key]
    return first_of


def _key(program: Program, node: fx.Node, first_of: dict[fx.Node, fx.Node]) -> Hashable | None:
    if node.op == "get_attr":
        return _tensor_key(constant(program.module, node))
    if not is_pure(node):
        return None
    given = [_hashable(value, first_of) for value in _without_defaults(node)]
    return (node.target, *given)


def _tensor_key(tensor: Tensor | None) -> Hashable | None:
    if tensor is None or tensor.numel() == 0:
        return None  # tensors without elements all lie at the same address
    storage = tensor.untyped_storage()._cdata
    return (type(tensor), storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _without_defaults(node: fx.Node) -> list[Any]:
    """List a call's arguments by name and without those at their default, so that spelling makes no difference."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return [*node.args, *sorted(node.kwargs.items())]
    result: list[Any] = []
    for position, parameter in enumerate(node.target._schema.arguments):
        default = parameter.default_value
        value = node.args[position] if position < len(node.args) else node.kwargs.get(parameter.name, default)
        if not (parameter.has_default_value() and _is_default(value, default)):
            result.append((parameter.name, value))
    return result


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, (tuple, list)):  # a schema such as `int[2] padding=0` holds its default once
        return list(value) == (default if isinstance(default, list) else [default] * len(value))
    return type(value) is type(default) and bool(value == default)


def _hashable(value: Any, first_of: dict[fx.Node, fx.Node]) -> Hashable:
    if isinstance(value, fx.Node):
        return first_of.get(value, value)
    if isinstance(value, (tuple, list)):
        return ("list", *(_hashable(item, first_of) for item in value))
    if isinstance(value, slice):
        return ("slice", *(_hashable(item, first_of) for item in (value.start, value.stop, value.step)))
    return (type(value), repr(value) if isinstance(value, float) else value)  # repr tells 0.0 from -0.0
