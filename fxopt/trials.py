"""The files tried within a budget: each is proved, timed in turn with float, and judged; one of them is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from fxopt.choose import NOISE, SAMPLES, Candidate, try_candidates
from fxopt.data import first_samples
from fxopt.fidelity import Fidelity, Samples
from fxopt.graph.memory import release_memory
from fxopt.job import Job, Proved
from fxopt.limits import Budget
from fxopt.reference import Reference


@dataclass
class Trials:
    """What was tried so far, and the best that is within the budget; the Programs of the others are let go.

    `notes`: what could not be proved.
    """

    job: Job
    budget: Budget
    reference: Reference
    inputs: tuple[Tensor, ...]
    samples: Samples
    candidates: list[Candidate] = field(default_factory=list)
    chosen: Candidate | None = None
    proved: Proved | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, files: Mapping[str, Proved]) -> list[Candidate]:
        """Time and judge files, and keep the best."""
        release_memory()
        paths = {name: proved.path for name, proved in files.items()}
        with self.job.stage("measure"):
            few, settings = first_samples(self.samples, SAMPLES), self.job.target.session
            found = try_candidates(paths, self.reference.path, self.inputs, few, settings)
        if self.budget.drop is not None:
            fidelity = Fidelity(self.budget.drop, self.reference.path, self.samples, self.job.evaluate)
            with self.job.stage("evaluate"):
                found = [replace(c, figure=fidelity.figure(paths[c.name], files[c.name].program)) for c in found]
        for candidate in found:
            if self.fits(candidate) and (self.chosen is None or self._is_better(candidate, self.chosen)):
                self.chosen, self.proved = candidate, files[candidate.name]
        self.candidates += found
        return found

    def limit(self) -> float:
        """Return the seconds allowed, by the last times of the float model."""
        baseline = self.candidates[-1].latency.baseline_seconds or 0.0
        return self.budget.latency.limit(baseline) if self.budget.latency is not None else float("inf")

    def is_exact_enough(self, candidate: Candidate) -> bool:
        """Say whether a candidate is within max_drop."""
        drop = self.budget.drop
        return drop is None or candidate.figure is None or drop.allows(candidate.figure)

    def is_fast_enough(self, candidate: Candidate) -> bool:
        """Say whether a candidate is within max_latency."""
        limit, baseline = self.budget.latency, candidate.latency.baseline_seconds or 0.0
        return limit is None or candidate.latency.seconds <= limit.limit(baseline)

    def fits(self, candidate: Candidate) -> bool:
        """Say whether a candidate is within the budget and, where accuracy bounds it, not slower than float."""
        worth_it = self.budget.drop is None or candidate.speedup * NOISE >= 1
        return worth_it and self.is_exact_enough(candidate) and self.is_fast_enough(candidate)

    def float_fits(self) -> bool:
        """Say whether the float model is within the budget."""
        return self.limit() >= (self.candidates[-1].latency.baseline_seconds or 0.0)

    def _is_better(self, candidate: Candidate, other: Candidate) -> bool:
        """Compare by speed where accuracy is bounded, the more exact of equally fast ones; else by accuracy."""
        exact = _exactness(candidate, self.budget), _exactness(other, self.budget)
        if self.budget.drop is None or 1 / NOISE < candidate.speedup / other.speedup < NOISE:
            return exact[0] > exact[1]
        return candidate.speedup > other.speedup


def _exactness(candidate: Candidate, budget: Budget) -> tuple[float, float]:
    figure = 0.0 if budget.drop is None or candidate.figure is None else -budget.drop.lost(candidate.figure)
    return figure, candidate.sqnr


def describe(candidates: Sequence[Candidate], budget: Budget) -> str:
    """Write what candidates reached."""
    return "; ".join(f"{c.name} {_reached(c, budget)}" for c in candidates)


def _reached(candidate: Candidate, budget: Budget) -> str:
    speed = f"{1e3 * candidate.latency.seconds:.3g} ms, {1 / candidate.speedup:.2f} of float's time"
    figure = budget.drop.text(candidate.figure) if budget.drop and candidate.figure is not None else None
    return f"({speed}, {figure or f'{candidate.sqnr:.1f} dB'})"
