"""What is minimised: the loss of the task, those of the taps, and penalties on the weights.

loss = task(result, labels) + sum over taps of loss(student, teacher) + sum of penalties
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxopt.errors import TrainingError
from fxopt.graph.padding import real_positions
from fxopt.graph.program import Program
from fxopt.graph.taps import tap_losses
from fxopt.training.items import Item, Shares, token_mask
from fxopt.training.options import Training

Losses = dict[str, Tensor]


class Objective(nn.Module):
    """A module around a Program under training whose forward gives the losses of an item."""

    def __init__(self, program: Program, training: Training) -> None:
        super().__init__()
        self.module = program.module
        self.program = program
        self.training_options = training
        self.penalties = dict(zip(_names(training.penalties), training.penalties, strict=True))
        if training.task is None and not program.taps:
            raise TrainingError(
                "There is nothing to minimise: give Training(task=passes.CrossEntropy()), or attach a teacher."
            )

    def forward(self, item: Item, shares: Shares, penalised: bool) -> tuple[Tensor, Losses]:
        """Return the loss of an item, and its parts by name, without gradients.

        `shares`: what the item counts. `penalised`: whether the penalties count; they do once a step.
        """
        outputs = self._outputs(item)
        valid = real_positions([spec.name for spec in self.program.inputs], item.inputs)
        losses = self._task(outputs, item, valid, shares)
        mask = token_mask(item, self.program)
        compared = tap_losses(self.program.taps, outputs, item.labels, valid, item.ids)
        for tap in self.program.taps:
            losses[tap.name] = _times(compared[tap.name], _share(outputs[tap.student], mask, shares))
        if penalised:
            losses |= {name: penalty(self.program) for name, penalty in self.penalties.items()}
        for name, loss in losses.items():
            _check_loss(name, loss)
        first, *rest = losses.values()
        total = sum(rest, first)
        if not total.requires_grad:
            raise TrainingError(f"The loss ({', '.join(losses)}) depends on no trainable parameter.")
        return total, {name: loss.detach() for name, loss in losses.items()}

    def _outputs(self, item: Item) -> list[Any]:
        kind = item.inputs[0].device.type if item.inputs else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=self.training_options.precision == "bf16"):
            outputs = self.module(*item.inputs)
        return [value.float() if _is_low(value) else value for value in outputs]

    def _task(self, outputs: Sequence[Any], item: Item, valid: Tensor | None, shares: Shares) -> Losses:
        if self.training_options.task is None:
            return {}
        result = self.program.unflatten(outputs)
        loss = self.training_options.task(result[0] if self.program.taps else result, item.labels, valid)
        return {"task": _times(loss, shares.labels)}


def loss_names(program: Program, training: Training) -> list[str]:
    """List the names of the parts of the loss, in order."""
    task = [] if training.task is None else ["task"]
    return [*task, *(tap.name for tap in program.taps), *_names(training.penalties)]


def _is_low(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.bfloat16


def _times(loss: Tensor, share: float) -> Tensor:
    return loss if share == 1 else loss * share


def _share(value: Tensor, mask: Tensor | None, shares: Shares) -> float:
    """Return the share of a value's positions: tokens where it has the dimensions of their mask, else samples."""
    return shares.tokens if mask is not None and value.ndim > 2 and value.shape[:2] == mask.shape else shares.samples


def _names(functions: Iterable[Any]) -> list[str]:
    found: list[str] = []
    for function in functions:
        name = getattr(function, "__name__", type(function).__name__)
        found.append(f"{name}_{found.count(name) + 1}" if name in found else name)
    return found


def _check_loss(name: str, loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        kind = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise TrainingError(f"The loss '{name}' gives {kind}; it must give one number, a Tensor.")
