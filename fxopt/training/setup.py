"""What a training starts from: its number of steps, its optimizer, and what its items must have."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from fxopt.data import Data
from fxopt.errors import DataError, TrainingError
from fxopt.graph.program import Program
from fxopt.training.items import item_count
from fxopt.training.options import Training
from fxopt.training.tensors import trainable

SHOWN = 8


def step_count(data: Data, training: Training) -> int:
    """Return how many steps there are. Raises DataError if neither the data nor the options say."""
    count = item_count(data)
    if training.steps is not None:
        return training.steps
    if count is None:
        raise DataError("The training data does not say how many items it has; give Training(steps=...).")
    return max(round(training.epochs * math.ceil(count / training.accumulate)), 1)


def make_optimizer(program: Program, training: Training) -> Optimizer:
    """Return the optimizer. Raises TrainingError if no parameter is trainable, or one of them is left out."""
    named = trainable(program)
    if not named:
        raise TrainingError("The Program has no trainable parameter; requires_grad is False for all of them.")
    optimizer = training.optimizer(list(named.items()))
    if not isinstance(optimizer, Optimizer):
        raise TrainingError(f"Training(optimizer=...) gives a {type(optimizer).__name__}, not a torch.optim.Optimizer.")
    check_parameters(program, optimizer, f"The optimizer {type(optimizer).__name__}")
    return optimizer


def check_parameters(program: Program, optimizer: Optimizer, who: str) -> None:
    """Raise TrainingError if the optimizer lacks a trainable parameter, because of `who`."""
    known = {id(value) for group in optimizer.param_groups for value in group["params"]}
    missing = [name for name, value in trainable(program).items() if id(value) not in known]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise TrainingError(
            f"{who} leaves {', '.join(missing[:SHOWN])}{more} without an optimizer. Set requires_grad to False for "
            "what is not to be trained; apply passes that make parameters before fxopt.train."
        )


def needs_of(program: Program, training: Training) -> dict[str, str]:
    """Return what an item must have besides inputs, and who needs it."""
    stored = [tap.name for tap in program.taps if not isinstance(tap.teacher, int)]
    labels = {} if training.task is None else {"labels": type(training.task).__name__}
    return labels | ({"ids": f"the tap '{stored[0]}'"} if stored else {})
