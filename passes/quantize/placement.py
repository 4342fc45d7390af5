"""Placement: which nodes of a Program become integer on a target, and which values are quantized with which scale.

The search starts from all nodes that could be integer and drops those to which something objects, until nothing does.
What a convolution or a chain op makes is quantized once, and every reader reads the quantized value (that is the form
runtimes fuse). What a float op makes is quantized for its integer readers only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant, results
from fxopt.graph.rewrite import argument
from fxopt.passes.quantize.rules import QUANTIZE_RULES, Bounds, Role, clip_bounds, needs_chain
from fxopt.target import Target

REQUESTED = "kept float on request"
SHOWN = 3
WEIGHTED = (Role.CONVOLUTION, Role.LINEAR)
# Ops whose kernel rounds its result anyway, so that a clip after it costs nothing.
ABSORBS_CLIP = (Role.CONVOLUTION, Role.JOIN)


@dataclass(frozen=True)
class Point:
    """A value that is quantized.

    - `value`: the name of the node that makes it.
    - `group`: the points of one group share scale and zero point; the group is named after its first value.
    - `readers`: the names of the nodes that read it as integers; None means that every reader does.
    """

    value: str
    group: str
    readers: tuple[str, ...] | None


@dataclass(frozen=True)
class Placement:
    """What becomes integer, by node name: the role of each integer node, the points, and why others stay float."""

    integer: Mapping[str, Role]
    points: Mapping[str, Point]
    float_reasons: Mapping[str, str]


def place(program: Program, target: Target, keep_float: Mapping[str, str] | Collection[str] = ()) -> Placement:
    """Decide what becomes integer. `keep_float` names nodes that stay float (a mapping gives the reasons).

    Raises PassError if `keep_float` names a node that does not exist.
    """
    kept = reasons_of(keep_float)
    check_names(program, kept)
    search = _Search(program, target, kept)
    search.settle()
    return Placement(
        integer={node.name: role for node, role in search.integer.items()},
        points=_points(program.graph, search),
        float_reasons=search.reasons,
    )


def check_names(program: Program, names: Collection[str]) -> None:
    """Raise PassError if a node that is to stay float does not exist."""
    if unknown := sorted(set(names) - {node.name for node in program.graph.nodes}):
        raise PassError(f"keep_float names nodes that the Program does not have: {', '.join(unknown)}.")


class Reasons(dict[str, str]):
    """Names of nodes with a reason each; in a history, where there may be hundreds, their number is enough."""

    def __repr__(self) -> str:
        """Show a few in full, and of many how many there are."""
        return super().__repr__() if len(self) <= SHOWN else f"{{{len(self)} nodes}}"


def reasons_of(keep_float: Mapping[str, str] | Collection[str]) -> dict[str, str]:
    """Give the names of nodes to keep float a reason each, in alphabetical order."""
    if isinstance(keep_float, Mapping):
        return Reasons(sorted(keep_float.items()))
    return Reasons((name, REQUESTED) for name in sorted(keep_float))


def activations(node: fx.Node) -> list[fx.Node]:
    """List the values that an op with a row reads as activations."""
    role = QUANTIZE_RULES[node.target].role
    values: Iterable[Any] = node.args[: 2 if role is Role.JOIN else 1]
    if role is Role.CONCATENATE:
        values = argument(node, "tensors")
    return [value for value in values if isinstance(value, fx.Node) and isinstance(value.meta["val"], Tensor)]


class _Search:
    """The nodes still integer, and why the others are not."""

    def __init__(self, program: Program, target: Target, kept: Mapping[str, str]) -> None:
        self.target = target
        self.integer: dict[fx.Node, Role] = {}
        self.reasons: dict[str, str] = {}
        for node in program.graph.nodes:
            rule = QUANTIZE_RULES.get(node.target) if node.op == "call_function" else None
            if rule is None or rule.role is Role.CLIP:
                continue
            reason = kept.get(node.name) or _unfit(node) or rule.check(node, target)
            if reason is None:
                self.integer[node] = rule.role
            else:
                self._record(node, rule.role, reason)

    def settle(self) -> None:
        """Drop nodes until nothing objects to any that is left; the result does not depend on the order."""
        order, dropped = list(self.integer), True
        while dropped:
            dropped = False
            for node in order:
                if node in self.integer and (reason := self._objection(node)):
                    self._record(node, self.integer.pop(node), reason)
                    dropped = True
            order.reverse()

    def _record(self, node: fx.Node, role: Role, reason: str) -> None:
        if role is not Role.SHARE:  # an op that only moves values neither gains nor loses
            self.reasons[node.name] = reason

    def _objection(self, node: fx.Node) -> str | None:
        role = self.integer[node]
        if role in WEIGHTED and not (role is Role.CONVOLUTION and needs_chain(node, self.target)):
            return self._unpaddable(node)
        if role in (Role.JOIN, Role.CONCATENATE) and node.target not in self.target.chain_ops:
            return f"the target has no integer kernel for {node.target}"
        if not all(self.carries_integers(value) for value in activations(node)):
            return "it gains only between integer ops, and an input is float"
        if role is Role.CONCATENATE and not any(user.op == "output" for user in node.users):
            return None  # moving bytes and dequantizing the whole costs less than dequantizing and moving floats
        if not any(self.integer_readers(value) for value in self.values_of(node)):
            return "it gains only between integer ops, and nothing reads its result as integers"
        return None

    def _unpaddable(self, node: fx.Node) -> str | None:
        """Padding of channels is for values that are quantized just before; in a chain it would break the layout."""
        shape = argument(node, "weight").meta["val"].shape
        width = int(shape[1])
        padded = self.integer[node] is Role.CONVOLUTION and self.target.convolution.padded(shape) > width
        if padded and self.carries_integers(activations(node)[0]):
            return f"{width} input channels, which are padded only where a float value is quantized"
        return None

    def values_of(self, node: fx.Node) -> list[fx.Node]:
        """List the values an integer node hands on: its results, or the clip that its quantization absorbs."""
        if self.integer.get(node) in ABSORBS_CLIP and len(node.users) == 1:
            user = next(iter(node.users))
            bounds = clip_bounds(user)
            if bounds is not None and bounds[0] <= 0 <= bounds[1]:
                return [user]
        return results(node)

    def carries_integers(self, value: fx.Node) -> bool:
        """Say whether a value is quantized by the op that makes it."""
        maker = value
        if value not in self.integer and value.op == "call_function" and value.all_input_nodes:
            maker = value.all_input_nodes[0]  # of a clip that is absorbed, or of a getitem
        role = self.integer.get(maker)
        return role is not None and role is not Role.LINEAR and value in self.values_of(maker)

    def integer_readers(self, value: fx.Node) -> list[fx.Node]:
        """List the integer nodes that read a value as an activation."""
        return [user for user in value.users if user in self.integer and value in activations(user)]


def _unfit(node: fx.Node) -> str | None:
    """Say why no target can run a call in integers: dtypes, or a weight that is no constant."""
    values = [value.meta["val"] for value in activations(node)] + [value.meta["val"] for value in results(node)]
    if not values or any(not isinstance(value, Tensor) or value.dtype is not torch.float32 for value in values):
        return "its values are not float32"
    if QUANTIZE_RULES[node.target].role not in WEIGHTED:
        return None
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if not is_constant(weight):
        return "its weight is computed, not stored"
    if QUANTIZE_RULES[node.target].role is Role.CONVOLUTION and bias is not None and not is_constant(bias):
        return "its bias is computed, not stored"
    return None


class Groups:
    """Union-find over nodes: which values share a scale, and the bounds that all values of a group are clipped to."""

    def __init__(self) -> None:
        self.parent: dict[fx.Node, fx.Node] = {}
        self.bounds: dict[fx.Node, Bounds | None] = {}

    def add(self, value: fx.Node, bounds: Bounds | None = None) -> None:
        """Add a value in a group of its own."""
        self.parent.setdefault(value, value)
        self.bounds.setdefault(value, bounds)

    def find(self, value: fx.Node) -> fx.Node:
        """Return the representative of a value's group."""
        while self.parent[value] is not value:
            self.parent[value] = self.parent[self.parent[value]]
            value = self.parent[value]
        return value

    def union(self, first: fx.Node, second: fx.Node) -> None:
        """Merge two groups; the bounds of the first one's group hold for both."""
        first, second = self.find(first), self.find(second)
        if first is not second:
            self.parent[second] = first

    def same_bounds(self, values: Collection[fx.Node]) -> bool:
        """Say whether the groups of all values are clipped alike."""
        return len({self.bounds[self.find(value)] for value in values}) == 1


def _points(graph: fx.Graph, search: _Search) -> dict[str, Point]:
    readers: dict[fx.Node, tuple[str, ...] | None] = {}
    for node in graph.nodes:
        if node in search.integer and search.integer[node] is not Role.LINEAR:
            readers.update({value: None for value in search.values_of(node)})
        elif (names := tuple(user.name for user in search.integer_readers(node))) and node not in readers:
            readers[node] = names
    order = [node for node in graph.nodes if node in readers]
    groups = _unify(order, graph, search)
    first: dict[fx.Node, str] = {}
    for value in order:
        first.setdefault(groups.find(value), value.name)
    return {value.name: Point(value.name, first[groups.find(value)], readers[value]) for value in order}


def _unify(values: list[fx.Node], graph: fx.Graph, search: _Search) -> Groups:
    """Merge what must share a scale, and concatenated values where clipping allows it.

    A concatenation rounds its inputs to its own scale in any case, so one scale loses nothing and saves the rounding.
    Values clipped to different bounds keep their own scales: each clip is absorbed by its own quantization.
    """
    groups = Groups()
    for value in values:
        groups.add(value, clip_bounds(value))
    for node in graph.nodes:
        role = search.integer.get(node)
        if role is Role.SHARE:
            for value in search.values_of(node):
                groups.union(activations(node)[0], value)
        elif role is Role.CONCATENATE and groups.same_bounds(activations(node)):
            for value in [*activations(node)[1:], node]:
                groups.union(activations(node)[0], value)
    return groups
