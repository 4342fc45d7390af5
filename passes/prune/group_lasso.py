"""GroupLasso: a penalty for training that drives whole units to zero, so that removing them does little harm.

    strength * sum over units u of sqrt(size of u) * |weights of u|_2

(Yuan and Lin 2006, "Model Selection and Estimation in Regression with Grouped Variables", equation 2.1; for channels
Wen et al. 2016, "Learning Structured Sparsity in Deep Neural Networks".)
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import get_attribute
from fxopt.passes.prune.coordinates import coordinates
from fxopt.passes.prune.groups import Occurrences, occurrences
from fxopt.passes.prune.symbols import Label


@dataclass(frozen=True)
class _Term:
    """The squares of a tensor, summed over all but `dims`, count with `sign` at flat positions `places` for `units`."""

    tensor: str
    dims: tuple[int, ...]
    sign: int
    places: Tensor = field(repr=False)
    units: Tensor = field(repr=False)


@dataclass(frozen=True)
class GroupLasso:
    """The penalty on the units of a Program. Make it once, by group_lasso(), and add it to the loss of each step.

    `sizes`: the number of weights of each unit.
    """

    strength: float
    terms: tuple[_Term, ...] = field(repr=False)
    sizes: Tensor = field(repr=False)

    def __call__(self, program: Program) -> Tensor:
        """Return the penalty of a Program with the tensors of the one it was made for: a number to differentiate.

        The gradient of a unit that is zero is zero.
        """
        return self.strength * (self.sizes.sqrt() * self.norms(program)).sum()

    def norms(self, program: Program) -> Tensor:
        """Return the l2 norm of the weights of each unit, `[units]`."""
        tensors = {term.tensor: get_attribute(program.module, term.tensor) for term in self.terms}
        squares = _sums(self.terms, {name: tensor.square() for name, tensor in tensors.items()}, len(self.sizes))
        live = squares > 0  # the root has no derivative at zero
        return torch.where(live, torch.where(live, squares, 1.0).sqrt(), 0.0)


def group_lasso(program: Program, strength: float) -> GroupLasso:
    """Plan the penalty on all units that channel_groups() finds in a Program.

    The weights of a unit are the positions of all trainable tensors that go with it, biases and the scales of norms
    included, each once. Raises PassError for a strength that is not above 0, and where nothing can be removed.
    """
    if not strength > 0:
        raise PassError(f"group_lasso(strength={strength}) must be above 0.")
    table = occurrences(coordinates(program))
    units, number = np.unique(table.unit, return_inverse=True)
    terms = tuple(_terms(program, table, number))
    if not terms:
        raise PassError("Nothing of this Program can be removed: there are no units. See channel_groups(program).")
    shapes = {term.tensor: get_attribute(program.module, term.tensor) for term in terms}
    ones = {name: torch.ones(tensor.shape) for name, tensor in shapes.items()}
    return GroupLasso(strength, terms, _sums(terms, ones, len(units)))


def _terms(program: Program, table: Occurrences, units: Label) -> Iterator[_Term]:
    """List the terms of each trainable tensor: its elements in the positions of a unit along any dimension, each once.

    |A or B| = |A| + |B| - |A and B|, and so on for more dimensions; two are common: a residual stream that a layer
    reads and writes.
    """
    dims_of: defaultdict[str, list[int]] = defaultdict(list)
    for number, (tensor, _) in enumerate(table.dims):
        value = get_attribute(program.module, tensor)
        if isinstance(value, nn.Parameter) and value.requires_grad:
            dims_of[tensor].append(number)
    for tensor, numbers in dims_of.items():
        positions = [_positions(table, units, number) for number in numbers]
        for count in range(1, len(numbers) + 1):
            for chosen in itertools.combinations(range(len(numbers)), count):
                dims = tuple(table.dims[numbers[index]][1] for index in chosen)
                sizes = [get_attribute(program.module, tensor).shape[dim] for dim in dims]
                found = _meeting([positions[index] for index in chosen], sizes)
                if len(found[0]):
                    yield _Term(tensor, dims, 1 if count % 2 else -1, *map(torch.from_numpy, found))


def _positions(table: Occurrences, units: Label, number: int) -> dict[int, Label]:
    """Return the positions that each unit takes of a dimension."""
    here = table.dim == number
    unit, position = units[here], table.position[here]
    starts = np.flatnonzero(np.diff(unit, prepend=-1))
    return dict(zip(unit[starts].tolist(), np.split(position, starts[1:]), strict=True)) if len(unit) else {}


def _meeting(positions: Sequence[dict[int, Label]], sizes: Sequence[int]) -> tuple[Label, Label]:
    """Return where the positions of a unit along several dimensions meet, as flat places, and the unit of each."""
    shared = set(positions[0]).intersection(*positions[1:])
    places = [np.ravel_multi_index(np.ix_(*(each[unit] for each in positions)), sizes).ravel() for unit in shared]
    empty = np.zeros(0, np.int64)
    units = [np.full(len(place), unit) for unit, place in zip(shared, places, strict=True)]
    return np.concatenate([empty, *places]), np.concatenate([empty, *units])


def _sums(terms: Iterable[_Term], tensors: Mapping[str, Tensor], units: int) -> Tensor:
    """Sum the elements that go with each unit, `[units]`."""
    total = torch.zeros(units)
    for term in terms:
        tensor = tensors[term.tensor]
        others = [dim for dim in range(tensor.ndim) if dim not in term.dims]
        reduced = (tensor.sum(others) if others else tensor).flatten()
        total = total.index_add(0, term.units, reduced[term.places], alpha=term.sign)
    return total
