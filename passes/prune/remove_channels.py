"""Remove channels, heads and hidden units for good: the Program that is left is smaller and needs no mask.

y = W2 relu(W1 x)  ->  y = W2[:, kept] relu(W1[kept] x), and so for all that lives and dies together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from fxopt.errors import PassError, where
from fxopt.graph.blocks import dequantize_blocks
from fxopt.graph.dynamic_lstm import dynamic_lstm
from fxopt.graph.example import example_of
from fxopt.graph.interpret import run
from fxopt.graph.learned import learned_fake_quantize
from fxopt.graph.ops import dequantize, dynamic_quantize, fake_quantize, observe, quantize
from fxopt.graph.program import Program
from fxopt.passes.prune.coordinates import Coordinates, Removal, coordinates
from fxopt.passes.prune.cut import cut
from fxopt.passes.prune.empty_dimensions import without_empty
from fxopt.passes.prune.groups import ChannelGroups, Group, groups_of
from fxopt.passes.prune.limits import check_limits, fewest_units, takes_from
from fxopt.passes.prune.masked import prove
from fxopt.passes.prune.names import check_names
from fxopt.passes.prune.ranking import Ranking, check_ranking
from fxopt.passes.prune.reachable import AMOUNTS, WORDS, reachable
from fxopt.passes.prune.scores import Score, named_score, unit_scores
from fxopt.passes.prune.select import Goal, select_units
from fxopt.passes.prune.symbols import Mask

QUANTIZED = frozenset({
    quantize, dequantize, dynamic_quantize, fake_quantize, learned_fake_quantize, observe, dequantize_blocks,
    dynamic_lstm,
})  # fmt: skip


@dataclass(frozen=True)
class RemoveChannels:
    """Remove the channels that matter least, and prove that the rest computes what the masked original does.

    - `macs`, `parameters`: the share of multiply-accumulate operations, or of the elements of all tensors, to leave, in
      (0, 1): one of the two, without any macs=0.5. Met within 2 % of itself, or within 2 points where a unit is more
      than that; a note says what is left.
    - `score`: what matters: an object such as L2() or Taylor(data), or the name "l2" or "l1". See scores.py and
      data_scores.py.
    - `ranking`: which units compete: "global" all of them, by their scores; "local" those of a group, so that all
      groups lose the same share; "isomorphic" those of groups of the same structure; or a tuple of module names,
      those of each module (the rest is one more).
    - `round_to`: widths stay multiples of this where the group has enough units and the target can be met so.
    - `at_least`: how many units (channels, heads, ...) of each group stay at least.
    - `at_most`: the largest share of its units that a group may lose, in [0, 1]; a mapping from names of tensors or
      modules caps the groups that take from those.
    - `keep`: names of tensors or modules that lose nothing ("layer1", "head.weight").
    - `averaged`: "keep" leaves alone what a norm or a mean averages over, so that all that is left is exact.
    - `inputs`: tensors to prove it on, in order (see Program.flatten); made from the specs where none are given.

    1. What goes together follows from the graph (see coordinates): residual sums, concatenations, reshapes to heads,
       grouped convolutions. There is nothing to configure for an architecture.
    2. Inputs and outputs keep their sizes. So does all that an op without a row in CHANNEL_RULES touches; a note
       names such ops.
    3. Layer norms and means over removed positions are those over the positions that stay; a note says so.
    4. `Program.kept` says which positions are left of every value.

    Raises PassError where the target cannot be reached, for names and numbers that make no sense, and where the
    result is not the masked original within 1e-5 of the outputs' range.
    """

    macs: float | None = None
    parameters: float | None = None
    score: Score | Literal["l2", "l1"] = "l2"
    ranking: Ranking = "global"
    round_to: int = 16
    at_least: int = 1
    at_most: float | Mapping[str, float] = 1.0
    keep: tuple[str, ...] = ()
    averaged: Literal["cut", "keep"] = "cut"
    inputs: tuple[Tensor, ...] | None = field(default=None, repr=False, compare=False)

    def __call__(self, program: Program) -> Program:
        """Return the smaller Program; it shares every tensor that loses nothing."""
        self._check()
        found = coordinates(_float_only(program))
        groups = groups_of(found)
        candidates = self._candidates(groups)
        scores = unit_scores(found, candidates, self.score, self.ranking)
        name, share = self._target()
        amount, fewest = AMOUNTS[name](found), fewest_units(candidates, self.at_least, self.at_most)
        goal = Goal(amount, WORDS[name], share, self.round_to, fewest)
        removed = without_empty(found, select_units(candidates, scores, goal, found.symbols.count))
        return remove_units(groups, removed, self, self.inputs).with_note(_reached(goal, removed))

    def least(self, program: Program) -> float:
        """Return the least share of the target's amount that these options can reach."""
        self._check()
        groups = groups_of(coordinates(_float_only(program)))
        candidates = self._candidates(groups)
        fewest = fewest_units(candidates, self.at_least, self.at_most)
        return reachable(groups, candidates, fewest)[self._target()[0]].share

    def _target(self) -> tuple[str, float]:
        """Return the name of the amount to meet, and the share of it."""
        if self.parameters is not None:
            return "parameters", self.parameters
        return "macs", 0.5 if self.macs is None else self.macs

    def _candidates(self, groups: ChannelGroups) -> list[Group]:
        """Return the groups that cut nothing of what is to be kept."""
        check_names(groups.coordinates.program, "keep", self.keep)
        check_limits(groups, self.at_least, self.at_most)
        kept = (g for g in groups.groups if not any(takes_from(g, path) for path in self.keep))
        return [group for group in kept if self.averaged == "cut" or not group.inexact]

    def _check(self) -> None:
        if self.macs is not None and self.parameters is not None:
            raise PassError("Give macs or parameters, not both: one share is met, the other one follows.")
        name, share = self._target()
        if not 0 < share < 1:
            raise PassError(f"{name}={share} is the share of {WORDS[name]} to leave: a number between 0 and 1.")
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


def _float_only(program: Program) -> Program:
    """Return a Program without integer arithmetic. Raises PassError for a quantized one."""
    for node in program.graph.nodes:
        if node.target in QUANTIZED:
            raise PassError(
                f"This Program is quantized ({where(node)}): its scales and zero points belong to all of its channels. "
                "Remove channels first and quantize what is left: Pipeline([RemoveChannels(...), Quantize(data)])."
            )
    return program


def _reached(goal: Goal, removed: Mask) -> str:
    whole, left = goal.amount(np.zeros_like(removed)), goal.amount(removed)
    return f"{goal.what.capitalize()}: {goal.share:.1%} asked for, {left / max(whole, 1):.1%} left."


def _notes(groups: ChannelGroups, removal: Removal) -> list[str]:
    found = groups.coordinates
    notes = [f"Channels around node '{node}' stay: {reason}." for node, reason in groups.unknown.items()]
    inexact = [node.name for node, labels in found.inexact.items() if removal.cuts(tuple(labels))]
    if inexact:
        listed = ", ".join(inexact[:8]) + (f" and {len(inexact) - 8} more" if len(inexact) > 8 else "")
        notes.append(f"Averages over removed channels are those over the channels that stay: {listed}.")
    return notes
