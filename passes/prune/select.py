"""Which units go: those of the lowest score, group by group in steps of rounded widths, until the target is met.

Every group gives a row of events, "the next few units of this group go", each with the highest score among them. All
events in the order of their scores are a sequence of ever smaller networks, in which the target is found by bisection.
An event that would go below the target is left out, with the later ones of its group. What is still missing then is
less than any event; finer steps, down to single units, close the gap where it is wider than allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fxopt.errors import PassError
from fxopt.passes.prune.groups import Group
from fxopt.passes.prune.scores import Scores
from fxopt.passes.prune.symbols import Mask

TOLERANCE = 0.02  # of the original operations
NEAR = 0.005  # nearer than this, nothing else is tried

Macs = Callable[[Mask], int]


@dataclass(frozen=True)
class Event:
    """The next units of a group to go, and the highest of their scores."""

    score: float
    group: int
    units: tuple[int, ...]


def events_of(
    groups: Sequence[Group], scores: Scores, removed: Mask, round_to: int, finest: int | None = None
) -> list[Event]:
    """List the events of all groups, lowest score first: widths become multiples of `finest` or of their own step."""
    events: list[Event] = []
    for number, group in enumerate(groups):
        units = sorted((unit for unit in group.units if not removed[unit]), key=lambda unit: (scores[unit], unit))
        positions = max(member.positions for member in group.members)
        step = step_of_width(len(group.units), positions, round_to) if finest is None else finest
        start, highest = 0, 0.0
        while (stop := start + ((len(units) - start - 1) % step) + 1) <= len(units) - step:
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


def select_units(groups: Sequence[Group], scores: Scores, macs: Macs, count: int, share: float, round_to: int) -> Mask:
    """Return the mask of atoms to remove, out of `count`, so that about `share` of the operations are left.

    Raises PassError, saying what can be reached, if that is more than TOLERANCE away.
    """
    nothing = np.zeros(count, bool)
    whole = macs(nothing)
    target, removed, best = share * whole, nothing, nothing
    finest: int | None = None
    while abs(macs(best) - target) > TOLERANCE * whole and finest != 1:
        events = events_of(groups, scores, removed, round_to, finest)
        removed, candidate = _approach(events, removed, macs, target, NEAR * whole)
        tried = [best, candidate]
        if finest is not None:  # from the beginning: other groups are at their end when the target is near
            events = events_of(groups, scores, nothing, round_to, finest)
            tried.append(_approach(events, nothing, macs, target, NEAR * whole)[1])
        best = min(tried, key=lambda mask: abs(macs(mask) - target))
        finest = max(1, (finest or round_to) // 2)
    if abs(macs(best) - target) > TOLERANCE * whole:
        raise PassError(_unreachable(groups, macs, nothing, share, macs(best)))
    return best


def _approach(events: Sequence[Event], removed: Mask, macs: Macs, target: float, near: float) -> tuple[Mask, Mask]:
    """Let events happen in order as long as the target is not passed; returns that, and the nearest state met."""
    best, rest = removed, list(events)
    while rest and macs(removed) > target:
        done = _bisect(rest, removed, macs, target)
        removed = _without(removed, rest[:done])
        best = min(best, removed, _without(removed, rest[done : done + 1]), key=lambda mask: abs(macs(mask) - target))
        if done == len(rest) or abs(macs(best) - target) <= near:
            break
        rest = [event for event in rest[done + 1 :] if event.group != rest[done].group]
    return removed, best


def _without(removed: Mask, events: Sequence[Event]) -> Mask:
    result = removed.copy()
    result[[unit for event in events for unit in event.units]] = True
    return result


def _bisect(events: Sequence[Event], removed: Mask, macs: Macs, target: float) -> int:
    """Return how many events can happen before the operations fall below the target."""
    low, high = 0, len(events)
    while low < high:
        middle = (low + high + 1) // 2
        if macs(_without(removed, events[:middle])) >= target:
            low = middle
        else:
            high = middle - 1
    return low


def _unreachable(groups: Sequence[Group], macs: Macs, nothing: Mask, share: float, left: int) -> str:
    least, whole = nothing.copy(), max(macs(nothing), 1)
    least[[unit for group in groups for unit in group.units[1:]]] = True
    return (
        f"{share:.0%} of the multiply-accumulate operations cannot be reached: with all removable channels gone "
        f"{macs(least) / whole:.1%} are left, and the nearest that was found is {left / whole:.1%}. Ask for one of "
        "those, or see channel_groups(program) for what stays and why."
    )
