"""Training: the options of fxopt.train."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

from torch import Tensor

from fxopt.errors import TrainingError
from fxopt.graph.pipeline import Pass
from fxopt.graph.program import Program
from fxopt.training.optimizers import AdamW, MakeOptimizer
from fxopt.training.schedules import Cosine, Schedule

Penalty = Callable[[Program], Tensor]
Evaluate = Callable[[Program], float]
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class TaskLoss(Protocol):
    """What compares the result of a model with labels, such as passes.CrossEntropy()."""

    def __call__(self, result: Any, labels: Any, valid: Tensor | None) -> Tensor:
        """Return the loss, a tensor of no dimensions, its weight included.

        - `result`: of the student, in the structure that the model gives. `labels`: those of the item.
        - `valid`: bool [batch, tokens], where the inputs hold no padding; None: everywhere.
        """


@dataclass(frozen=True)
class Training:
    """How fxopt.train trains.

    - `epochs`: how often the data is gone through; 2.5 ends in the middle of the third time. `steps`: how many steps of
      the optimizer there are, instead.
    - `task`: the loss against the labels, such as passes.CrossEntropy(); None: labels are not read. The losses of taps
      (see passes.AttachTeacher) count in any case.
    - `penalties`: functions of the Program under training whose values are added to the loss, such as
      passes.group_lasso(program, strength).
    - `optimizer`: from (name, parameter) pairs to a torch optimizer, whose classes take such pairs:
      `lambda parameters: torch.optim.SGD(parameters, lr=0.1)`. AdamW(): see fxopt.training.optimizers.
    - `schedule`: one of fxopt.schedules, or any function of an optimizer and the number of steps to a torch scheduler,
      which is stepped after each step of the optimizer.
    - `precision`: "bf16" computes products in bfloat16 (torch.autocast); weights and losses stay float32.
    - `accumulate`: the number of items whose gradients make one step, weighted by what counts in each.
    - `clip_gradients`: the highest norm of all gradients together. `clip_weights`: the highest magnitude of
      parameters of two or more dimensions, kept after every step.
    - `patience`: how many epochs without a better `evaluate` end the training; None: it runs to its end.
    - `changes`: passes to apply to the Program under training, by the share of the steps that are done then, 0 to 1.
      It is in training mode then, and the pass must keep its Parameters: masks that grow, statistics that freeze.
    - `seed`: of torch, numpy and random. Each epoch starts from numbers of its own, whatever ran before it.
    - `log_every`: the steps between rows of the log; each epoch ends with one. `save_every`: the steps between
      checkpoints; None: at the end of each epoch only.

    Raises TrainingError for options out of their ranges.
    """

    epochs: float = 1.0
    steps: int | None = None
    task: TaskLoss | None = None
    penalties: Sequence[Penalty] = ()
    optimizer: MakeOptimizer = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=lambda: Cosine(warm_up=0.05))
    precision: Literal["fp32", "bf16"] = "fp32"
    accumulate: int = 1
    clip_gradients: float | None = None
    clip_weights: float | None = None
    patience: int | None = None
    changes: Mapping[float, Pass] = field(default_factory=dict)
    seed: int = 0
    log_every: int = 50
    save_every: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epochs) and self.epochs > 0):
            raise TrainingError(f"epochs={self.epochs} must be above 0.")
        for name in ("steps", "accumulate", "patience", "log_every", "save_every"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise TrainingError(f"{name}={value!r} must be a whole number, 1 or more.")
        for name in ("clip_gradients", "clip_weights"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TrainingError(f"{name}={value!r} must be above 0.")
        if self.precision not in ("fp32", "bf16"):
            raise TrainingError(f"precision={self.precision!r}: choose 'fp32' or 'bf16'.")
        if not 0 <= self.seed < 2**31:
            raise TrainingError(f"seed={self.seed} must be from 0, below 2**31.")
        late = [share for share in self.changes if not 0 <= share < 1]
        if late:
            raise TrainingError(f"changes are made at shares of the steps, from 0, below 1; got {late}.")
        if callable(self.penalties):
            raise TrainingError("penalties is one function: give a list of them.")

    def spelled(self) -> dict[str, str]:
        """Return the options as text, by name: the same in every process."""
        return {each.name: ADDRESS.sub("", repr(getattr(self, each.name))) for each in fields(self)}

    @property
    def entry(self) -> str:
        """What the history of a Program says of a training: the options that are not the default."""
        usual = Training().spelled()
        return f"train({', '.join(f'{name}={text}' for name, text in self.spelled().items() if text != usual[name])})"
