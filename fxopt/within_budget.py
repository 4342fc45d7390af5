"""The search for the best model within max_drop and max_latency.

Files that exist count first. If the fastest of them loses too much, or a more exact one is fast enough, measured noise
and times of all nodes say which ones should be float (placement_problem, solve). What that predicts is only a proposal:
each is built, proved, timed and judged, and the next one corrects the internal bound by what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from fxopt.choose import Candidate
from fxopt.data import first_samples, split_items
from fxopt.errors import BudgetError, ValidationError
from fxopt.export.measure import KernelTime
from fxopt.fidelity import Samples
from fxopt.job import Job, Proved, prove_quantized, unproved
from fxopt.limits import Budget, Drop
from fxopt.placement_problem import placement_problem
from fxopt.recipes import Calibrated, Quantization
from fxopt.reference import Reference
from fxopt.sensitivity import SECONDS, sensitivity
from fxopt.solve import Problem, Solution, fastest, most_exact
from fxopt.timed_placement import NOT_WORTH_IT, WORTH_A_TRY, Prices, node_times
from fxopt.trials import Trials, describe

ROUNDS = 5  # how many more files are built
SENSITIVE = 4  # samples that sensitivities are measured on, one by one
STEPS = 0.02, 0.7  # how far one step back may tighten the bound of noise
SAFE = 0.9  # of the noise that should be just within the bound
NEAR = 1.1  # times the noise of what is within the bound: not worth another file
AIM = 0.98  # of the time allowed
CLOSE = 0.95  # what is this near to the time allowed, or the fastest, is near enough


@dataclass(frozen=True)
class Found:
    """The result of the search: `proved` is None if it is the float model."""

    proved: Proved | None
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]
    note: str


@dataclass
class Plan:
    """One way of quantizing, and the problem of what to leave float.

    - `kept`: what is float for other reasons. `dynamic`: the nodes with ranges of every run. `best`: the fastest
      choice. `rest`: the seconds of all that the problem does not know.
    """

    name: str
    way: Calibrated
    kept: Mapping[str, str]
    prices: Prices
    dynamic: tuple[str, ...]
    problem: Problem
    best: Solution
    rest: float = 0.0

    def predicted(self, solution: Solution) -> float:
        """Return the seconds that the whole model should take."""
        return self.rest + solution.seconds

    def without(self, solution: Solution, reason: str) -> dict[str, str]:
        """Return the nodes to keep float."""
        slow = self.best.integer
        others = {n: reason if n in slow else NOT_WORTH_IT for n in self.problem.nodes if n not in solution.integer}
        return {**others, **self.kept}


Proposal = tuple[Plan, Solution]


def within_budget(
    job: Job,
    budget: Budget,
    ways: Mapping[str, Quantization],
    tried: dict[str, Proved],
    reference: Reference,
    float_profile: Sequence[KernelTime],
    inputs: tuple[Tensor, ...],
    samples: Samples,
) -> Found:
    """Find the fastest model within max_drop, or the most exact one within max_latency if that alone is given.

    `tried` holds the file of each way, and is emptied. `float_profile` is of the float file. `samples` judge. Raises
    BudgetError, saying what was reached, if nothing was found; the float model is found wherever max_latency allows it.
    """
    trials = Trials(job, budget, reference, inputs, samples)
    plans = _plans(job, ways, tried, float_profile, inputs)
    first = trials.add(tried | _timed(trials, plans))
    tried.clear()
    search = _Search(trials, plans)
    for plan in plans:
        search.know(plan, {candidate.name: candidate for candidate in first})
    try:
        if budget.drop is not None:
            if not trials.is_exact_enough(max(first, key=lambda candidate: candidate.speedup)):
                search.within_drop()
        elif trials.float_fits():
            trials.chosen, trials.proved = None, None
        elif trials.chosen is not None or search.may_be_fast_enough():
            search.within_latency()
    except ValidationError as error:  # of a proposal: what was proved before it counts
        trials.notes.append(unproved("the next one", error))
    return _found(trials)


def _plans(
    job: Job,
    ways: Mapping[str, Quantization],
    tried: Mapping[str, Proved],
    float_profile: Sequence[KernelTime],
    inputs: tuple[Tensor, ...],
) -> list[Plan]:
    """Return the plan of each way whose nodes can be chosen, with times and without noise."""
    plans = []
    for name, way in ways.items():
        if isinstance(way, Calibrated):
            kept = tried[name].kept
            integer_profile = job.profile(tried[name].path, inputs, job.target.session)
            times = node_times(way.eased, float_profile, integer_profile)
            prices = Prices(way.eased, way.placement(kept), times)
            dynamic = tuple(name for name in way.dynamic if name not in kept)
            problem = placement_problem(prices, job.target, {}, dynamic)
            plans.append(Plan(name, way, kept, prices, dynamic, problem, fastest(problem)))
    return plans


def _timed(trials: Trials, plans: list[Plan]) -> dict[str, Proved]:
    """Build the fastest choice of the first plan, if it is worth it and can be proved."""
    plan = plans[0]
    if plan.best.seconds > (1 - WORTH_A_TRY) * _all_integer(plan.problem).seconds or not plan.best.integer:
        return {}
    kept = plan.without(plan.best, NOT_WORTH_IT)
    try:
        return {"timed": prove_quantized(trials.job, "timed", plan.way, trials.inputs, kept)}
    except ValidationError as error:
        trials.notes.append(unproved("timed", error))
        return {}


def _all_integer(problem: Problem) -> Solution:
    """Return the choice of all nodes."""
    rows = [*problem.rows, *(({name: -1.0}, -1.0) for name in problem.nodes)]
    return fastest(replace(problem, rows=rows))


@dataclass
class _Search:
    """The rounds of proposing, building and correcting. `built`: the candidate of each choice."""

    trials: Trials
    plans: list[Plan]
    built: dict[tuple[str, frozenset[str]], Candidate] = field(default_factory=dict)

    def know(self, plan: Plan, first: Mapping[str, Candidate]) -> None:
        """Take in what a plan's own file and, of the first plan, its fastest choice have shown."""
        everything = _all_integer(plan.problem)
        plan.rest = first[plan.name].latency.seconds - everything.seconds
        self.built[plan.name, everything.integer] = first[plan.name]
        if plan is self.plans[0] and "timed" in first:
            self.built[plan.name, plan.best.integer] = first["timed"]

    def may_be_fast_enough(self) -> bool:
        """Say whether the fastest choice is predicted to be within max_latency."""
        return min(plan.predicted(plan.best) for plan in self.plans) <= self.trials.limit()

    def within_drop(self) -> None:
        """Try choices of less and less noise until one is exact enough, and then nearly as fast as any that is."""
        drop = self.trials.budget.drop
        assert drop is not None
        self._measure_noise()
        low, high = 0.0, max(plan.best.worst for plan in self.plans)
        figures = [c.figure for c in self.trials.candidates if c.figure is not None and not drop.allows(c.figure)]
        level = high * _step(drop, max(figures, key=drop.lost))
        for _ in range(ROUNDS):
            proposal = self._fastest(level)
            candidate = self._build(proposal, f"in integers it loses more than max_drop={drop} leaves")
            if candidate is None or self.trials.is_exact_enough(candidate):
                low = level
            else:
                high = level
            if low and self._seconds(high) > CLOSE * self._seconds(low):
                break
            figure = None if candidate is None else candidate.figure
            if not low and figure is not None:
                level = high * _step(drop, figure)
                continue
            level = math.sqrt(low * high)
            if low and figure is not None and drop.allows(figure):
                level = min(level, low * SAFE * _ratio(drop, figure))
            if level < NEAR * low:
                break

    def within_latency(self) -> None:
        """Try choices of the least noise in a time, which is corrected by what was measured."""
        self._measure_noise()
        limit = self.trials.limit()
        aim = AIM * limit
        for _ in range(ROUNDS):
            found = [(plan, most_exact(plan.problem, aim - plan.rest)) for plan in self.plans]
            proposals = [(plan, solution) for plan, solution in found if solution is not None]
            if not proposals:
                return
            best = min(proposals, key=lambda proposal: proposal[1].worst)
            candidate = self._build(
                best, f"it is more exact so, and max_latency={self.trials.budget.latency} allows it"
            )
            seconds, limit = candidate.latency.seconds if candidate is not None else limit, self.trials.limit()
            if CLOSE * limit <= seconds <= limit:
                return
            aim += AIM * limit - seconds

    def _measure_noise(self) -> None:
        job, items = self.trials.job, first_samples(self.trials.samples, SENSITIVE)
        for plan in self.plans:
            with job.stage("sensitivity"):
                few = split_items(items, plan.way.eased, 1)[:SENSITIVE]
                dynamic, calibrated = plan.way.with_dynamic(plan.kept), plan.way.calibrated(plan.kept)
                noise = sensitivity(calibrated, few, dynamic, SECONDS / len(self.plans))
                plan.problem = placement_problem(plan.prices, job.target, noise, plan.dynamic)
                plan.best = fastest(plan.problem)

    def _fastest(self, noise: float) -> Proposal:
        found = [(plan, fastest(plan.problem, noise)) for plan in self.plans]
        return min(found, key=lambda proposal: proposal[0].predicted(proposal[1]))

    def _seconds(self, noise: float) -> float:
        plan, solution = self._fastest(noise)
        return plan.predicted(solution)

    def _build(self, proposal: Proposal, reason: str) -> Candidate | None:
        """Build and try a choice that was not tried before; None for a choice of nothing, which is the float model."""
        plan, solution = proposal
        if not solution.integer:
            return None
        if (plan.name, solution.integer) not in self.built:
            trials = self.trials
            name = f"{plan.name}-{len(trials.candidates)}"
            kept = plan.without(solution, reason)
            proved = prove_quantized(trials.job, name, plan.way, trials.inputs, kept)
            (self.built[plan.name, solution.integer],) = trials.add({name: proved})
        return self.built[plan.name, solution.integer]


def _step(drop: Drop, figure: float) -> float:
    """Return the factor of noise after which a figure should be within the bound."""
    return min(max(SAFE * _ratio(drop, figure), STEPS[0]), STEPS[1])


def _ratio(drop: Drop, figure: float) -> float:
    """Return how much more noise a figure allows; below 1 it is how much of the noise may be left."""
    if drop.measure == "sqnr":
        return float(10 ** ((figure - drop.bound) / 10)) if math.isfinite(figure) else math.inf if figure > 0 else 0.0
    lost, bound = (1 - figure, 1 - drop.bound) if drop.is_least else (figure, drop.bound)
    return 0.0 if math.isnan(lost) else bound / lost if lost > 0 else math.inf


def _found(trials: Trials) -> Found:
    budget, candidates = trials.budget, tuple(trials.candidates)
    tried = "; ".join([f"Tried {describe(candidates, budget)}", *trials.notes])
    if trials.chosen is not None:
        best = "the fastest" if budget.drop is not None else "the most exact"
        note = f"{tried}: {trials.chosen.name} is {best} within {budget}."
    elif trials.float_fits():
        reason = "the float model is the most exact" if budget.drop is None else "none is faster than float"
        note = f"{tried}: {reason} within {budget}, so the model stays float."
    else:
        baseline = candidates[-1].latency.baseline_seconds or 0.0
        exact = [baseline, *(c.latency.seconds for c in candidates if trials.is_exact_enough(c))]
        raise BudgetError(
            f"No model within {budget} was found: {1e3 * min(exact):.3g} ms is the least that was reached"
            f"{'' if budget.drop is None else ' at that accuracy'}, float takes {1e3 * baseline:.3g} ms. {tried}. "
            "Loosen one of the bounds."
        )
    return Found(trials.proved, trials.chosen, candidates, note)
