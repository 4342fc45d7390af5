"""One step of the optimizer: the losses of its items, their gradients, and what they do to the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fxopt.graph.program import Program
from fxopt.training.items import Item, Shares, shares_of
from fxopt.training.options import Training
from fxopt.training.processes import joint_losses, own_noise, part_of


class NotFiniteError(Exception):
    """A loss is no number; the message says which."""


@dataclass(frozen=True)
class Stepper:
    """Takes steps with the objective of a Program, made ready by `accelerator`."""

    program: Program
    training: Training
    accelerator: Any
    objective: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def __call__(self, items: Sequence[Item], step: int) -> dict[str, float]:
        """Take the step with this number; returns the loss and its parts, over all items and processes.

        Raises NotFiniteError if the loss is no number; the weights stay as they were.
        """
        count = self.accelerator.num_processes
        parts = [part_of(item, self.program, self.accelerator) for item in items]
        alone = len(items) == count == 1
        shares = [Shares()] if alone else [share.times(count) for share in shares_of(items, parts, self.program)]
        losses: dict[str, float] = {}
        with own_noise(self.accelerator, self.training.seed, step):
            for number, (part, share) in enumerate(zip(parts, shares, strict=True), start=1):
                last = number == len(parts)
                with nullcontext() if last else self.accelerator.no_sync(self.objective):
                    total, found = self.objective(part, share, last)
                    for name, value in joint_losses(total, found, self.accelerator).items():
                        losses[name] = losses.get(name, 0.0) + value
                    _check(losses, part, self.program)
                    total.backward()
        self._update()
        return losses

    def _update(self) -> None:
        training = self.training
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        if training.clip_gradients is not None:
            torch.nn.utils.clip_grad_norm_(parameters, training.clip_gradients)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if training.clip_weights is not None:
            weights = [value.detach() for value in parameters if value.ndim >= 2]
            torch._foreach_clamp_min_(weights, -training.clip_weights)
            torch._foreach_clamp_max_(weights, training.clip_weights)


def _check(losses: dict[str, float], item: Item, program: Program) -> None:
    if math.isfinite(losses["loss"]):
        return
    bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value) and name != "loss"]
    specs = zip(program.inputs, item.inputs, strict=True)
    inputs = [f" Input '{spec.name}' holds NaN or infinity." for spec, value in specs if not _finite(value)]
    raise NotFiniteError(f"{', '.join(bad) or 'the sum is too large'}.{''.join(inputs)}")


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
