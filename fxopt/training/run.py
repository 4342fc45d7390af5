"""One training, from its first step or its checkpoint to its last."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fxopt.data import Data
from fxopt.errors import DataError, TrainingError
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.passes.distill.detach_teacher import DetachTeacher
from fxopt.training.checkpoints import Checkpoint, read_checkpoint, replay, restore_optimizer
from fxopt.training.folder import Folder, Progress, identity_of, progress_of
from fxopt.training.items import Reader, check_data
from fxopt.training.joint_batch_norm import with_joint_statistics
from fxopt.training.layout import training_layout
from fxopt.training.log import LogFiles, Means, ProgressBar
from fxopt.training.objective import Objective, loss_names
from fxopt.training.options import Evaluate, Training
from fxopt.training.processes import accelerator_for, from_main
from fxopt.training.random_states import restore_random_states, start_epoch
from fxopt.training.setup import check_parameters, make_optimizer, needs_of, step_count
from fxopt.training.step import NotFiniteError, Stepper
from fxopt.training.tensors import first_not_finite, load_tensors, own_copy


class Run:
    """A training under way. `program` is its own copy, in training mode; `student` computes with the same tensors."""

    def __init__(
        self, program: Program, data: Data, training: Training, evaluate: Evaluate | None, path: Path | None
    ) -> None:
        check_data(data)
        self.training, self.data, self.evaluate = training, data, evaluate
        self.steps = step_count(data, training)
        self.changes = sorted(training.changes.items())
        self.accelerator = accelerator_for(program, training)
        self.program = own_copy(program, training_layout(program)).train()
        self.optimizer = make_optimizer(self.program, training)
        self.schedule = training.schedule(self.optimizer, self.steps)
        self.progress = Progress()
        self.best: Program | None = None
        self.random: Mapping[str, Any] | None = None  # of the checkpoint, in the middle of an epoch
        self.folder = None if path is None else self._folder(path, program)
        self._build()
        checkpoint = None if self.folder is None else self.folder.found()
        if checkpoint is not None:
            self._resume(checkpoint)

    def _folder(self, path: Path, program: Program) -> Folder:
        path.mkdir(parents=True, exist_ok=True)
        identity = identity_of(program, self.training, self.steps, self.evaluate is not None)
        return Folder(path, identity, self.accelerator.is_main_process)

    def _build(self) -> None:
        """Make what belongs to the graph as it is now."""
        several = self.accelerator.num_processes > 1
        running = with_joint_statistics(self.program) if several else self.program
        objective = self.accelerator.prepare_model(Objective(running, self.training))
        self.step = Stepper(self.program, self.training, self.accelerator, objective, self.optimizer, self.schedule)
        self.student = DetachTeacher()(self.program).eval()
        self.read = Reader(self.program, needs_of(self.program, self.training))

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        folder = self.folder
        assert folder is not None
        for number, (_, change) in enumerate(self.changes[: checkpoint.state["progress"]["changes"]], start=1):
            load_tensors(self.program, read_checkpoint(folder.before(number)).part("program."))
            self._apply(change)
        load_tensors(self.program, checkpoint.part("program."))
        self.progress = progress_of(checkpoint.state["progress"])
        replay(self.schedule, self.progress.step)
        restore_optimizer(self.optimizer, Checkpoint(checkpoint.part("optimizer."), checkpoint.state["optimizer"]))
        self.random = checkpoint.state["random"]
        if self.progress.best is not None:
            self.best = own_copy(self.program)
            load_tensors(self.best, read_checkpoint(folder.best).part("program."))

    def run(self) -> Program:
        """Train to the end; returns the best Program, or the last, in inference mode."""
        folder = self.folder.path if self.folder is not None and self.folder.writes else None
        self.log = LogFiles(folder, loss_names(self.program, self.training))
        self.log.start(self.progress.step)
        with ProgressBar(self.steps, self.progress.step, self.accelerator.is_main_process) as self.bar:
            while self.progress.step < self.steps and not self.progress.stopped:
                self._epoch()
        self.accelerator.wait_for_everyone()
        trained = own_copy(self.best or self.program, torch.contiguous_format).eval()
        return replace(trained, history=(*trained.history, self.training.entry))

    def _epoch(self) -> None:
        progress = self.progress
        self.since = time.perf_counter() - progress.seconds
        start_epoch(self.training.seed, progress.epoch, self.data)
        for group in _groups(self._items(), self.training.accumulate):
            self._change()
            self._take(group)
            if progress.step % self.training.log_every == 0:
                self._write_row("steps", progress.row_means)
            if progress.step == self.steps:
                break
            if self.training.save_every is not None and progress.step % self.training.save_every == 0:
                self._save()
        if progress.items == 0:
            raise DataError(f"The training data gives nothing in epoch {progress.epoch + 1}; give at least one item.")
        self._end_epoch()

    def _items(self) -> Iterator[tuple[int, Any]]:
        """Iterate over the numbered items of an epoch; those that a checkpoint has behind it are read, and left out."""
        items = enumerate(self.data)
        for _ in itertools.islice(items, self.progress.items):
            pass
        if self.progress.items and self.random is not None:
            restore_random_states(self.random)
        self.random = None
        return items

    def _take(self, group: list[tuple[int, Any]]) -> None:
        progress = self.progress
        progress.rate = self.step.rate
        try:
            losses = self.step([self.read(item, number) for number, item in group], progress.step)
        except NotFiniteError as error:
            raise TrainingError(
                f"The loss is no number in epoch {progress.epoch + 1}, step {progress.step + 1}, at the learning rate "
                f"{progress.rate:g}: {error} {self._resort()}"
            ) from None
        progress.step += 1
        progress.items += len(group)
        progress.epoch_means.add(losses)
        progress.row_means.add(losses)
        self.bar.show(progress.epoch + 1, progress.step, losses["loss"])

    def _resort(self) -> str:
        """Say what is left when a training fails."""
        advice = "Try a lower rate, or clip_gradients=1.0."
        if self.folder is None:
            return f"{advice} There is no checkpoint: no folder was given."
        good = self.folder.last if self.folder.last.is_file() else "none yet"
        return f"{advice} The last good checkpoint: {good}."

    def _change(self) -> None:
        """Apply the passes that are due."""
        progress = self.progress
        while progress.changes < len(self.changes):
            share, change = self.changes[progress.changes]
            if progress.step < share * self.steps:
                return
            progress.changes += 1
            if self.folder is not None:
                self.folder.save_weights(self.program, self.folder.before(progress.changes))
            self._apply(change)
            progress.best, progress.worse, self.best = None, 0, None  # epochs before it are of another Program

    def _apply(self, change: Any) -> None:
        self.program = Pipeline((change,))(self.program)
        check_parameters(self.program, self.optimizer, f"The change {change!r}")
        self._build()

    def _end_epoch(self) -> None:
        progress = self.progress
        self._check_weights()
        metric = None if self.evaluate is None else from_main(self._metric(self.evaluate), self.accelerator)
        progress.epoch, progress.items = progress.epoch + 1, 0
        self._write_row("epoch", progress.epoch_means, metric)
        if metric is not None:
            self._compare(metric)
        self._save()

    def _metric(self, evaluate: Evaluate) -> float | None:
        if not self.accelerator.is_main_process:
            return None
        with torch.no_grad():
            metric = float(evaluate(self.student))
        if math.isnan(metric):
            raise TrainingError(f"evaluate gives NaN after step {self.progress.step}. {self._resort()}")
        return metric

    def _compare(self, metric: float) -> None:
        """Keep the best weights; stop if there have been none for long."""
        progress = self.progress
        if progress.best is None or metric > progress.best:
            progress.best, progress.worse, self.best = metric, 0, own_copy(self.program)
            if self.folder is not None:
                self.folder.save_weights(self.best, self.folder.best, metric=metric, step=progress.step)
        else:
            progress.worse += 1
        patience = self.training.patience
        progress.stopped = patience is not None and progress.worse >= patience and progress.changes == len(self.changes)

    def _check_weights(self) -> None:
        bad = first_not_finite(self.program)
        if bad is not None:
            raise TrainingError(f"'{bad}' holds NaN or infinity after step {self.progress.step}. {self._resort()}")

    def _save(self) -> None:
        if self.folder is None:
            return
        self._check_weights()
        self.progress.seconds = time.perf_counter() - self.since
        self.folder.save(self.program, self.optimizer, self.progress)

    def _write_row(self, over: str, means_over: Means, metric: float | None = None) -> None:
        progress = self.progress
        progress.seconds = time.perf_counter() - self.since
        epoch = progress.epoch + (1 if progress.items else 0)
        means = means_over.take()
        row = {"epoch": epoch, "step": progress.step, "mean_over": over, "learning_rate": progress.rate, **means}
        self.log.write({**row, "metric": metric, "seconds": round(progress.seconds, 3)})
        self.bar.show(epoch, progress.step, means.get("loss", math.nan), metric)


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    source = iter(items)
    while group := list(itertools.islice(source, size)):
        yield group
