"""What a row of CHANNEL_RULES is written with: `Call` relates labels, `Shrink` recomputes constants from them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxopt.graph.rewrite import Edit, argument
from fxopt.passes.cleanup.layers import set_arguments
from fxopt.passes.prune.factor import split
from fxopt.passes.prune.symbols import Label, Mask, Symbols, fixed

Labels = tuple[Label, ...]  # of a tensor: one label a dimension
Value = Labels | list[Any] | None  # of a node: a tensor, several tensors, no tensor
KeepMask = Callable[[Label], Mask]


class CannotRelate(Exception):
    """Raised by a rule for a call that it does not cover: everything the call touches is frozen."""


def size_of(size: int | torch.SymInt) -> int:
    """Return a size; for a dynamic one that of the captured example, or 1 where there is none."""
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else 1


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """Return the sizes of a tensor node: int, or SymInt where dynamic."""
    return tuple(node.meta["val"].shape)


def is_tensor(value: Any) -> bool:
    """Say whether a node holds one tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


@dataclass
class Call:
    """One call of an op while labels are found: its arguments, their labels, and the ties it makes.

    `inexact` collects the labels over which the op averages: without some positions it computes something else.
    """

    node: fx.Node
    symbols: Symbols
    values: dict[fx.Node, Value]
    constants: Callable[[fx.Node], Tensor | None]
    inexact: list[Label] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return argument(self.node, name)

    def of(self, node: Any) -> Labels:
        """Return the labels of a tensor node."""
        value = self.values[node] if isinstance(node, fx.Node) else None
        if not isinstance(value, tuple):
            raise CannotRelate(f"{node} is no tensor")
        return value

    def labels(self, name: str) -> Labels:
        """Return the labels of a tensor argument."""
        return self.of(self[name])

    def optional(self, name: str) -> Labels | None:
        """Return the labels of a tensor argument, None where it is None."""
        return None if self[name] is None else self.labels(name)

    @property
    def tensors(self) -> list[fx.Node]:
        """The tensor arguments, lists included, in order."""
        return [node for node in self.node.all_input_nodes if is_tensor(node)]

    @property
    def shape(self) -> tuple[Any, ...]:
        """The sizes of the result."""
        return shape_of(self.node)

    def dim(self, rank: int, name: str = "dim") -> int:
        """Return an argument that is a dimension, counted from the front."""
        return int(self[name]) % max(rank, 1)

    def dims(self, rank: int, name: str = "dim") -> list[int]:
        """Return an argument that lists dimensions, sorted and from the front; none or an empty one means all."""
        given = self[name]
        if isinstance(given, int):
            return [given % max(rank, 1)]
        return sorted(dim % rank for dim in given) if given else list(range(rank))

    def freeze(self, *labels: Label, because: str) -> None:
        """Let positions stay, for a reason."""
        for label in labels:
            self.symbols.freeze(label, f"{because} (node '{self.node.name}', {self.node.target})")

    def staying(self, size: int | torch.SymInt, because: str) -> Label:
        """Return the label of a dimension that keeps all positions, for a reason that what is tied to it can name."""
        label = self.symbols.fresh(size_of(size))
        self.freeze(label, because=because)
        return label

    def unify(self, first: Label, second: Label) -> None:
        """Tie two labels position by position."""
        self.symbols.unify(first, second)

    def unify_all(self, first: Sequence[Label], second: Sequence[Label]) -> None:
        """Tie the labels of two tensors, dimension by dimension."""
        if len(first) != len(second):
            raise CannotRelate("two operands have different ranks")
        for left, right in zip(first, second, strict=True):
            self.symbols.unify(left, right)

    def split(self, label: Label, rows: int, columns: int) -> tuple[Label, Label]:
        """Return the labels of rows and columns of a label."""
        return split(self.symbols, label, rows, columns)

    def fresh(self, size: int | torch.SymInt) -> Label:
        """Return the label of a dimension that this call makes; a dynamic one is fixed."""
        return self.symbols.fresh(size) if isinstance(size, int) else fixed(size_of(size))

    def fixed_result(self) -> Labels:
        """Return the labels of a result that keeps all positions."""
        return tuple(fixed(size_of(size)) for size in self.shape)


@dataclass
class Shrink:
    """One call of an op while channels are removed: `call` has its old arguments, `node` is its copy in the edit."""

    call: Call
    node: fx.Node
    edit: Edit
    keep: KeepMask

    @property
    def result(self) -> Value:
        """The labels of the result."""
        return self.call.values[self.call.node]

    def count(self, label: Label) -> int:
        """Return how many positions stay."""
        return int(self.keep(label).sum())

    def cuts(self, label: Label) -> bool:
        """Say whether any position goes."""
        return not bool(self.keep(label).all())

    def set(self, **changes: Any) -> None:
        """Change arguments by schema name."""
        set_arguments(self.node, **changes)

    def become(self, op: Callable[..., Any], *args: Any) -> None:
        """Turn the call into one of another op with positional arguments."""
        self.node.target, self.node.args, self.node.kwargs = op, args, {}

    def argument(self, name: str) -> Any:
        """Return an argument of the copy."""
        return argument(self.node, name)

    def sizes(self, given: Sequence[Any], labels: Sequence[Label]) -> list[Any]:
        """Return a list of sizes with every one of a dimension that shrinks replaced.

        A computed one becomes -1, or where there is a -1 already, its share of what it was.
        """
        free = not any(isinstance(size, int) and size < 0 for size in given)
        result = list(given)
        for position, (size, label) in enumerate(zip(given, labels, strict=True)):
            if not self.cuts(label) or (isinstance(size, int) and size < 0):
                continue
            if isinstance(size, int):
                result[position] = self.count(label)
            elif free:
                result[position], free = -1, False
            else:
                kept = self.edit.call(operator.mul, size, self.count(label), before=self.node)
                result[position] = self.edit.call(operator.floordiv, kept, len(label), before=self.node)
        return result


Relate = Callable[[Call], Value]
Resize = Callable[[Shrink], None]


def unchanged(shrink: Shrink) -> None:
    """Resize of an op without constants."""


@dataclass(frozen=True)
class ChannelRule:
    """One row: how an op relates the labels of its operands and results, and which of its constants follow them.

    `dynamic`: what it says of a dynamic dimension of its result is true of every size; otherwise only the label of
    such a dimension of an operand passes.
    """

    relate: Relate
    resize: Resize = unchanged
    dynamic: bool = False


def broadcast(call: Call, operands: Sequence[tuple[Labels, Sequence[Any]]]) -> Labels:
    """Tie right-aligned operands, (labels, sizes) each; a dimension of size 1 beside a larger one stays whole."""
    rank = max((len(labels) for labels, _ in operands), default=0)
    return tuple(_broadcast_one(call, operands, rank - dim) for dim in range(rank))


def _broadcast_one(call: Call, operands: Sequence[tuple[Labels, Sequence[Any]]], from_end: int) -> Label:
    here = [(labels[-from_end], sizes[-from_end]) for labels, sizes in operands if len(labels) >= from_end]
    wide = [label for label, size in here if not (isinstance(size, int) and size == 1)]
    if wide:
        for label, size in here:
            if isinstance(size, int) and size == 1:
                call.freeze(label, because="it is broadcast")
    chosen = wide or [label for label, _ in here]
    for label in chosen[1:]:
        call.unify(chosen[0], label)
    return chosen[0]


def operand(call: Call, node: fx.Node) -> tuple[Labels, Sequence[Any]]:
    """Return the labels and sizes of a tensor argument, as broadcast() takes them."""
    return call.of(node), shape_of(node)


def without(labels: Sequence[Label], dims: Sequence[int]) -> Labels:
    """Return labels without those of some dimensions."""
    return tuple(label for dim, label in enumerate(labels) if dim not in dims)


def kept_before(mask: Mask, position: int) -> int:
    """Return how many positions before this one stay."""
    return int(np.count_nonzero(mask[:position]))
