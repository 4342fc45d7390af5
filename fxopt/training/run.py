"""One training from its first step, or its checkpoint, to its last."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxopt.data import Data
from fxopt.errors import DataError, TrainingError
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.passes.distill.detach_teacher import DetachTeacher
from fxopt.training.items import Item, Reader, Shares, check_data, item_count, shares_of
from fxopt.training.log import LogFiles, Means, ProgressBar, floats
from fxopt.training.objective import Objective, loss_names
from fxopt.training.options import Evaluate, Training
from fxopt.training.processes import accelerator_for
from fxopt.training.random_states import start_epoch
from fxopt.training.tensors import check_finite, own_copy, trainable


@dataclass
class Progress:
    """How far a training is: `items` of the epoch under way; `worse`: epochs since the best one."""

    step: int = 0
    epoch: int = 0
    items: int = 0
    changes: int = 0
    best: float | None = None
    worse: int = 0
    stopped: bool = False
    seconds: float = 0.0
    means: Means = field(default_factory=Means)


class Run:
    """A training under way. `program` is its own copy, in training mode; `student` computes with the same tensors."""

    def __init__(
        self, program: Program, data: Data, training: Training, evaluate: Evaluate | None, folder: Path | None
    ) -> None:
        check_data(data)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.training, self.data, self.evaluate, self.folder = training, data, evaluate, folder
        self.accelerator = accelerator_for(program)
        self.program = own_copy(program, torch.channels_last).train()  # convolutions train a sixth faster in it
        self.steps = _steps(data, training)
        self.changes = sorted(training.changes.items())
        self.optimizer = _optimizer(self.program, training)
        self.schedule = training.schedule(self.optimizer, self.steps)
        self.progress = Progress()
        self.best: Program | None = None
        self._build()

    def _build(self) -> None:
        """Make what belongs to the graph as it is now."""
        self.objective = self.accelerator.prepare_model(Objective(self.program, self.training))
        self.student = DetachTeacher()(self.program).eval()
        self.read = Reader(self.program, _needs(self.program, self.training))
        self.log = LogFiles(self.folder, loss_names(self.program, self.training))

    def run(self) -> Program:
        """Train to the end; returns the best Program, or the last, in inference mode."""
        progress = self.progress
        self.log.start(progress.step)
        with ProgressBar(self.steps, progress.step, self.accelerator.is_main_process) as self.bar:
            while progress.step < self.steps and not progress.stopped:
                self._epoch()
        trained = own_copy(self.best or self.program, torch.contiguous_format).eval()
        return replace(trained, history=(*trained.history, self.training.entry))

    def _epoch(self) -> None:
        progress = self.progress
        start_epoch(self.training.seed, progress.epoch, self.data)
        self.since = time.perf_counter() - progress.seconds
        for group in _groups(enumerate(self.data), self.training.accumulate):
            self._change()
            self._step([self.read(item, number) for number, item in group])
            progress.items += len(group)
            if progress.step == self.steps:
                break
            if progress.step % self.training.log_every == 0:
                self._write_row(None)
        if progress.items == 0:
            raise DataError(f"The training data gives nothing in epoch {progress.epoch + 1}.")
        self._end_epoch()

    def _change(self) -> None:
        """Apply the passes that are due."""
        progress = self.progress
        while progress.changes < len(self.changes):
            share, change = self.changes[progress.changes]
            if progress.step < share * self.steps:
                return
            self.program = Pipeline((change,))(self.program)
            _check_parameters(self.program, self.optimizer, f"The change {change!r} at {share}")
            progress.changes += 1
            progress.best, progress.worse, self.best = None, 0, None  # epochs before it are of another Program
            self._build()

    def _step(self, items: Sequence[Item]) -> None:
        self.rate = float(self.optimizer.param_groups[0]["lr"])
        parts = [item.to(self.accelerator.device) for item in items]
        shares = shares_of(items, parts, self.program) if len(items) > 1 else [Shares()]
        losses: dict[str, float] = {}
        for number, (part, share) in enumerate(zip(parts, shares, strict=True), start=1):
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.objective):
                total, found = self.objective(part, share, last)
                for name, value in floats({"loss": total.detach(), **found}).items():
                    losses[name] = losses.get(name, 0.0) + value
                self._check_losses(losses, part)
                total.backward()
        self._update()
        self.progress.step += 1
        self.progress.means.add(losses)
        self.bar.show(self.progress.epoch + 1, self.progress.step, losses["loss"])

    def _update(self) -> None:
        """Take the step that the gradients give."""
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        if self.training.clip_gradients is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.training.clip_gradients)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.training.clip_weights is not None:
            bound = self.training.clip_weights
            weights = [value.detach() for value in parameters if value.ndim >= 2]
            torch._foreach_clamp_min_(weights, -bound)
            torch._foreach_clamp_max_(weights, bound)

    def _check_losses(self, losses: dict[str, float], item: Item) -> None:
        if math.isfinite(losses["loss"]):
            return
        bad = [f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value)]
        specs = zip(self.program.inputs, item.inputs, strict=True)
        inputs = [f" Input '{spec.name}' holds NaN or infinity." for spec, value in specs if not _finite(value)]
        raise TrainingError(
            f"The loss is no number in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}, at the learning "
            f"rate {self.rate:g}: {', '.join(bad)}.{''.join(inputs)} Try a lower rate, or clip_gradients=1.0."
        )

    def _end_epoch(self) -> None:
        progress = self.progress
        when = f"after step {progress.step}"
        check_finite(self.program, when)
        metric = None if self.evaluate is None else self._metric(self.evaluate)
        progress.epoch, progress.items = progress.epoch + 1, 0
        self._write_row(metric)
        if metric is not None:
            self._compare(metric)

    def _metric(self, evaluate: Evaluate) -> float:
        with torch.no_grad():
            metric = float(evaluate(self.student))
        if math.isnan(metric):
            raise TrainingError(f"evaluate gives NaN after step {self.progress.step}.")
        return metric

    def _compare(self, metric: float) -> None:
        """Keep the best weights, and stop if there have been none for long."""
        progress = self.progress
        if progress.best is None or metric > progress.best:
            progress.best, progress.worse, self.best = metric, 0, own_copy(self.program)
        else:
            progress.worse += 1
        patience = self.training.patience
        progress.stopped = patience is not None and progress.worse >= patience and progress.changes == len(self.changes)

    def _write_row(self, metric: float | None) -> None:
        progress = self.progress
        progress.seconds = time.perf_counter() - self.since
        epoch = progress.epoch + (1 if progress.items else 0)
        means = progress.means.take()
        row = {"epoch": epoch, "step": progress.step, "learning_rate": self.rate, **means}
        self.log.write({**row, "metric": metric, "seconds": round(progress.seconds, 3)})
        self.bar.show(epoch, progress.step, means.get("loss", math.nan), metric)


def _steps(data: Data, training: Training) -> int:
    count = item_count(data)
    if training.steps is not None:
        return training.steps
    if count is None:
        raise DataError("The training data does not say how many items it has; give Training(steps=...).")
    return max(round(training.epochs * math.ceil(count / training.accumulate)), 1)


def _optimizer(program: Program, training: Training) -> torch.optim.Optimizer:
    named = trainable(program)
    if not named:
        raise TrainingError("The Program has no trainable parameter; requires_grad is False for all of them.")
    optimizer = training.optimizer(list(named.items()))
    _check_parameters(program, optimizer, f"The optimizer {type(optimizer).__name__}")
    return optimizer


def _check_parameters(program: Program, optimizer: torch.optim.Optimizer, who: str) -> None:
    known = {id(value) for group in optimizer.param_groups for value in group["params"]}
    missing = [name for name, value in trainable(program).items() if id(value) not in known]
    if missing:
        raise TrainingError(
            f"{who} leaves the parameters {', '.join(missing[:8])} without an optimizer. Set requires_grad to False "
            "for what is not to be trained; apply passes that make parameters before fxopt.train."
        )


def _needs(program: Program, training: Training) -> dict[str, str]:
    """Return what an item must have besides inputs, and who needs it."""
    stored = [tap.name for tap in program.taps if not isinstance(tap.teacher, int)]
    labels = {} if training.task is None else {"labels": type(training.task).__name__}
    return labels | ({"ids": stored[0]} if stored else {})


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    source = iter(items)
    while group := list(itertools.islice(source, size)):
        yield group


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
