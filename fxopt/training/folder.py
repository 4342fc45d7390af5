"""The folder of a training: what is written there, and whether a training can go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from fxopt.errors import TrainingError
from fxopt.graph.program import Program
from fxopt.training.checkpoints import Checkpoint, fingerprint, optimizer_checkpoint, read_checkpoint
from fxopt.training.log import Means
from fxopt.training.options import Training
from fxopt.training.random_states import random_states
from fxopt.training.tensors import trained_tensors

FREE = ("log_every", "save_every")  # what another run of the same training may have otherwise


@dataclass
class Progress:
    """How far a training is.

    - `step`: of the optimizer. `epoch`: those that are done. `items`: of the epoch under way.
    - `changes`: how many are made. `best`: the metric of the best epoch since the last of them; `worse`: epochs since.
    - `stopped`: whether patience has ended it. `rate`: of the last step. `epoch_means`, `row_means`: of the losses in
      this epoch, and since the last row of the log.
    """

    step: int = 0
    epoch: int = 0
    items: int = 0
    changes: int = 0
    best: float | None = None
    worse: int = 0
    stopped: bool = False
    rate: float = 0.0
    seconds: float = 0.0
    epoch_means: Means = field(default_factory=Means)
    row_means: Means = field(default_factory=Means)


def progress_of(state: Mapping[str, Any]) -> Progress:
    """Return what asdict() made of a Progress."""
    means = {name: Means(**state[name]) for name in ("epoch_means", "row_means")}
    return Progress(**{**state, **means})


@dataclass(frozen=True)
class Folder:
    """The checkpoints of one training; `writes`: whether this process does."""

    path: Path
    identity: Mapping[str, Any]
    writes: bool

    @property
    def last(self) -> Path:
        """The newest checkpoint, with all that is needed to go on."""
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        """The weights of the best epoch."""
        return self.path / "best.safetensors"

    def before(self, change: int) -> Path:
        """Return the file of the weights that a change was made to, counted from 1."""
        return self.path / f"before_change_{change}.safetensors"

    def save(self, program: Program, optimizer: Optimizer, progress: Progress) -> None:
        """Write `last`."""
        if not self.writes:
            return
        memory = optimizer_checkpoint(optimizer)
        tensors = {f"program.{name}": value for name, value in trained_tensors(program).items()}
        tensors |= {f"optimizer.{name}": value for name, value in memory.tensors.items()}
        state = {"progress": asdict(progress), "optimizer": memory.state, "random": random_states()}
        Checkpoint(tensors, {**self.identity, **state}).write(self.last)

    def save_weights(self, program: Program, path: Path, **state: Any) -> None:
        """Write the weights alone."""
        if self.writes:
            tensors = {f"program.{name}": value for name, value in trained_tensors(program).items()}
            Checkpoint(tensors, {**self.identity, **state}).write(path)

    def found(self) -> Checkpoint | None:
        """Return `last` if it is there. Raises TrainingError if it is of another training."""
        if not self.last.is_file():
            return None
        checkpoint = read_checkpoint(self.last)
        for name, here in self.identity.items():
            there = checkpoint.state.get(name)
            if there != here:
                raise TrainingError(
                    f"'{self.path}' has a checkpoint of another training. {_difference(name, there, here)} "
                    "Give another folder, or remove this one."
                )
        return checkpoint


def identity_of(program: Program, training: Training, steps: int, evaluated: bool) -> dict[str, Any]:
    """Return what makes a training the same as another: its options, its Program, and the length of its data."""
    options = {name: text for name, text in training.spelled().items() if name not in FREE}
    return {"format": 1, "options": options, "steps": steps, "evaluate": evaluated, "program": fingerprint(program)}


def _difference(name: str, there: Any, here: Any) -> str:
    if name == "program":
        return "Its Program has another graph, or other weights at the start."
    if name == "options" and isinstance(there, dict):
        keys = [key for key in here if there.get(key) != here[key]]
        return " ".join(f"{key} is {there.get(key)} there, {here[key]} here." for key in keys)
    return f"{name} is {there} there, {here} here."
