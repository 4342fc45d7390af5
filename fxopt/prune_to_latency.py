"""prune_to_latency(): remove channels until onnxruntime is as fast as asked for, by measuring.

Latency follows the operations only roughly: what is left may be bound by memory, and widths have steps of their own.
So the share of operations to leave is searched: each candidate is made, emitted and timed in turn with the dense file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from fxopt.choose import NOISE
from fxopt.errors import BudgetError, ModelError, PassError
from fxopt.export.measure import Measurement, measure
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.example import example_of
from fxopt.graph.program import Program
from fxopt.passes.prune import RemoveChannels
from fxopt.target import Target, find_target

TOLERANCE = 0.02  # of the latency asked for
ROUNDS = 8  # how many candidates are made at most
FINE = 0.01  # shares of operations that differ by less are not told apart by their times
FALL = 0.7  # the next share in terms of the last where a candidate was not faster than dense

Timer = Callable[[Program], Measurement]


@dataclass(frozen=True)
class Trial:
    """A candidate: the share of the operations left that was asked for, and its time in turn with the dense file's."""

    macs: float
    latency: Measurement

    @property
    def ratio(self) -> float:
        """Its latency over that of the dense file."""
        return 1 / (self.latency.speedup or 1.0)

    def __str__(self) -> str:
        return f"{self.ratio:.3f} of the dense latency at {self.macs:.3f} of the operations"


@dataclass(frozen=True)
class Found:
    """The Program that was found, its trial, and all trials in their order."""

    program: Program
    trial: Trial
    trials: tuple[Trial, ...]

    @property
    def note(self) -> str:
        """What was measured."""
        return f"Latency: {self.trial} was chosen. Measured in turn: {_listed(self.trials)}."


def prune_to_latency(
    program: Program,
    share: float = 0.6,
    *,
    inputs: Sequence[Tensor] | None = None,
    remove: RemoveChannels | None = None,
    target: str | Target = "auto",
    threads: int = 1,
    seconds: float = 2.0,
) -> Program:
    """Return the Program without so many channels that its file takes `share` of the dense file's time, within 2 %.

    - `share`: of the latency of `program` itself in onnxruntime, in (0, 1).
    - `inputs`: tensor inputs in order, to time and to prove on; made from the specs where none are given.
    - `remove`: the pass, of which `macs` is searched for. `target`: see compile().
    - `threads`, `seconds`: of each timing, in which both files run alternately.

    Where times jump, or are too near to each other to be told apart, the slowest that is fast enough is taken. A note
    says what was measured. Raises ModelError for a share that makes no sense, BudgetError, saying what was reached,
    where no candidate is as fast, and PassError where the first share of operations cannot be met.
    """
    found = find_target(target)
    example = tuple(example_of(program) if inputs is None else inputs)
    step = remove or RemoveChannels(round_to=found.width_multiple, inputs=example)
    with tempfile.TemporaryDirectory(prefix="fxopt-latency-") as folder:
        dense, small = Path(folder) / "dense.onnx", Path(folder) / "small.onnx"
        to_onnx(program, dense, target=found)

        def time(candidate: Program) -> Measurement:
            to_onnx(candidate, small, target=found)
            return measure(small, example, baseline=dense, threads=threads, seconds=seconds, settings=found.session)

        result = search_latency(program, share, step, time)
    return result.program.with_note(result.note)


def search_latency(program: Program, share: float, remove: RemoveChannels, time: Timer) -> Found:
    """Search the share of operations at which a candidate takes `share` of the dense time; see prune_to_latency()."""
    if not 0 < share < 1:
        raise ModelError(f"share={share:g} is the part of the dense file's latency to leave: a number between 0 and 1.")
    least = replace(remove, macs=0.5, parameters=None).least(program)
    trials: list[Trial] = []
    best: tuple[Program, Trial] | None = None
    left: float | None = max(share, least) if least < 1 else None
    while left is not None and len(trials) < ROUNDS:
        try:
            candidate = replace(remove, macs=left, parameters=None)(program)
        except PassError:  # few units make few widths: not every share can be met
            if best is None:
                raise
            break
        trial = Trial(left, time(candidate))
        trials.append(trial)
        if _is_fast_enough(trial, share) and (best is None or trial.ratio > best[1].ratio):
            best = candidate, trial
        del candidate
        left = next_share(trials, share, least)
    if best is None:
        reached = min((trial.ratio for trial in trials), default=1.0)
        raise BudgetError(
            f"A latency of {share:g} of the dense file's was not reached: {reached:.3f} is the least measured, "
            f"and {least:.1%} of the operations the least that can be left. Measured in turn: "
            f"{_listed(trials) or 'nothing, since no channel can go'}. Ask for a larger share."
        )
    return Found(*best, tuple(trials))


def next_share(trials: Sequence[Trial], share: float, least: float) -> float | None:
    """Return the share of operations to try next; None if the last trial is within TOLERANCE, or no other can help.

    Between a trial that is too slow (at first the dense file) and one that is fast enough the straight line through
    both tells where; before there is one that is fast enough, that through the dense file and the last trial.
    """
    if abs(trials[-1].ratio - share) <= TOLERANCE * share:
        return None
    fast = max(((trial.macs, trial.ratio) for trial in trials if _is_fast_enough(trial, share)), default=None)
    beyond = fast[0] if fast is not None else 0.0
    slow = min(
        ((t.macs, t.ratio) for t in trials if t.macs > beyond and not _is_fast_enough(t, share)), default=(1.0, 1.0)
    )
    if fast is None:
        if slow[0] <= least + FINE / 2:
            return None
        guess = 1 - (1 - slow[0]) * (1 - share) / (1 - slow[1]) if slow[1] < 1 else 0.0
        return max(least, min(guess, slow[0] - FINE), FALL * slow[0])
    if slow[0] - fast[0] <= FINE or slow[1] <= fast[1] * NOISE:
        return None
    width = slow[0] - fast[0]
    guess = fast[0] + width * (share - fast[1]) / (slow[1] - fast[1])
    return min(max(guess, fast[0] + width / 8), slow[0] - width / 8)


def _is_fast_enough(trial: Trial, share: float) -> bool:
    return trial.ratio <= share * (1 + TOLERANCE) and trial.ratio < 1


def _listed(trials: Sequence[Trial]) -> str:
    return "; ".join(map(str, trials))
