"""What a group may lose at most: the fewest units that stay of each, by options and by the names of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fxopt.errors import PassError
from fxopt.passes.prune.groups import ChannelGroups, Group
from fxopt.passes.prune.names import check_names, is_below

Caps = float | Mapping[str, float]


def fewest_units(groups: Sequence[Group], at_least: int, at_most: Caps) -> list[int]:
    """Return how many units of each group stay, at least 1: `at_least`, and what its smallest cap leaves.

    `at_most`: the largest share of its units that a group may lose, in [0, 1], for all groups or by tensor or module.
    """
    return [max(1, min(at_least, len(group.units)), _left(group, at_most)) for group in groups]


def _left(group: Group, at_most: Caps) -> int:
    caps = at_most.items() if isinstance(at_most, Mapping) else [("", at_most)]
    shares = (share for name, share in caps if not name or takes_from(group, name))
    return len(group.units) - math.floor(min(shares, default=1.0) * len(group.units) + 1e-9)


def check_limits(groups: ChannelGroups, at_least: int, at_most: Caps) -> None:
    """Raise PassError for numbers and names that make no sense."""
    if at_least < 1:
        raise PassError(f"at_least={at_least} is how many units of each group stay: 1 or more.")
    caps = at_most if isinstance(at_most, Mapping) else {"": at_most}
    for name, share in caps.items():
        if not 0 <= share <= 1:
            of = f" of '{name}'" if name else ""
            raise PassError(f"at_most={share}{of} is the largest share that a group may lose: a number from 0 to 1.")
    check_names(groups.coordinates.program, "at_most", filter(None, caps))


def takes_from(group: Group, path: str) -> bool:
    """Say whether the units of a group take something from a tensor, or from any tensor of a module."""
    return any(is_below(member.tensor, path) for member in group.members)
