"""Prune in steps, with training or repair between them.

A schedule says how much of the way to the target is done, from the share of the steps that are: both in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fxopt.errors import PassError
from fxopt.graph.pipeline import Pass
from fxopt.graph.program import Program

Schedule = Callable[[float], float]


def one_shot(progress: float) -> float:
    """Go all the way at the first step."""
    return 1.0 if progress > 0 else 0.0


def linear(progress: float) -> float:
    """Go as far at each step."""
    return progress


def cubic(progress: float) -> float:
    """Go far at first, while there is much to spare, and little at the end: 1 - (1 - progress)^3.

    With it, the share start + (target - start) cubic(p) is s_f + (s_i - s_f) (1 - p)^3: Zhu and Gupta 2017, "To prune,
    or not to prune", equation 1, for p = (t - t_0) / (n dt).
    """
    return 1 - (1 - progress) ** 3


@dataclass(frozen=True)
class Gradually:
    """Run the pass that `make` gives for a share, `steps` times, with shares that end at `target`.

    - `make`: from a share to a pass. `between`: a pass, or any Program -> Program, such as fine-tuning; it runs after
      each step but the last. `schedule`: one_shot, linear, cubic or any function from progress to progress.
    - `of`: None where the pass takes the share to set to zero, of all: it starts from 0 (masks stay, and grow).
      A count, like fxopt.graph.cost.macs or parameter_count, where the pass takes the share of that to leave, of what
      the Program has then: it starts from 1, and each step is asked for the next share of the *original's* count,
      divided by that of what is left. So a step that misses its share by something does not move the next.

        Gradually(lambda share: MaskWeights(Sparsity(share)), target=0.9, steps=8, between=train)
        Gradually(lambda share: RemoveChannels(macs=share), target=0.5, steps=4, of=macs, between=train)

    The history has the single steps. Raises PassError for a target that is not between 0 and 1, for fewer than one
    step, and for schedules that go back or do not arrive.
    """

    make: Callable[[float], Pass] = field(repr=False)
    target: float
    steps: int
    schedule: Schedule = cubic
    between: Pass | None = None
    of: Callable[[Program], int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise PassError(f"Gradually(target={self.target}) must be between 0 and 1.")
        if self.steps < 1:
            raise PassError(f"Gradually(steps={self.steps}) must be 1 or more.")
        way = [self.schedule(step / self.steps) for step in range(self.steps + 1)]
        if way != sorted(way) or way[0] < 0 or abs(way[-1] - 1) > 1e-6:
            raise PassError(f"A schedule goes from 0 or more up to 1, never back; this one gives {way}.")

    def __call__(self, program: Program) -> Program:
        """Return the Program after the last step."""
        whole = None if self.of is None else self.of(program)
        shares = self.shares()
        for step, share in enumerate(shares):
            left = share if whole is None or self.of is None else share * whole / self.of(program)
            if whole is None or left < 1:  # a step that went further than asked has done the next one's work
                program = self.make(left)(program)
            if self.between is not None and step < len(shares) - 1:
                program = self.between(program)
        return program

    def shares(self) -> tuple[float, ...]:
        """Return the share of each step, of the original; a step that goes no further than the one before is none."""
        start = 0.0 if self.of is None else 1.0
        way = [self.schedule(step / self.steps) for step in range(1, self.steps + 1)]
        return tuple(dict.fromkeys(start + (self.target - start) * done for done in way if done > 0))
