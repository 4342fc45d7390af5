"""What must hold for every removal of units, with an oracle that knows nothing of labels inside the graph."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, get_attribute, same_kind, set_attribute
from fxopt.graph.verify import verify
from fxopt.passes.prune.empty_dimensions import without_empty
from fxopt.passes.prune.groups import ChannelGroups, channel_groups
from fxopt.passes.prune.masked import relative_error
from fxopt.passes.prune.remove_channels import remove_units, units_mask
from tests.passes.cleanup.checks import program_of

BOUND = 1e-5  # of the outputs' range


@dataclass(frozen=True)
class Case:
    """A function of (module, inputs), its members and inputs, and the sizes of the groups that it must have.

    `exact`: zeroing all that a unit holds in the original gives the same outputs; not so where an op averages over
    units or where zeros are not nothing.
    """

    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    members: dict[str, Any]
    widths: tuple[int, ...]
    exact: bool = True
    dynamic: str | None = None

    def program(self) -> Program:
        torch.manual_seed(0)
        return program_of(self.function, *self.inputs, dynamic=self.dynamic, **self.members)


def case(
    function: Callable[..., Any],
    *inputs: Tensor,
    widths: Sequence[int],
    exact: bool = True,
    dynamic: str | None = None,
    **members: Any,
) -> Case:
    return Case(function, inputs, members, tuple(sorted(widths, reverse=True)), exact, dynamic)


def widths_of(groups: ChannelGroups) -> tuple[int, ...]:
    return tuple(sorted((len(group.units) for group in groups.groups), reverse=True))


def some_units(groups: ChannelGroups, seed: int = 0) -> list[int]:
    """Choose about half of the units of every group, never all."""
    chosen: list[int] = []
    generator = random.Random(seed)
    for group in groups.groups:
        chosen += generator.sample(group.units, (len(group.units)) // 2)
    return chosen


def zeroed(groups: ChannelGroups, units: Sequence[int]) -> Program:
    """Return the original with zeros wherever a tensor of the module holds something of these units."""
    edit = Edit(groups.coordinates.program, by=None)
    names = {str(node.target) for node in edit.graph.find_nodes(op="get_attr")}
    tensors = {name: get_attribute(edit.module, name) for name in names}
    changed = {tensor.data_ptr(): tensor.detach().clone() for tensor in tensors.values()}
    for cut in (cut for unit in units for cut in groups.slices(unit)):
        changed[tensors[cut.tensor].data_ptr()].index_fill_(cut.dim, torch.tensor(cut.indices), 0)
    for name, old in tensors.items():
        set_attribute(edit.module, name, same_kind(old, changed[old.data_ptr()]))
    return edit.finish()


def check_removal(program: Program, inputs: tuple[Tensor, ...], exact: bool = True, seed: int = 0) -> Program:
    """Remove half of the units of each group and check sizes, record and outputs."""
    groups = channel_groups(program)
    removed = without_empty(groups.coordinates, units_mask(groups.coordinates, some_units(groups, seed)))
    units = removed.nonzero()[0].tolist()
    before = str(program)
    result = remove_units(groups, removed, "test")
    assert str(program) == before
    verify(result, full=True)
    for cut in {cut for unit in units for cut in groups.slices(unit)}:
        kept = result.kept[cut.tensor.replace(".", "_")][cut.dim]
        assert not set(kept) & set(cut.indices)
    if exact:
        same_outputs(zeroed(groups, units), result, inputs)
    return result


def same_outputs(expected: Program, actual: Program, inputs: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        for left, right in zip(expected.module(*inputs), actual.module(*inputs), strict=True):
            assert relative_error(left, right) <= BOUND
