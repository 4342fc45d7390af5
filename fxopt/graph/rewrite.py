"""Edit: an open copy of a Program. Rule and rewrite(): local patterns and their replacements.

A pass never changes the Program it is given. It opens an Edit (a copy of the graph that shares all tensors), changes
that, and gets a new Program from `finish()`, which drops dead nodes and unused tensors and brings every fake tensor
up to date.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxopt.errors import PassError, where
from fxopt.graph.program import Program
from fxopt.graph.recurrent import RECURRENT_SHAPES, whole_recurrent_ops

Op = Callable[..., Any]


def get_attribute(module: nn.Module, target: str) -> Any:
    """Return what a dotted name refers to below `module`."""
    for part in target.split("."):
        module = getattr(module, part)
    return module


def set_attribute(module: nn.Module, target: str, value: Tensor) -> None:
    """Store a tensor under a dotted name below `module`: a Parameter as a parameter, others as a buffer."""
    *path, name = target.split(".")
    for part in path:
        child = getattr(module, part, None)
        if not isinstance(child, nn.Module):
            child = nn.Module()
            module.add_module(part, child)
        module = child
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)


def constant(module: nn.Module, node: Any) -> Tensor | None:
    """Return the tensor behind a `get_attr` node, or None for anything else."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        value = get_attribute(module, str(node.target))
        return value if isinstance(value, Tensor) else None
    return None


def same_kind(old: Tensor, value: Tensor) -> Tensor:
    """Make a value a Parameter if `old` is one, trainable as that is."""
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value


def argument(node: fx.Node, name: str) -> Any:
    """Return an argument of an op call by its schema name; its default if it is not given."""
    if name in node.kwargs:
        return node.kwargs[name]
    assert isinstance(node.target, torch._ops.OpOverload)
    for position, parameter in enumerate(node.target._schema.arguments):
        if parameter.name == name:
            return node.args[position] if position < len(node.args) else parameter.default_value
    raise KeyError(f"{node.target} has no argument '{name}'")


def argument_names(node: fx.Node) -> list[str]:
    """List the schema names of the arguments of a call of an ATen op."""
    return [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]


def fake_value(node: fx.Node, mode: FakeTensorMode) -> Any:
    """Compute the fake tensor of an op call from those of its inputs."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    assert callable(node.target)
    recurrent = whole_recurrent_ops() if node.target in RECURRENT_SHAPES else nullcontext()
    # The python dispatcher makes composite ops work with symbolic sizes, as it does in torch.export.
    with recurrent, enable_python_dispatcher(), mode, torch.no_grad():
        return node.target(*args, **kwargs)


def same_metadata(left: Any, right: Any) -> bool:
    """Say whether two fake values have the same dtypes and shapes."""
    flat_left = pytree.tree_leaves(left)
    flat_right = pytree.tree_leaves(right)
    if len(flat_left) != len(flat_right):
        return False
    return all(_same_leaf(a, b) for a, b in zip(flat_left, flat_right, strict=True))


def _same_leaf(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and str(tuple(left.shape)) == str(tuple(right.shape))
    return not isinstance(left, Tensor) and not isinstance(right, Tensor) and str(left) == str(right)


class Edit:
    """An open copy of a Program, to be changed and then closed by `finish()`.

    `by` is the pass that edits; its repr is added to the history (None adds nothing).
    """

    def __init__(self, program: Program, by: object | None) -> None:
        self.program = program
        self.by = by
        self.mode = program.fake_mode
        self.graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        result = self.graph.graph_copy(program.graph, copies)
        output = self.graph.output(result)
        output.meta = dict(program.output_node.meta)
        self.module = nn.Module()
        self.copies = copies
        self._copy_tensors(program)
        self._old_values: dict[fx.Node, Any] = {}
        self.notes: list[str] = []

    def _copy_tensors(self, program: Program) -> None:
        for node in self.graph.find_nodes(op="get_attr"):
            set_attribute(self.module, str(node.target), get_attribute(program.module, str(node.target)))

    def calls(self, *ops: Op) -> Iterator[fx.Node]:
        """Iterate over the calls of the given ops, in graph order; removal while iterating is safe."""
        wanted = set(ops)
        for node in list(self.graph.nodes):
            if node.op == "call_function" and node.target in wanted and not node._erased:
                yield node

    def constant(self, node: Any) -> Tensor | None:
        """Return the tensor behind a `get_attr` node, or None."""
        return constant(self.module, node)

    def call(
        self, op: Op, *args: Any, before: fx.Node, like: fx.Node | None = None, name: str | None = None, **kwargs: Any
    ) -> fx.Node:
        """Insert a call of `op` before a node, with its fake tensor; source lines come from `like` (or `before`)."""
        with self.graph.inserting_before(before):
            node = self.graph.create_node("call_function", op, args, kwargs, name=name)
        _inherit(node, like or before)
        node.meta["val"] = fake_value(node, self.mode)
        return node

    def add_constant(self, name: str, value: Tensor, before: fx.Node) -> fx.Node:
        """Add a tensor under a dotted name (made unique) and insert the `get_attr` node that reads it."""
        unique, number = name, 1
        while _has_attribute(self.module, unique):
            unique, number = f"{name}_{number}", number + 1
        set_attribute(self.module, unique, value)
        with self.graph.inserting_before(before):
            node = self.graph.create_node("get_attr", unique, name=unique.replace(".", "_"))
        node.meta["val"] = self.mode.from_tensor(value.detach(), static_shapes=True)
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let all users of `old` use `new`, and erase `old` if nothing is left of its use."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        if not old.users:
            self.graph.erase_node(old)

    def update(self, node: fx.Node, args: Sequence[Any] | None = None, kwargs: dict[str, Any] | None = None) -> None:
        """Change a node's arguments; its fake tensor and those that follow from it are recomputed at `finish()`."""
        if args is not None:
            node.args = tuple(args)
        if kwargs is not None:
            node.kwargs = kwargs
        self._old_values.setdefault(node, node.meta.pop("val", None))

    def note(self, text: str) -> None:
        """Record something the user should know, on the finished Program."""
        self.notes.append(text)

    def finish(self, **changes: Any) -> Program:
        """Close the edit: drop dead nodes, update fake tensors, and return the new Program."""
        eliminate_dead_nodes(self.graph)
        self._propagate()
        module = fx.GraphModule(self.module, self.graph, class_name="Program")
        history = self.program.history
        if self.by is not None:
            history = (*history, getattr(self.by, "__name__", None) or repr(self.by))
        result = replace(self.program, module=module, history=history, **changes)
        return result.with_note(*self.notes) if self.notes else result

    def _propagate(self) -> None:
        changed: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.op != "call_function":
                continue
            if "val" in node.meta and changed.isdisjoint(node.all_input_nodes):
                continue
            old = self._old_values.get(node, node.meta.get("val"))
            node.meta["val"] = fake_value(node, self.mode)
            if not same_metadata(old, node.meta["val"]):
                changed.add(node)


def _inherit(node: fx.Node, source: fx.Node) -> None:
    for key in ("stack_trace", "nn_module_stack"):
        if key in source.meta:
            node.meta[key] = source.meta[key]


def _has_attribute(module: nn.Module, target: str) -> bool:
    try:
        get_attribute(module, target)
    except AttributeError:
        return False
    return True


def eliminate_dead_nodes(graph: fx.Graph) -> int:
    """Erase every node without users except placeholders and the output; returns how many were erased."""
    erased = 0
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
            erased += 1
    return erased


@dataclass(frozen=True)
class Rule:
    """A local rewrite: two plain functions over ops with the same argument names.

    `pattern` and `replacement` are traced once; arguments stand for any value (a node, a number, a list). `check`
    gets the matched values by name plus `edit`, and returns a reason (a string) to leave the match alone, or None.
    """

    pattern: Callable[..., Any]
    replacement: Callable[..., Any]
    check: Callable[..., str | None] | None = None

    def __post_init__(self) -> None:
        left, right = (tuple(inspect.signature(f).parameters) for f in (self.pattern, self.replacement))
        if not set(right) <= set(left):
            raise PassError(
                f"Rule: replacement uses {sorted(set(right) - set(left))}, which the pattern does not bind."
            )


def rewrite(edit: Edit, rules: Sequence[Rule]) -> int:
    """Apply rules once over the graph, first match wins at each node; returns how many matches were replaced."""
    traced = [(rule, fx.symbolic_trace(rule.pattern).graph) for rule in rules]
    count = 0
    for node in list(edit.graph.nodes):
        if node._erased or node.op != "call_function":
            continue
        for rule, pattern in traced:
            bound = match(pattern, node)
            if bound is None or (rule.check is not None and rule.check(edit=edit, **bound) is not None):
                continue
            edit.replace(node, _instantiate(edit, rule.replacement, bound, node))
            count += 1
            break
    eliminate_dead_nodes(edit.graph)
    return count


def match(pattern: fx.Graph, root: fx.Node) -> dict[str, Any] | None:
    """Match a traced pattern that ends at `root`; returns what its arguments stand for, or None.

    An inner node of the match may have no user outside of it.
    """
    bound: dict[str, Any] = {}
    inner: dict[fx.Node, fx.Node] = {}
    result = pattern.output_node().args[0]
    if not _match_value(result, root, bound, inner):
        return None
    matched = set(inner.values())
    if any(user not in matched for node in matched - {root} for user in node.users):
        return None
    return bound


def _match_value(pattern: Any, value: Any, bound: dict[str, Any], inner: dict[fx.Node, fx.Node]) -> bool:
    if isinstance(pattern, fx.Node):
        if pattern.op == "placeholder":
            if str(pattern.target) in bound:
                return bool(bound[str(pattern.target)] is value or bound[str(pattern.target)] == value)
            bound[str(pattern.target)] = value
            return True
        if pattern in inner:
            return inner[pattern] is value
        if not isinstance(value, fx.Node) or value.op != "call_function" or value.target is not pattern.target:
            return False
        inner[pattern] = value
        return _match_value(_all_arguments(pattern), _all_arguments(value), bound, inner)
    if isinstance(pattern, (tuple, list)):
        if not isinstance(value, (tuple, list)) or len(pattern) != len(value):
            return False
        return all(_match_value(p, v, bound, inner) for p, v in zip(pattern, value, strict=True))
    return bool(type(pattern) is type(value) and pattern == value)


def _all_arguments(node: fx.Node) -> list[Any]:
    """List a call's arguments in schema order with defaults filled in, so that spelling makes no difference."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return [*node.args, *node.kwargs.values()]
    return [argument(node, parameter.name) for parameter in node.target._schema.arguments]


def _instantiate(edit: Edit, replacement: Callable[..., Any], bound: dict[str, Any], root: fx.Node) -> fx.Node:
    traced = fx.symbolic_trace(replacement).graph
    env: dict[fx.Node, Any] = {}
    for node in traced.nodes:
        if node.op == "placeholder":
            env[node] = bound[str(node.target)]
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = edit.call(node.target, *args, before=root, **kwargs)
    result = traced.output_node().args[0]
    new = env[result] if isinstance(result, fx.Node) else None
    if not isinstance(new, fx.Node):
        raise PassError(f"The replacement of {where(root)} must return one value.")
    return new


GETITEM: Op = operator.getitem
