"""The log of a training: rows in log.csv and log.jsonl, and a progress bar on a terminal."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

Row = dict[str, Any]


@dataclass
class Means:
    """The means of losses over steps."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def add(self, losses: dict[str, float]) -> None:
        """Count the losses of one step."""
        self.steps += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """Return the means since the last call."""
        means = {name: value / max(self.steps, 1) for name, value in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means


@dataclass(frozen=True)
class LogFiles:
    """The two files of a folder; None: nothing is written. `losses`: the names of the parts of the loss."""

    folder: Path | None
    losses: Sequence[str]

    @property
    def columns(self) -> list[str]:
        """The names of the columns of log.csv."""
        return ["epoch", "step", "mean_over", "learning_rate", "loss", *self.losses, "metric", "seconds"]

    def start(self, step: int) -> None:
        """Begin the files with the rows that they have up to a step, that of the checkpoint; later ones come again."""
        if self.folder is None:
            return
        path = self.folder / "log.jsonl"
        lines = path.read_text("utf-8").splitlines() if step and path.is_file() else []
        rows = [row for row in map(_parse, lines) if row is not None and row["step"] <= step]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        with (self.folder / "log.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def write(self, row: Row) -> None:
        """Append a row to both."""
        if self.folder is None:
            return
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        with (self.folder / "log.csv").open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self.columns, extrasaction="ignore").writerow(row)


def _parse(line: str) -> Row | None:
    """Read a row; a process that is killed may leave half of the last one."""
    try:
        row: Row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row


class ProgressBar:
    """A bar on stderr with the loss and the metric, where that is a terminal and `shown`."""

    def __init__(self, steps: int, done: int, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._metric = ""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=steps, completed=done)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, epoch: int, step: int, loss: float, metric: float | None = None) -> None:
        """Show how far the training is; the metric stays until the next one."""
        if self._bar.disable:
            return
        if metric is not None:
            self._metric = f", metric {metric:.4g}"
        self._bar.update(self._task, completed=step, description=f"epoch {epoch}: loss {loss:.4g}{self._metric}")
