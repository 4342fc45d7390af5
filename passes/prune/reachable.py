"""reachable(): between which amounts the solver can choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fxopt.passes.prune.coordinates import Coordinates
from fxopt.passes.prune.empty_dimensions import without_empty
from fxopt.passes.prune.groups import ChannelGroups, Group
from fxopt.passes.prune.remaining_macs import remaining_macs
from fxopt.passes.prune.remaining_parameters import remaining_parameters
from fxopt.passes.prune.select import least_left
from fxopt.passes.prune.symbols import Mask

AMOUNTS: dict[str, Callable[[Coordinates], Callable[[Mask], int]]] = {
    "macs": remaining_macs,
    "parameters": remaining_parameters,
}
WORDS = {"macs": "multiply-accumulate operations", "parameters": "parameters"}


@dataclass(frozen=True)
class Range:
    """The least that can be left of an amount, and all of it."""

    least: int
    whole: int

    @property
    def share(self) -> float:
        """The least share."""
        return self.least / max(self.whole, 1)


def reachable(
    groups: ChannelGroups, candidates: Sequence[Group] | None = None, fewest: Sequence[int] | None = None
) -> dict[str, Range]:
    """Return what can be left of the multiply-accumulates of a call and of the parameters ("macs", "parameters").

    `candidates`: the groups that may lose units (all), down to `fewest` of each (1).
    """
    found = groups.coordinates
    several = groups.groups if candidates is None else candidates
    nothing = np.zeros(found.symbols.count, bool)
    most = least_left(several, [1] * len(several) if fewest is None else fewest, found.symbols.count)
    most = without_empty(found, most)
    return {name: Range(amount(most), amount(nothing)) for name, of in AMOUNTS.items() for amount in [of(found)]}
