"""Learning rates over the steps of a training: each makes a torch scheduler from an optimizer and the number of steps.

`warm_up` is the share of the steps in which the rate rises in equal parts up to the optimizer's own; other shares are
of the steps that follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from fxopt.errors import TrainingError

Schedule = Callable[[Optimizer, int], LRScheduler]


@dataclass(frozen=True)
class Constant:
    """The optimizer's own rate."""

    warm_up: float = 0.0

    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Return the scheduler for so many steps."""
        return _scheduler(optimizer, steps, self.warm_up, lambda progress: 1.0)


@dataclass(frozen=True)
class Step:
    """A rate that is multiplied by `factor` after each share `every` of the steps."""

    every: float = 1 / 3
    factor: float = 0.1
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.every <= 1:
            raise TrainingError(f"Step(every={self.every}) is a share of the steps: give one above 0, up to 1.")

    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Return the scheduler for so many steps."""
        # what is a whole number of parts must not fall below it by rounding
        return _scheduler(
            optimizer, steps, self.warm_up, lambda progress: self.factor ** math.floor(progress / self.every + 1e-9)
        )


@dataclass(frozen=True)
class Linear:
    """A rate that falls in equal parts to the share `end` of itself."""

    end: float = 0.0
    warm_up: float = 0.0

    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Return the scheduler for so many steps."""
        return _scheduler(optimizer, steps, self.warm_up, lambda progress: 1 - (1 - self.end) * progress)


@dataclass(frozen=True)
class Cosine:
    """A rate that falls along half a cosine to the share `end` of itself.

    Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", equation 5, without restarts.
    """

    end: float = 0.0
    warm_up: float = 0.0

    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Return the scheduler for so many steps."""
        return _scheduler(
            optimizer,
            steps,
            self.warm_up,
            lambda progress: self.end + (1 - self.end) * (1 + math.cos(math.pi * progress)) / 2,
        )


@dataclass(frozen=True)
class OneCycle:
    """A rate that rises from the share `start` of the optimizer's own to that, and falls to the share `end`.

    The momentum goes the other way, between 0.85 and 0.95, as in torch's OneCycleLR (Smith and Topin 2018,
    "Super-Convergence"). `warm_up` is the share of the steps in which the rate rises.
    """

    warm_up: float = 0.3
    start: float = 1 / 25
    end: float = 1 / 250_000

    def __post_init__(self) -> None:
        if not (0 < self.start <= 1 and 0 < self.end <= 1):
            raise TrainingError(f"OneCycle(start={self.start}, end={self.end}) are shares: above 0, up to 1.")

    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Return the scheduler for so many steps."""
        _check_warm_up(self.warm_up)
        highest = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(
            optimizer,
            max_lr=highest,
            total_steps=steps,
            pct_start=self.warm_up,
            div_factor=1 / self.start,
            final_div_factor=self.start / self.end,
            cycle_momentum=any(name in optimizer.defaults for name in ("momentum", "betas")),
        )


def _scheduler(optimizer: Optimizer, steps: int, warm_up: float, shape: Callable[[float], float]) -> LRScheduler:
    _check_warm_up(warm_up)
    rising = round(warm_up * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return shape(min((step - rising) / max(steps - rising, 1), 1.0))

    return LambdaLR(optimizer, factor)


def _check_warm_up(warm_up: float) -> None:
    if not 0 <= warm_up < 1:
        raise TrainingError(f"warm_up={warm_up} is a share of the steps: give one from 0, below 1.")
