"""Remove channels, heads and hidden units for good: the Program that is left is smaller and needs no mask.

y = W2 relu(W1 x)  ->  y = W2[:, kept] relu(W1[kept] x), and so for all that lives and dies together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from fxopt.errors import PassError
from fxopt.graph.example import example_of
from fxopt.graph.interpret import run
from fxopt.graph.program import Program
from fxopt.passes.prune.coordinates import Coordinates, Removal, coordinates
from fxopt.passes.prune.cut import cut
from fxopt.passes.prune.empty_dimensions import without_empty
from fxopt.passes.prune.groups import ChannelGroups, Group, groups_of
from fxopt.passes.prune.masked import prove
from fxopt.passes.prune.ranking import Ranking, check_ranking
from fxopt.passes.prune.remaining_macs import remaining_macs
from fxopt.passes.prune.scores import Score, named_score, unit_scores
from fxopt.passes.prune.select import select_units
from fxopt.passes.prune.symbols import Mask


@dataclass(frozen=True)
class RemoveChannels:
    """Remove the channels that matter least, and prove that the rest computes what the masked original does.

    - `macs`: the share of multiply-accumulate operations to leave, in (0, 1); met within 2 % of the original's.
    - `score`: what matters: an object such as L2() or Taylor(data), or the name "l2" or "l1". See scores.py and
      data_scores.py.
    - `ranking`: which units compete: "global" all of them, by their scores; "local" those of a group, so that all
      groups lose the same share; "isomorphic" those of groups of the same structure; or a tuple of module names,
      those of each module (the rest is one more).
    - `round_to`: widths stay multiples of this where the group has enough units and the target can be met so.
    - `averaged`: "keep" leaves alone what a norm or a mean averages over, so that all that is left is exact.
    - `inputs`: tensors to prove it on, in order (see Program.flatten); made from the specs where none are given.
    - `keep`: names of tensors or modules that lose nothing ("layer1", "head.weight").

    1. What goes together follows from the graph (see coordinates): residual sums, concatenations, reshapes to heads,
       grouped convolutions. There is nothing to configure for an architecture.
    2. Inputs and outputs keep their sizes. So does all that an op without a row in CHANNEL_RULES touches; a note
       names such ops.
    3. Layer norms and means over removed positions are those over the positions that stay; a note says so.
    4. `Program.kept` says which positions are left of every value.

    Raises PassError where the target cannot be reached, for names and numbers that make no sense, and where the
    result is not the masked original within 1e-5 of the outputs' range.
    """

    macs: float = 0.5
    score: Score | Literal["l2", "l1"] = "l2"
    round_to: int = 16
    keep: tuple[str, ...] = ()
    averaged: Literal["cut", "keep"] = "cut"
    inputs: tuple[Tensor, ...] | None = field(default=None, repr=False, compare=False)
    ranking: Ranking = "global"

    def __call__(self, program: Program) -> Program:
        """Return the smaller Program; it shares every tensor that loses nothing."""
        self._check()
        found = coordinates(program)
        groups = groups_of(found)
        candidates = [g for g in _candidates(groups, self.keep) if self.averaged == "cut" or not g.inexact]
        scores = unit_scores(found, candidates, self.score, self.ranking)
        macs = remaining_macs(found)
        removed = select_units(candidates, scores, macs, found.symbols.count, self.macs, self.round_to)
        return remove_units(groups, without_empty(found, removed), self, self.inputs)

    def _check(self) -> None:
        if not 0 < self.macs < 1:
            raise PassError(f"macs={self.macs} is the share of operations to leave: a number between 0 and 1.")
        named_score(self.score)
        check_ranking(self.ranking)
        if self.averaged not in ("cut", "keep"):
            raise PassError(f"averaged='{self.averaged}' must be 'cut' or 'keep'.")
        if self.round_to < 1:
            raise PassError(f"round_to={self.round_to} is what widths are multiples of: 1 or more.")


def remove_units(groups: ChannelGroups, removed: Mask, by: object, inputs: tuple[Tensor, ...] | None = None) -> Program:
    """Return the Program of `groups` without the units marked in `removed`, a mask over symbols, and prove it.

    Raises PassError if the result is not the masked original.
    """
    removal = Removal(groups.coordinates, removed)
    result = cut(removal, by)
    prove(removal, result, _inputs_of(groups.coordinates.program) if inputs is None else inputs)
    return result.with_note(*_notes(groups, removal))


def _inputs_of(program: Program) -> tuple[Tensor, ...]:
    """Make inputs that the Program can run on: integers of 0 and 1, or all 0 where those index out of a table."""
    inputs = example_of(program)
    for candidate in (inputs, tuple(value if value.is_floating_point() else value * 0 for value in inputs)):
        try:
            run(program.eval(), candidate)
        except (IndexError, RuntimeError):
            continue
        return candidate
    raise PassError(
        "No inputs could be made on which this Program runs, so that nothing can be proved. Pass some: "
        "RemoveChannels(inputs=program.flatten(...))."
    )


def units_mask(found: Coordinates, units: list[int]) -> Mask:
    """Return the mask over symbols in which these units are marked."""
    mask = np.zeros(found.symbols.count, bool)
    mask[units] = True
    return mask


def _candidates(groups: ChannelGroups, keep: tuple[str, ...]) -> list[Group]:
    """Return the groups that cut nothing of what is to be kept."""
    names = {str(node.target) for node in groups.coordinates.program.graph.find_nodes(op="get_attr")}
    for wanted in keep:
        if not any(_is_below(name, wanted) for name in names):
            raise PassError(f"keep: no tensor or module is named '{wanted}'. There are {', '.join(sorted(names)[:8])}.")
    return [
        group
        for group in groups.groups
        if not any(_is_below(member.tensor, wanted) for member in group.members for wanted in keep)
    ]


def _is_below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _notes(groups: ChannelGroups, removal: Removal) -> list[str]:
    found = groups.coordinates
    notes = [f"Channels around node '{node}' stay: {reason}." for node, reason in groups.unknown.items()]
    inexact = [node.name for node, labels in found.inexact.items() if removal.cuts(tuple(labels))]
    if inexact:
        listed = ", ".join(inexact[:8]) + (f" and {len(inexact) - 8} more" if len(inexact) > 8 else "")
        notes.append(f"Averages over removed channels are those over the channels that stay: {listed}.")
    return notes
