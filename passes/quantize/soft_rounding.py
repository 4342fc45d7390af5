"""Learned rounding: whether each weight goes down or up to the next step, by gradient descent on the error it makes.

    W'(V) = s · clamp(floor(W / s) + h(V)),    h(V) = clamp(1.2 · sigmoid(V) − 0.1, 0, 1)
    loss(V) = error(W'(V)) / error(W rounded to nearest) + λ · mean(1 − |2 h(V) − 1|^β)

The second term drives every h to 0 or 1; β falls from 20, where it acts only on what is nearly decided, to 2.
(Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", eq. 21-24.) Other than there the
terms are relative, so that one λ serves layers of all sizes, and V starts near a rounding that is good already, such as
that of GPTQ: a descent from the exact weights ends, in as many iterations, at up to three times its error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

STRETCH = (-0.1, 1.1)  # of the sigmoid, so that h reaches 0 and 1 for finite V
BETAS = (20.0, 2.0)
WARM_UP = 0.2  # the share of the iterations without regularization
PENALTY = 10.0  # λ
PULL = 0.9  # where each element starts between its exact value, 0, and the step it was given, 1
WAY = 10.0  # how far a variable can go, all steps together; h is 0 or 1 beyond ±2.4
SEED = 0


@dataclass(frozen=True)
class Grid:
    """A weight and its steps: scale and zero point broadcast against it, `limits` are the smallest and largest step."""

    weight: Tensor
    scale: Tensor
    zero_point: Tensor
    limits: tuple[int, int]

    def at(self, steps: Tensor) -> Tensor:
        """Return the weight with so many steps, counted from the zero point and clamped to the limits."""
        return ((steps + self.zero_point).clamp(*self.limits) - self.zero_point) * self.scale

    def nearest(self) -> Tensor:
        """Return the weight rounded to the nearest step."""
        return self.at(torch.round(self.weight / self.scale))


class Task(Protocol):
    """What the roundings of some weights are fitted to: batches of differences that they make."""

    @property
    def batches(self) -> int:
        """How many batches there are."""

    def difference(self, weights: Sequence[Tensor], batch: int, generator: torch.Generator | None) -> Tensor:
        """Return by how much the outputs of a batch are off; with a generator, as it is to be trained on."""


def learn_rounding(grids: Sequence[Grid], starts: Sequence[Tensor | None], task: Task, iterations: int) -> list[Tensor]:
    """Return weights on their grids for the least error of the task.

    `starts` are weights on the grids that are good already, or None. Each element becomes that or its neighbour on the
    other side of the exact value; without a start, one of the steps on both sides. Returned are those of the starts,
    the learned weights and the plainly rounded ones that make the least error.
    """
    nearest = [grid.nearest() for grid in grids]
    plain = mean_error(task, nearest)
    if plain == 0 or not math.isfinite(plain):
        return nearest
    given = [plainly if start is None else start for start, plainly in zip(starts, nearest, strict=True)]
    choices = [nearest, given, _learn(grids, starts, task, iterations, plain)]
    errors = [mean_error(task, choice) for choice in choices]
    return choices[errors.index(min(errors))]


def mean_error(task: Task, weights: Sequence[Tensor]) -> float:
    """Return the mean over all batches of the mean squared difference."""
    with torch.no_grad():
        errors = [float(task.difference(weights, batch, None).square().mean()) for batch in range(task.batches)]
    return math.fsum(errors) / max(len(errors), 1)


class _Soft:
    """A weight W' = base + span · h(V) and its variable V; the span is 0 where the limits leave no choice."""

    def __init__(self, grid: Grid, start: Tensor | None) -> None:
        exact = grid.weight / grid.scale
        steps = torch.floor(exact) if start is None else torch.round(start / grid.scale)
        self.grid = grid
        self.floor = torch.where(steps > exact, steps - 1, steps)  # the start is one of the two steps to choose from
        self.base = grid.at(self.floor)
        self.span = grid.at(self.floor + 1) - self.base
        share = (exact - self.floor).clamp(0, 1).lerp(steps - self.floor, PULL if start is not None else 0.0)
        low, high = STRETCH
        self.variable = torch.logit((share - low) / (high - low))
        self.variable.grad = torch.zeros_like(self.variable)

    def forward(self) -> Tensor:
        """Return the weight, to be differentiated by."""
        low, high = STRETCH
        self.sigmoid = torch.sigmoid(self.variable)
        self.share = (self.sigmoid * (high - low) + low).clamp_(0, 1)
        self.weight = torch.addcmul(self.base, self.span, self.share).requires_grad_()
        return self.weight

    def backward(self, beta: float | None, penalty: float) -> None:
        """Set the gradient of the variable from that of the weight, and from the penalty of each element."""
        assert self.weight.grad is not None
        slope = self.weight.grad.mul_(self.span)
        if beta is not None:
            side = 2 * self.share - 1
            slope -= (2 * beta * penalty) * side.sign() * side.abs().pow_(beta - 1)
        low, high = STRETCH
        slope *= (high - low) * self.sigmoid * (1 - self.sigmoid)
        self.variable.grad = slope.mul_((self.share > 0) & (self.share < 1))

    def hard(self) -> Tensor:
        """Return the weight rounded to where the variable has gone."""
        return self.grid.at(self.floor + (self.variable >= 0))


def _learn(
    grids: Sequence[Grid], starts: Sequence[Tensor | None], task: Task, iterations: int, plain: float
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    weights = [_Soft(*pair) for pair in zip(grids, starts, strict=True)]
    optimizer = torch.optim.Adam([weight.variable for weight in weights], lr=WAY / iterations, fused=True)
    penalty = PENALTY / max(1, sum(weight.variable.numel() for weight in weights))
    for iteration in range(iterations):
        batch = int(torch.randint(task.batches, (), generator=generator))
        with torch.enable_grad():
            difference = task.difference([weight.forward() for weight in weights], batch, generator)
            (difference.square().mean() / plain).backward()  # type: ignore[no-untyped-call]
        for weight in weights:
            weight.backward(_beta(iteration / iterations), penalty)
        optimizer.step()
    return [weight.hard() for weight in weights]


def _beta(progress: float) -> float | None:
    """Return the exponent at a share of the iterations, or None during the warm-up."""
    if progress < WARM_UP:
        return None
    done = (progress - WARM_UP) / (1 - WARM_UP)
    return BETAS[1] + (BETAS[0] - BETAS[1]) * 0.5 * (1 + math.cos(math.pi * done))
