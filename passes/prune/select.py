"""Which units go: those of the lowest score, group by group in steps of rounded widths, until the target is met.

Every group gives a row of events, "the next few units of this group go", each with the highest score among them. All
events in the order of their scores are a sequence of ever smaller networks, in which the target is found by bisection.
An event that would go below the target is left out, with the later ones of its group. What is still missing then is
less than any event. Where that is more than allowed, widths of the groups nearest to the threshold move against each
other, two at a time; and where that does not help, steps become finer, down to single units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fxopt.errors import PassError
from fxopt.passes.prune.groups import Group
from fxopt.passes.prune.scores import Scores
from fxopt.passes.prune.symbols import Mask

TOLERANCE = 0.02  # of the amount asked for
COARSE = 0.02  # of the original amount: allowed where no unit is small enough for TOLERANCE
NEAR = 0.005  # of the amount asked for; nearer than this, nothing else is tried
MOVED, MOVES = 8, 2  # groups whose widths may move in the end, and by how many steps

Amount = Callable[[Mask], int]


@dataclass(frozen=True)
class Goal:
    """How much is to be left, and how.

    - `share`: of `amount(nothing removed)`; `what`: the name of the amount, for messages.
    - `round_to`: what widths should be multiples of. `fewest`: of each group, how many units stay at least.
    """

    amount: Amount
    what: str
    share: float
    round_to: int
    fewest: Sequence[int]


@dataclass(frozen=True)
class Event:
    """The next units of a group to go, and the highest of their scores."""

    score: float
    group: int
    units: tuple[int, ...]


def events_of(
    groups: Sequence[Group], scores: Scores, removed: Mask, goal: Goal, finest: int | None = None
) -> list[Event]:
    """List the events of all groups, lowest score first: widths become multiples of `finest` or of their own step."""
    events: list[Event] = []
    for number, group in enumerate(groups):
        units = sorted((unit for unit in group.units if not removed[unit]), key=lambda unit: (scores[unit], unit))
        positions = max(member.positions for member in group.members)
        step = step_of_width(len(group.units), positions, goal.round_to) if finest is None else finest
        least = max(step, goal.fewest[number])
        start, highest = 0, 0.0
        while (stop := start + ((len(units) - start - 1) % step) + 1) <= len(units) - least:
            highest = max(highest, scores[units[stop - 1]])
            events.append(Event(highest, number, tuple(units[start:stop])))
            start = stop
    return sorted(events, key=lambda event: (event.score, event.group))


def step_of_width(units: int, positions: int, round_to: int) -> int:
    """Return the number of units by which a width changes, so that it stays a multiple of `round_to` where it can.

    Units that take several positions each need fewer to be a multiple; a group of few units changes in finer steps.
    """
    step = max(1, round_to // math.gcd(round_to, positions))
    while step > 1 and step * 3 > units:
        step = (step + 1) // 2
    return step


def select_units(groups: Sequence[Group], scores: Scores, goal: Goal, count: int) -> Mask:
    """Return the mask of atoms to remove, out of `count`, so that about the share asked for is left.

    Raises PassError, saying what can be reached, if that is more than TOLERANCE and more than COARSE away.
    """
    nothing = np.zeros(count, bool)
    whole = goal.amount(nothing)
    target, removed, best = goal.share * whole, nothing, nothing
    for finest in _steps(goal.round_to):
        if abs(goal.amount(best) - target) <= TOLERANCE * target:
            break
        events = events_of(groups, scores, removed, goal, finest)
        removed, candidate = _approach(events, removed, goal.amount, target)
        tried = [best, candidate, _moved(events, candidate, goal.amount, target)]
        if finest is not None:  # from the beginning: other groups are at their end when the target is near
            events = events_of(groups, scores, nothing, goal, finest)
            tried.append(_approach(events, nothing, goal.amount, target)[1])
        best = min(tried, key=lambda mask: abs(goal.amount(mask) - target))
    if abs(goal.amount(best) - target) > max(TOLERANCE * target, COARSE * whole):
        raise PassError(_unreachable(groups, goal, nothing, goal.amount(best)))
    return best


def _steps(round_to: int) -> Iterator[int | None]:
    """Yield the steps of widths to try: each group's own, then ever finer ones, down to single units."""
    yield None
    while round_to > 1:
        round_to //= 2
        yield round_to


def least_left(groups: Sequence[Group], fewest: Sequence[int], count: int) -> Mask:
    """Return the mask of atoms to remove, out of `count`, so that only the fewest units of each group stay."""
    mask = np.zeros(count, bool)
    mask[[unit for group, stay in zip(groups, fewest, strict=True) for unit in group.units[stay:]]] = True
    return mask


def _approach(events: Sequence[Event], removed: Mask, amount: Amount, target: float) -> tuple[Mask, Mask]:
    """Let events happen in order as long as the target is not passed; returns that, and the nearest state met."""
    best, rest = removed, list(events)
    while rest and amount(removed) > target:
        done = _bisect(rest, removed, amount, target)
        removed = _without(removed, rest[:done])
        best = min(best, removed, _without(removed, rest[done : done + 1]), key=lambda mask: abs(amount(mask) - target))
        if done == len(rest) or abs(amount(best) - target) <= NEAR * target:
            break
        rest = [event for event in rest[done + 1 :] if event.group != rest[done].group]
    return removed, best


def _moved(events: Sequence[Event], removed: Mask, amount: Amount, target: float) -> Mask:
    """Move widths of one or two groups by a few steps, so that the amount is nearest to the target."""
    if abs(amount(removed) - target) <= TOLERANCE * target:
        return removed
    done = [event for event in events if removed[list(event.units)].all()]
    threshold = max((event.score for event in done), default=0.0)
    near = sorted(events, key=lambda event: abs(event.score - threshold))
    groups = list(dict.fromkeys(event.group for event in near))[:MOVED]
    moves = [move for group in groups for move in _moves([e for e in events if e.group == group], removed)]
    best = removed
    for first, second in itertools.chain(((m, m) for m in moves), itertools.combinations(moves, 2)):
        candidate = removed.copy()
        for units, goes in (first, second):
            candidate[units] = goes
        best = min(best, candidate, key=lambda mask: abs(amount(mask) - target))
    return best


def _moves(events: Sequence[Event], removed: Mask) -> Iterator[tuple[list[int], bool]]:
    """Yield changes of the width of one group whose events these are: units, and whether they go."""
    done = sum(bool(removed[list(event.units)].all()) for event in events)
    for steps in range(1, MOVES + 1):
        if steps <= done:
            yield [unit for event in events[done - steps : done] for unit in event.units], False
        if steps <= len(events) - done:
            yield [unit for event in events[done : done + steps] for unit in event.units], True


def _without(removed: Mask, events: Sequence[Event]) -> Mask:
    result = removed.copy()
    result[[unit for event in events for unit in event.units]] = True
    return result


def _bisect(events: Sequence[Event], removed: Mask, amount: Amount, target: float) -> int:
    """Return how many events can happen before the amount falls below the target."""
    low, high = 0, len(events)
    while low < high:
        middle = (low + high + 1) // 2
        if amount(_without(removed, events[:middle])) >= target:
            low = middle
        else:
            high = middle - 1
    return low


def _unreachable(groups: Sequence[Group], goal: Goal, nothing: Mask, left: int) -> str:
    least = goal.amount(least_left(groups, goal.fewest, len(nothing)))
    whole = max(goal.amount(nothing), 1)
    return (
        f"{goal.share:.0%} of the {goal.what} cannot be reached: with all removable channels gone "
        f"{least / whole:.1%} are left, and the nearest that was found is {left / whole:.1%}. Ask for one of "
        "those, loosen keep, at_least or at_most, or see channel_groups(program) for what stays and why."
    )
