"""The choice of units, where each unit costs what a table says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fxopt.errors import PassError
from fxopt.passes.prune.groups import Group, Member
from fxopt.passes.prune.select import Goal, select_units
from fxopt.passes.prune.symbols import Mask

WIDE = Group(tuple(range(16)), (Member("wide", 0, 1),), inexact=False)
THIN = Group(tuple(range(16, 32)), (Member("thin", 0, 1),), inexact=False)
COSTS = np.array([30] * 16 + [7] * 16)
WIDE_LAST = {unit: float(unit < 16) for unit in range(32)}


def goal(share: float, **options: Any) -> Goal:
    def amount(removed: Mask) -> int:
        return int(COSTS[~removed].sum())

    return Goal(amount, "cost", share, **{"round_to": 4, "fewest": (1, 1), **options})


def widths(removed: Mask) -> tuple[int, int]:
    return int((~removed[:16]).sum()), int((~removed[16:]).sum())


def test_widths_move_against_each_other_before_steps_become_finer() -> None:
    """All 12 thin units that can go and two steps of wide ones leave 28 too little: one thin step comes back."""
    removed = select_units((WIDE, THIN), WIDE_LAST, goal(0.5), 32)
    assert goal(0.5).amount(removed) == 0.5 * COSTS.sum()
    assert widths(removed) == (8, 8)


def test_steps_become_finer_where_nothing_else_helps() -> None:
    removed = select_units((WIDE,), WIDE_LAST, goal((592 - 5 * 30) / 592, fewest=(1,)), 32)
    assert widths(removed) == (11, 16)


def test_the_fewest_units_stay() -> None:
    removed = select_units((WIDE, THIN), WIDE_LAST, goal(0.5, fewest=(1, 14)), 32)
    assert widths(removed)[1] >= 14 and abs(COSTS[~removed].sum() - 296) <= 0.02 * 296


def test_what_is_too_coarse_is_met_within_two_points_and_no_further() -> None:
    """Ten units of one cost each leave tenths, and nothing between."""
    ten = Group(tuple(range(10)), (Member("ten", 0, 1),), inexact=False)
    scores = {unit: float(unit) for unit in range(10)}

    def amount(removed: Mask) -> int:
        return int((~removed).sum())

    removed = select_units((ten,), scores, Goal(amount, "cost", 0.215, 1, (1,)), 10)
    assert amount(removed) == 2 and not removed[8:].any()
    with pytest.raises(PassError, match=r"25% of the cost cannot be reached: .* 10.0% are left.* found is [23]0.0%"):
        select_units((ten,), scores, Goal(amount, "cost", 0.25, 1, (1,)), 10)
