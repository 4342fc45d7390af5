"""The figure that max_drop bounds: of a file against the float model's, on samples or by the user's metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxopt.choose import AT_ONCE, real_outputs, worst_sqnr
from fxopt.data import CalibrationData, calibration_inputs, split_items
from fxopt.errors import ModelError
from fxopt.export.session import Session
from fxopt.graph.program import Program
from fxopt.limits import Drop
from fxopt.onnx_callable import OnnxCallable

# So many samples judge. They are held out of calibration where it has so many times more.
JUDGED, PLENTY = 32, 4
Samples = Sequence[tuple[Tensor, ...]]


@dataclass(frozen=True)
class Rest:
    """Calibration data without its first items."""

    data: CalibrationData = field(repr=False)
    skipped: int

    def __iter__(self) -> Iterator[Any]:
        """Yield all items but the first."""
        return islice(iter(self.data), self.skipped, None)


def hold_out(data: CalibrationData) -> tuple[CalibrationData | Rest, Samples]:
    """Split calibration data into what ranges are taken from and the first samples, which judge.

    Where there are too few samples to do without some, both are the same: then the first ones are in both.
    """
    judged: list[tuple[Tensor, ...]] = []
    count = 0
    for item in calibration_inputs(data.source, data.program):
        if count < JUDGED:
            judged.append(item)
        count += _size(item)
        if count >= PLENTY * JUDGED:
            return Rest(data, len(judged)), split_items(judged, data.program, AT_ONCE)
    return data, split_items(judged, data.program, AT_ONCE)


def _size(item: tuple[Tensor, ...]) -> int:
    return item[0].shape[0] if item and item[0].ndim else 1


@dataclass(frozen=True)
class Fidelity:
    """What finds the figure of a file: `Drop` says which one, `baseline` is the float file."""

    drop: Drop
    baseline: Path
    samples: Samples = field(repr=False)
    evaluate: Callable[[Callable[..., Any]], float] | None = None
    found: dict[Path, float] = field(default_factory=dict, repr=False)

    def figure(self, path: Path, program: Program) -> float:
        """Return the figure of a file that was made of a Program. Raises ModelError where it has no such figure."""
        if self.drop.measure == "metric":
            return self._metric(self.baseline, program) - self._metric(path, program)
        left, right = Session(self.baseline), Session(path)
        pairs = ((real_outputs(left, item), real_outputs(right, item)) for item in self.samples)
        if self.drop.measure == "sqnr":
            return worst_sqnr(pairs)
        return _worst_of_classes(pairs, self.drop)

    def _metric(self, path: Path, program: Program) -> float:
        assert self.evaluate is not None
        if path not in self.found:
            self.found[path] = float(self.evaluate(OnnxCallable(path, program)))
        return self.found[path]


def _worst_of_classes(pairs: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]], drop: Drop) -> float:
    """Return the mean over rows of KL divergence or equal argmax, of the worst output that has classes."""
    compare = _divergence if drop.measure == "kl" else _agreement
    sums: dict[int, list[float]] = {}
    for expected, actual in pairs:
        for place, (left, right) in enumerate(zip(expected, actual, strict=True)):
            if left.is_floating_point() and left.ndim and left.shape[-1] > 1:
                rows = compare(left.double(), right.double())
                total = sums.setdefault(place, [0.0, 0.0])
                total[0] += float(rows.sum())
                total[1] += rows.numel()
    if not sums:
        raise ModelError(f"max_drop={drop}: no output has classes in its last dimension; bound the 'sqnr' instead.")
    return max((total / max(count, 1) for total, count in sums.values()), key=drop.lost)


def _divergence(left: Tensor, right: Tensor) -> Tensor:
    """Return KL(softmax(left) || softmax(right)) of each row."""
    ours, theirs = torch.log_softmax(left, -1), torch.log_softmax(right, -1)
    return (ours.exp() * (ours - theirs)).sum(-1)


def _agreement(left: Tensor, right: Tensor) -> Tensor:
    return (left.argmax(-1) == right.argmax(-1)).double()
