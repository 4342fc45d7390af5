"""What depends on no input is computed once: relu(weight), arange(10) + 1, a mask of fixed size.

y = x + sin(arange(8) * scale)  ->  y = x + constant
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, constant
from fxopt.passes.cleanup.purity import is_pure

aten = torch.ops.aten

MEBIBYTE = 1 << 20
# The result may be this many times as large as the tensors it is computed from.
GROWTH = 4

# These read the shape of their first argument at most, never its values.
LIKE = {aten.zeros_like.default, aten.ones_like.default, aten.full_like.default}
NEW = {aten.new_zeros.default, aten.new_ones.default, aten.new_full.default}
REPEATS = {
    aten.expand.default,
    aten.expand_as.default,
    aten.broadcast_to.default,
    aten.repeat.default,
    aten.tile.default,
    aten.repeat_interleave.self_int,
}


@dataclass(frozen=True)
class FoldConstants:
    """Compute the calls that depend on no input, and keep the results as tensors of the module.

    Folded:
    1. A call whose arguments are tensors of the module, numbers, or folded themselves.
    2. A call that creates a tensor of fixed size: zeros, full, arange, and ones_like or new_ones of an input.
    3. A size that is fixed: a plain number takes its place.
    4. What is computed from a Parameter and has floating point becomes a Parameter, under its name where that is free.
    Left alone:
    5. A result of more than 1 MiB and more than 4 times the tensors it comes from (expand, repeat).
    6. A result of more than 1 MiB whose tensors stay in use: the file would hold both.
    7. A Parameter that is expanded or repeated: training would move the copies apart.
    8. Random ops, ops in training mode, uninitialised memory.
    9. fxopt's own ops: a quantized weight and its dequantize stay as they are.
    10. Anything of dynamic size.
    """

    def __call__(self, program: Program) -> Program:
        """Return the folded Program, or `program` itself if nothing can be folded."""
        found = _Constants(program)
        numbers = {node: number for node in program.graph.nodes if (number := _fixed_number(node)) is not None}
        frontier = [node for node in found.folded if node not in numbers and _is_read(node, found)]
        if not frontier and not numbers:
            return program
        values = _evaluate(program, found.folded, numbers)
        edit = Edit(program, by=self)
        for node in frontier:
            copy, value = edit.copies[node], values[node]
            edit.replace(copy, _store(edit, found, node, value))
        for node, number in numbers.items():
            _substitute(edit.copies[node], number)
        return edit.finish()


def _is_read(node: fx.Node, found: _Constants) -> bool:
    return isinstance(node.meta["val"], Tensor) and any(user not in found.folded for user in node.users)


def _fixed_number(node: fx.Node) -> int | float | bool | None:
    """Return the number that a call always gives, if its fake value is known."""
    value = node.meta.get("val") if node.op == "call_function" else None
    if isinstance(value, torch.SymInt) and value.node.expr.is_number:
        return int(value)
    return value if isinstance(value, (int, float, bool)) else None


class _Constants:
    """Which calls of a Program to fold: `folded`, in graph order, each with the tensors it comes from."""

    def __init__(self, program: Program) -> None:
        self.roots: dict[fx.Node, frozenset[fx.Node]] = {}
        nodes = list(program.graph.nodes)
        independent: set[fx.Node] = set()
        for node in nodes:
            if constant(program.module, node) is not None:
                self.roots[node] = frozenset((node,))
                independent.add(node)
            elif _is_computable(node, independent):
                independent.add(node)
        self.staying = {node for node in self.roots if not independent.issuperset(node.users)}
        self.folded: dict[fx.Node, None] = {}
        for node in nodes:
            if node not in self.roots and _is_computable(node, self.roots):
                roots = frozenset[fx.Node]().union(*(self.roots.get(source, ()) for source in node.all_input_nodes))
                if self._fits(program, node, roots):
                    self.roots[node] = roots
                    self.folded[node] = None

    def _fits(self, program: Program, node: fx.Node, roots: frozenset[fx.Node]) -> bool:
        if node.target in REPEATS and any(isinstance(constant(program.module, root), nn.Parameter) for root in roots):
            return False
        size = _bytes(node.meta["val"])
        if size <= MEBIBYTE:
            return True
        return self.staying.isdisjoint(roots) and size <= GROWTH * sum(_bytes(root.meta["val"]) for root in roots)


def _is_computable(node: fx.Node, known: Iterable[fx.Node]) -> bool:
    if not is_pure(node) or not _is_static(node.meta.get("val")) or getattr(node.target, "namespace", "") == "fxopt":
        return False
    if node.target in LIKE or node.target in NEW:
        return all(source in known or _fixed_number(source) is not None for source in node.all_input_nodes[1:])
    return all(source in known or _fixed_number(source) is not None for source in node.all_input_nodes)


def _is_static(value: Any) -> bool:
    leaves = pytree.tree_leaves(value)
    return bool(leaves) and all(_is_static_leaf(leaf) for leaf in leaves)


def _is_static_leaf(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return all(isinstance(size, int) for size in leaf.shape)
    return isinstance(leaf, (int, float, bool))


def _bytes(value: Any) -> int:
    tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors)


def _evaluate(program: Program, folded: Iterable[fx.Node], numbers: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    values: dict[fx.Node, Any] = dict(numbers)

    def value_of(node: fx.Node) -> Any:
        if node not in values:
            tensor = constant(program.module, node)
            assert tensor is not None
            values[node] = tensor.detach()
        return values[node]

    with torch.no_grad():
        for node in folded:
            if node not in values:
                values[node] = _compute(node, value_of)
    return values


def _compute(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    op: Any = node.target
    if op in LIKE or op in NEW:
        fake, source = node.meta["val"], node.args[0]
        shaped = torch.empty(fake.shape if op in LIKE else (), dtype=fake.dtype, device=fake.device)
        args, kwargs = fx.map_arg((node.args[1:], node.kwargs), lambda n: shaped if n is source else value_of(n))
        return op(shaped, *args, **kwargs)
    args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
    return op(*args, **kwargs)


def _store(edit: Edit, found: _Constants, node: fx.Node, value: Tensor) -> fx.Node:
    """Add the result as a tensor of the module; a Parameter if it comes from one."""
    copy = edit.copies[node]
    result = value.detach().clone(memory_format=torch.contiguous_format)
    roots = sorted(found.roots[node], key=lambda root: str(root.target))
    sources = [tensor for root in roots if (tensor := constant(edit.program.module, root)) is not None]
    parameters = [source for source in sources if isinstance(source, nn.Parameter)]
    if parameters and result.is_floating_point():
        result = nn.Parameter(result, requires_grad=any(parameter.requires_grad for parameter in parameters))
    return edit.add_constant(_name(edit, found, node, roots), result, before=copy)


def _name(edit: Edit, found: _Constants, node: fx.Node, roots: list[fx.Node]) -> str:
    """Name a result: as the Parameter, or else the tensor, it comes from; as its call if it comes from none.

    If nothing else comes from that tensor, its own name becomes free for the result.
    """
    if not roots:
        return node.name
    is_parameter = [isinstance(constant(edit.program.module, root), nn.Parameter) for root in roots]
    root = roots[is_parameter.index(True)] if any(is_parameter) else roots[0]
    results = [other for other in found.folded if root in found.roots[other] and _is_read(other, found)]
    reads = [other for other in found.roots if other.op == "get_attr" and other.target == root.target]
    if results == [node] and reads == [root] and found.folded.keys() >= root.users.keys():
        _release(edit.module, str(root.target))
    return str(root.target)


def _release(module: nn.Module, target: str) -> None:
    path, _, name = target.rpartition(".")
    delattr(module.get_submodule(path), name)


def _substitute(node: fx.Node, number: float) -> None:
    """Write a number where a node was used, and erase the node."""
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), lambda n: number if n is node else n)
    node.graph.erase_node(node)
