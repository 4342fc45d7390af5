"""Coordinates: for each position of each tensor dimension of a Program, what it lives and dies with.

One sweep over the graph: tensors of the module get fresh symbols (a tied tensor the same ones everywhere), the rows of
CHANNEL_RULES tie them, inputs and outputs keep every position. The idea of groups that must be cut together is that
of DepGraph (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"); here positions are tied, not layers, and
every op that no row covers keeps all that it touches.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxopt.graph.program import Program
from fxopt.graph.rewrite import constant
from fxopt.passes.prune.rule import Call, CannotRelate, Labels, Value, is_tensor, size_of
from fxopt.passes.prune.rules import CHANNEL_RULES
from fxopt.passes.prune.symbols import Label, Mask, Symbols, fixed


@dataclass(frozen=True)
class Coordinates:
    """What coordinates() found.

    - `labels`: of every node, the labels of its dimensions (a list of them for several tensors, None for no tensor).
    - `inexact`: of each node that averages, the labels over which it does.
    - `unknown`: why an op froze all it touches, by node name.
    """

    program: Program
    symbols: Symbols
    labels: dict[fx.Node, Value]
    calls: dict[fx.Node, Call]
    inexact: dict[fx.Node, tuple[Label, ...]]
    unknown: dict[str, str]
    _leaves: dict[int, tuple[Label, Label]] = field(default_factory=dict, repr=False)

    def leaves(self, label: Label) -> Label:
        """Return the atoms of a label, `[positions, most atoms]`."""
        known = self._leaves.get(id(label))
        if known is None:
            known = self._leaves[id(label)] = (label, self.symbols.leaves(label))  # the label too: its id stays taken
        return known[1]


@dataclass(frozen=True)
class Removal:
    """Some atoms of the coordinates, marked in `removed` (a mask over all symbols), and what stays without them."""

    found: Coordinates
    removed: Mask
    _masks: dict[int, Mask] = field(default_factory=dict, repr=False)

    def keep(self, label: Label) -> Mask:
        """Say which positions of a label stay."""
        known = self._masks.get(id(label))
        if known is None:
            known = np.logical_not(self.removed[self.found.leaves(label)].any(axis=1))
            self._masks[id(label)] = known
        return known

    def cuts(self, value: Value) -> bool:
        """Say whether any position of a value goes."""
        return any(not self.keep(label).all() for label in flat_labels(value))


def coordinates(program: Program) -> Coordinates:
    """Find the labels of every value of a Program."""
    sweep = _Sweep(program)
    for node in program.graph.nodes:
        sweep.visit(node)
    return Coordinates(program, sweep.symbols, sweep.labels, sweep.calls, sweep.inexact, sweep.unknown)


class _Sweep:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.symbols = Symbols()
        self.labels: dict[fx.Node, Value] = {}
        self.calls: dict[fx.Node, Call] = {}
        self.inexact: dict[fx.Node, tuple[Label, ...]] = {}
        self.unknown: dict[str, str] = {}
        self.tensors: dict[int, tuple[Any, Labels]] = {}
        self.inputs = dict(zip(program.placeholders, program.inputs, strict=True))

    def visit(self, node: fx.Node) -> None:
        by_kind: dict[str, Callable[[fx.Node], Value]] = {
            "placeholder": self._input,
            "get_attr": self._tensor,
            "output": self._output,
            "call_function": self._call,
        }
        self.labels[node] = by_kind[node.op](node)

    def _input(self, node: fx.Node) -> Value:
        labels = tuple(self.symbols.fresh(size_of(size)) for size in node.meta["val"].shape)
        for label in labels:
            self.symbols.freeze(label, f"it is a dimension of the input '{self.inputs[node].name}'")
        return labels

    def _tensor(self, node: fx.Node) -> Value:
        """Tensors that share memory have the same labels if they lie there alike, and stay whole if not."""
        tensor = constant(self.program.module, node)
        if tensor is None:
            return None
        place = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        labels = tuple(self.symbols.fresh(size) if size > 1 else fixed(size) for size in tensor.shape)
        memory = _memory(tensor)
        if memory is None:
            return labels
        known_place, known = self.tensors.setdefault(memory, (place, labels))
        if known_place == place:
            return known
        for label in (*labels, *known):
            self.symbols.freeze(label, "two tensors share its memory")
        return labels

    def _output(self, node: fx.Node) -> Value:
        for value, spec in zip(node.args[0], self.program.outputs, strict=True):  # type: ignore[arg-type]
            if spec is not None and isinstance(value, fx.Node):
                self._freeze(self.labels[value], f"it is a dimension of the output '{spec.name}'")
        return None

    def _freeze(self, value: Value, reason: str) -> None:
        for label in flat_labels(value):
            self.symbols.freeze(label, reason)

    def _call(self, node: fx.Node) -> Value:
        if node.target is operator.getitem:
            source, index = node.args
            value = self.labels[source]  # type: ignore[index]
            return value[index] if isinstance(value, list) else None  # type: ignore[index]
        rule, value = CHANNEL_RULES.get(node.target), node.meta.get("val")
        if rule is None or not _holds_tensors(value):
            if not any(is_tensor(source) for source in node.all_input_nodes):
                return _fixed(value)
            return self._stay(node, f"{node.target} has no row in CHANNEL_RULES")
        call = Call(node, self.symbols, self.labels, lambda source: constant(self.program.module, source))
        try:
            return self._fit(node, rule.relate(call), rule.dynamic)
        except CannotRelate as reason:
            return self._stay(node, f"{node.target} has no rule for {reason}")
        finally:
            self.calls[node], self.inexact[node] = call, tuple(call.inexact)

    def _stay(self, node: fx.Node, reason: str) -> Value:
        """Keep all that a call touches."""
        if _holds_tensors(node.meta.get("val")) or not _is_size(node):
            self.unknown[node.name] = reason
        for source in node.all_input_nodes:
            self._freeze(self.labels[source], f"{reason} (node '{node.name}')")
        return self._frozen(node.meta.get("val"), f"{reason} (node '{node.name}')")

    def _frozen(self, value: Any, reason: str) -> Value:
        """Return labels that stay, for a reason that what is tied to them can name."""
        if isinstance(value, (tuple, list)):
            return [self._frozen(item, reason) for item in value]
        if not isinstance(value, Tensor):
            return None
        labels = tuple(self.symbols.fresh(size_of(size)) for size in tuple[Any, ...](value.shape))
        for label in labels:
            self.symbols.freeze(label, reason)
        return labels

    def _fit(self, node: fx.Node, value: Value, dynamic: bool) -> Value:
        """Where a rule is wrong about a size, or a dynamic dimension is not an operand's, keep positions."""
        results, labels = node.meta["val"], value
        passed = [] if dynamic else self._dynamic_labels(node)
        if isinstance(labels, list):
            return [self._fit_one(labels[i], results[i], dynamic, passed) for i in range(len(results))]
        return self._fit_one(labels, results, dynamic, passed)

    def _fit_one(self, labels: Value, result: Any, dynamic: bool, passed: list[tuple[str, Label]]) -> Value:
        if not isinstance(result, Tensor) or not isinstance(labels, tuple) or len(labels) != result.ndim:
            raise CannotRelate("a result of this kind")
        fitted, sizes = [], tuple[Any, ...](result.shape)
        for label, size in zip(labels, sizes, strict=True):
            known = dynamic or any(str(size) == other and np.array_equal(label, its) for other, its in passed)
            if not isinstance(size, int) and not known:
                self.symbols.freeze(label, "it is a dynamic dimension")
                label = fixed(size_of(size))
            elif size_of(size) != len(label):
                raise CannotRelate(f"a result of {size} positions (the rule says {len(label)})")
            fitted.append(label)
        return tuple(fitted)

    def _dynamic_labels(self, node: fx.Node) -> list[tuple[str, Label]]:
        """List the sizes and labels of the dynamic dimensions of a call's operands."""
        return [
            (str(size), label)
            for source in node.all_input_nodes
            if is_tensor(source) and isinstance(labels := self.labels[source], tuple)
            for size, label in zip(tuple[Any, ...](source.meta["val"].shape), labels, strict=True)
            if not isinstance(size, int)
        ]


def _memory(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage().data_ptr()) or None
    except (NotImplementedError, RuntimeError):
        return None


def _is_size(node: fx.Node) -> bool:
    """Say whether a call only asks for a size."""
    return node.target in (torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default)


def _holds_tensors(value: Any) -> bool:
    values = value if isinstance(value, (tuple, list)) else [value]
    return any(isinstance(item, Tensor) for item in values)


def _fixed(value: Any) -> Value:
    if isinstance(value, Tensor):
        return tuple(fixed(size_of(size)) for size in value.shape)
    return [_fixed(item) for item in value] if isinstance(value, (tuple, list)) else None


def flat_labels(value: Value) -> list[Label]:
    """List the labels of a value, those of several tensors one after the other."""
    if value is None:
        return []
    if isinstance(value, tuple):
        return list(value)
    return [label for item in value for label in flat_labels(item)]
