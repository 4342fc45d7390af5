"""Which units go: those of the lowest score, group by group in steps of rounded widths, until the target is met.

Every group gives a row of events, "the next few units of this group go", each with the highest score among them. All
events in the order of their scores are a sequence of ever smaller networks, in which the target is found by bisection.
An event that shrinks the network far below the target is left out, with the later ones of its group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fxopt.errors import PassError
from fxopt.passes.prune.groups import Group
from fxopt.passes.prune.remaining_macs import step_of_width
from fxopt.passes.prune.scores import Scores
from fxopt.passes.prune.symbols import Mask

TOLERANCE = 0.02  # of the original operations
NEAR = 0.002  # nearer than this, nothing is tried any more


@dataclass(frozen=True)
class Event:
    """The next units of a group to go, and the highest of their scores."""

    score: float
    group: int
    units: tuple[int, ...]


def events_of(groups: Sequence[Group], scores: Scores, round_to: int) -> list[Event]:
    """List the events of all groups, lowest score first."""
    events: list[Event] = []
    for number, group in enumerate(groups):
        order = sorted(group.units, key=lambda unit: (scores[unit], unit))
        step = step_of_width(len(order), max(member.positions for member in group.members), round_to)
        start, highest = 0, 0.0
        while (stop := start + ((len(order) - start - 1) % step) + 1) <= len(order) - step:
            highest = max(highest, scores[order[stop - 1]])
            events.append(Event(highest, number, tuple(order[start:stop])))
            start = stop
    return sorted(events, key=lambda event: (event.score, event.group))


def select_units(events: Sequence[Event], macs: Callable[[Mask], int], count: int, share: float) -> Mask:
    """Return the mask of atoms to remove, out of `count`, so that about `share` of the operations are left.

    Raises PassError, saying what can be reached, if that is more than TOLERANCE away.
    """
    removed = np.zeros(count, bool)
    whole = macs(removed)
    target, rest, best = share * whole, list(events), removed
    while rest and macs(removed) > target:
        done = _bisect(rest, removed, macs, target)
        removed = _without(removed, rest[:done])
        best = min(best, removed, _without(removed, rest[done : done + 1]), key=lambda mask: abs(macs(mask) - target))
        if done == len(rest) or abs(macs(best) - target) <= NEAR * whole:
            break
        rest = [event for event in rest[done + 1 :] if event.group != rest[done].group]
    if abs(macs(best) - target) > TOLERANCE * whole:
        raise PassError(_unreachable(events, macs, count, whole, share, macs(best)))
    return best


def _without(removed: Mask, events: Sequence[Event]) -> Mask:
    result = removed.copy()
    result[[unit for event in events for unit in event.units]] = True
    return result


def _bisect(events: Sequence[Event], removed: Mask, macs: Callable[[Mask], int], target: float) -> int:
    """Return how many events can happen before the operations fall to the target."""
    low, high = 0, len(events)
    while low < high:
        middle = (low + high + 1) // 2
        if macs(_without(removed, events[:middle])) > target:
            low = middle
        else:
            high = middle - 1
    return low


def _unreachable(
    events: Sequence[Event], macs: Callable[[Mask], int], count: int, whole: int, share: float, left: int
) -> str:
    least = macs(_without(np.zeros(count, bool), events)) / max(whole, 1)
    return (
        f"{share:.0%} of the multiply-accumulate operations cannot be reached: with all removable channels gone "
        f"{least:.1%} are left, and the nearest that was found is {left / max(whole, 1):.1%}. Ask for one of those, or "
        "see channel_groups(program) for what stays and why."
    )
