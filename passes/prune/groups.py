"""channel_groups(): what of a Program can be removed, and what must go together.

A *unit* is one atom that tensors of the module hold and nothing freezes: an output channel with all that reads it, an
attention head, a position of every head. Units that cut the same dimensions of the same tensors in as many positions
are alike, and form a *group*; how many of a group stay is one width of the network. Where units that are alike meet
in one position, as heads and their positions do where there are as many of both, those made together are a group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import fx

from fxopt.graph.program import Program
from fxopt.graph.rewrite import constant
from fxopt.passes.prune.coordinates import Coordinates, coordinates
from fxopt.passes.prune.symbols import Label


@dataclass(frozen=True)
class Member:
    """A dimension of a tensor that a group cuts, and the number of positions that each unit takes from it."""

    tensor: str
    dim: int
    positions: int


@dataclass(frozen=True)
class Slice:
    """The positions of one dimension of a tensor that go with one unit."""

    tensor: str
    dim: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Frozen:
    """A dimension of a tensor of which some positions always stay, and why."""

    tensor: str
    dim: int
    positions: int
    reason: str

    def __str__(self) -> str:
        return f"{self.positions} positions of {self.tensor}[{self.dim}] stay: {self.reason}"


@dataclass(frozen=True)
class Group:
    """Units that are alike. `inexact`: some op averages over them, so that it computes something else without them.

    Any of them can go, so long as one stays.
    """

    units: tuple[int, ...]
    members: tuple[Member, ...]
    inexact: bool

    @property
    def name(self) -> str:
        """The first dimension that the group cuts, which is the one that produces it."""
        return f"{self.members[0].tensor}[{self.members[0].dim}]"

    def __str__(self) -> str:
        others = f" and {len(self.members) - 1} more dimensions" if len(self.members) > 1 else ""
        return f"{len(self.units)} units of {self.name}{others}{' (inexact)' if self.inexact else ''}"


@dataclass(frozen=True)
class ChannelGroups:
    """The groups of a Program, what stays and why, and the ops that no rule covers (node name: reason)."""

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    unknown: dict[str, str]
    coordinates: Coordinates = field(repr=False)

    def slices(self, unit: int) -> tuple[Slice, ...]:
        """Return what goes with a unit, tensor by tensor."""
        found = []
        for tensor, dim, label in tensor_labels(self.coordinates):
            positions = np.flatnonzero((self.coordinates.leaves(label) == unit).any(1))
            if len(positions):
                found.append(Slice(tensor, dim, tuple(positions.tolist())))
        return tuple(found)

    def __str__(self) -> str:
        lines = [str(group) for group in self.groups]
        lines += map(str, self.frozen)
        return "\n".join([*lines, *(f"{node}: {reason}" for node, reason in self.unknown.items())])


@dataclass(frozen=True)
class Occurrences:
    """Where units occur: arrays of unit, number of the dimension, and position, one entry each; sorted by unit."""

    dims: tuple[tuple[str, int], ...]
    unit: Label
    dim: Label
    position: Label


def channel_groups(program: Program) -> ChannelGroups:
    """Find what of a Program can be removed."""
    return groups_of(coordinates(program))


def groups_of(found: Coordinates) -> ChannelGroups:
    """Read the groups off the coordinates of a Program."""
    table = occurrences(found)
    inexact = _inexact_atoms(found)
    alike: dict[tuple[bytes, bytes], list[int]] = {}
    members: dict[tuple[bytes, bytes], tuple[Label, Label]] = {}
    for unit, dims, counts in _by_unit(table):
        key = (dims.tobytes(), counts.tobytes())
        alike.setdefault(key, []).append(unit)
        members.setdefault(key, (dims, counts))
    meeting = _meeting(found, table, list(alike.values()))
    groups = tuple(
        Group(
            tuple(units),
            tuple(Member(table.dims[d][0], table.dims[d][1], int(n)) for d, n in zip(*members[key], strict=True)),
            any(unit in inexact for unit in units),
        )
        for number, (key, several) in enumerate(alike.items())
        for units in (_by_birth(found, several) if number in meeting else [several])
    )
    return ChannelGroups(groups, tuple(_frozen(found)), dict(found.unknown), found)


def tensor_nodes(found: Coordinates) -> Iterator[tuple[str, fx.Node]]:
    """Iterate over the floating-point tensors of the module, each memory once: (name, node)."""
    seen: set[int] = set()
    for node in found.program.graph.find_nodes(op="get_attr"):
        tensor, labels = constant(found.program.module, node), found.labels[node]
        if tensor is None or not tensor.is_floating_point() or id(labels) in seen:
            continue
        seen.add(id(labels))
        yield str(node.target), node


def tensor_labels(found: Coordinates) -> Iterator[tuple[str, int, Label]]:
    """Iterate over the dimensions of those tensors: (tensor, dimension, label)."""
    for name, node in tensor_nodes(found):
        labels = found.labels[node]
        assert isinstance(labels, tuple)
        for dim, label in enumerate(labels):
            yield name, dim, label


def occurrences(found: Coordinates) -> Occurrences:
    """List where every unit occurs in the tensors of the module."""
    dims: list[tuple[str, int]] = []
    units: list[Label] = []
    numbers: list[Label] = []
    positions: list[Label] = []
    for number, (tensor, dim, label) in enumerate(tensor_labels(found)):
        dims.append((tensor, dim))
        leaves = found.leaves(label)
        position, column = np.nonzero(leaves)
        units.append(leaves[position, column])
        positions.append(position)
        numbers.append(np.full(len(position), number, np.int64))
    if not dims:
        empty = np.zeros(0, np.int64)
        return Occurrences((), empty, empty, empty)
    unit = np.concatenate(units)
    order = np.argsort(unit, kind="stable")
    return Occurrences(tuple(dims), unit[order], np.concatenate(numbers)[order], np.concatenate(positions)[order])


def _by_unit(table: Occurrences) -> Iterator[tuple[int, Label, Label]]:
    """Iterate over (unit, dimensions it cuts, positions in each)."""
    if not len(table.unit):
        return
    pairs, counts = np.unique(table.unit * len(table.dims) + table.dim, return_counts=True)
    units, dims = np.divmod(pairs, len(table.dims))
    starts = np.flatnonzero(np.diff(units, prepend=-1)).tolist()
    for start, end in itertools.pairwise([*starts, len(pairs)]):
        yield int(units[start]), dims[start:end], counts[start:end]


def _meeting(found: Coordinates, table: Occurrences, kinds: Sequence[list[int]]) -> set[int]:
    """Return the numbers of the kinds of units of which two meet in one position."""
    kind = np.zeros(found.symbols.count, np.int64)
    for number, units in enumerate(kinds):
        kind[units] = number
    longest = int(table.position.max(initial=0)) + 1
    places = (kind[table.unit] * len(table.dims) + table.dim) * longest + table.position
    unique, counts = np.unique(places, return_counts=True)
    return set((unique[counts > 1] // (longest * len(table.dims))).tolist())


def _by_birth(found: Coordinates, units: list[int]) -> list[list[int]]:
    births: dict[int, list[int]] = {}
    for unit in units:
        births.setdefault(int(found.symbols.birth[unit]), []).append(unit)
    return list(births.values())


def _inexact_atoms(found: Coordinates) -> set[int]:
    labels = [label for several in found.inexact.values() for label in several if label.any()]
    return {int(atom) for label in labels for atom in np.unique(found.leaves(label))} - {0}


def _frozen(found: Coordinates) -> Iterator[Frozen]:
    for tensor, dim, label in tensor_labels(found):
        stays = found.leaves(label)[:, 0] == 0
        if len(label) > 1 and stays.any():
            reason = found.symbols.reason(int(label[int(stays.argmax())]))
            yield Frozen(tensor, dim, int(stays.sum()), reason)
