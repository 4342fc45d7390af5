"""The exact optimum of time and noise over a choice of nodes, as a mixed-integer linear program.

Solved by scipy's milp, that is HiGHS, a deterministic branch and bound (Huangfu and Hall 2018, "Parallelizing the dual
revised simplex method").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SECONDS = 20.0  # for one program; what is best by then is taken
# How far the result may be from the optimum, as a share of it. Where a network's blocks are alike, the proof that no
# less noise can be had takes minutes for the last per cent, and noise is not predicted as well as that.
TIME_GAP, NOISE_GAP = 1e-4, 1e-2
TIE = 1e-5  # the weight of what is not asked for: of equally fast choices the more exact, and the other way round
WORST = "the worst noise"
Terms = dict[str, float]


@dataclass
class Problem:
    """The linear program: a variable of 0 or 1 for each of `nodes` (1: integer), and others of 0 to 1.

    - `rows`: terms whose sum is at most a bound; a variable that is no node is alone in a row, with a negative factor,
      so that the row says how large it is at least. `seconds`: the terms of the time, to which `constant` is added.
    - `noise`: the terms of the noise of each output.
    """

    nodes: tuple[str, ...]
    rows: list[tuple[Terms, float]] = field(default_factory=list)
    seconds: Terms = field(default_factory=dict)
    constant: float = 0.0
    noise: list[Terms] = field(default_factory=list)

    def variables(self) -> dict[str, int]:
        """Number the variables: the nodes first."""
        names = dict.fromkeys(self.nodes)
        for terms in (*(terms for terms, _ in self.rows), self.seconds, *self.noise):
            names |= dict.fromkeys(terms)
        return {name: number for number, name in enumerate(names)}


@dataclass(frozen=True)
class Solution:
    """A choice of integer nodes, with the seconds of all nodes of the problem and the noise of each output."""

    integer: frozenset[str]
    seconds: float
    noise: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The noise of the worst output."""
        return max(self.noise, default=0.0)


def fastest(problem: Problem, noise: float = math.inf) -> Solution:
    """Return the choice with the least seconds among those with at most so much noise in every output.

    Of several the most exact. If the solver finds none in its time, the choice of no node, which has no noise.
    """
    numbers = problem.variables()
    time = _vector(problem.seconds, numbers) / _unit(problem, numbers)
    rows = [_vector(terms, numbers) for terms in problem.noise]
    bounds = [noise] * len(rows) if math.isfinite(noise) else []
    total = sum((row / max(row.sum(), 1e-30) for row in rows), np.zeros(len(numbers)))
    found = _solve(problem, numbers, time + TIE * total, list(zip(rows, bounds, strict=False)), TIME_GAP)
    return found or Solution(frozenset(), problem.constant, (0.0,) * len(rows))


def most_exact(problem: Problem, seconds: float) -> Solution | None:
    """Return the choice with the least noise of the worst output among those with at most so many seconds, if any."""
    numbers = problem.variables()
    time = _vector(problem.seconds, numbers)
    total = max((sum(terms.values()) for terms in problem.noise), default=0.0) or 1.0
    worst = numbers | {WORST: len(numbers)}
    rows: list[tuple[np.ndarray, float]] = [
        (_vector({**{name: share / total for name, share in terms.items()}, WORST: -1.0}, worst), 0.0)
        for terms in problem.noise
    ]
    rows.append((np.append(time, 0.0), seconds - problem.constant))
    return _solve(problem, worst, np.append(TIE * time / _unit(problem, numbers), 1.0), rows, NOISE_GAP)


def _vector(terms: Terms, numbers: dict[str, int]) -> np.ndarray:
    vector = np.zeros(len(numbers))
    for name, factor in terms.items():
        vector[numbers[name]] += factor
    return vector


def _unit(problem: Problem, numbers: dict[str, int]) -> float:
    """Return what times are divided by: solvers count what is far below one as nothing."""
    return float(np.abs(_vector(problem.seconds, numbers)).sum()) or 1.0


def _solve(
    problem: Problem, numbers: dict[str, int], cost: np.ndarray, bounds: Sequence[tuple[np.ndarray, float]], gap: float
) -> Solution | None:
    if not problem.nodes:
        return Solution(frozenset(), problem.constant, (0.0,) * len(problem.noise))
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes half a second to import

    rows = [*((_vector(terms, numbers), bound) for terms, bound in problem.rows), *bounds]
    rows = rows or [(np.zeros(len(numbers)), 0.0)]
    scales = [_scale(row, bound) for row, bound in rows]
    matrix = np.stack([row / scale for (row, _), scale in zip(rows, scales, strict=True)])
    upper = np.array([bound / scale for (_, bound), scale in zip(rows, scales, strict=True)])
    integral = np.array([name in set(problem.nodes) for name in numbers])
    highest = np.array([np.inf if name == WORST else 1.0 for name in numbers])
    found = milp(
        cost,
        integrality=integral,
        bounds=Bounds(0, highest),
        constraints=LinearConstraint(matrix, -np.inf, upper),
        options={"time_limit": SECONDS, "mip_rel_gap": gap},
    )
    return None if found.x is None else _solution(problem, numbers, found.x)


def _scale(row: np.ndarray, bound: float) -> float:
    """Return what to divide a row by: the solver's tolerance is a share of one."""
    largest = float(np.abs(row).max(initial=0.0))
    return max(bound, 1e-4 * largest) if bound > 0 else largest or 1.0


def _solution(problem: Problem, numbers: dict[str, int], x: np.ndarray) -> Solution:
    """Read off the nodes. The other variables follow: the solver leaves one that costs next to nothing where it is."""
    integer = frozenset(name for name in problem.nodes if x[numbers[name]] > 0.5)
    values = {name: float(name in integer) for name in problem.nodes}
    others = {name: 0.0 for name in problem.variables() if name not in values}
    for terms, bound in problem.rows:
        for name in others.keys() & terms.keys():
            least = sum(factor * values[node] for node, factor in terms.items() if node != name) - bound
            others[name] = max(others[name], least / -terms[name])
    values |= others

    def value(terms: Terms) -> float:
        return sum(factor * values[name] for name, factor in terms.items())

    return Solution(integer, problem.constant + value(problem.seconds), tuple(map(value, problem.noise)))
