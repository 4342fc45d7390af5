"""A chain: teacher -> fewer channels -> distillation -> quantization-aware training -> int8 ONNX, each step scored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fxopt
from fxopt import Pipeline, Program, Training, passes
from fxopt.data import item_inputs
from fxopt.export.measure import race
from fxopt.export.session import Session
from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import validate
from fxopt.graph.cost import macs
from fxopt.machine import this_machine
from fxopt.onnx_callable import OnnxCallable
from fxopt.passes.distill.pairing import Key, Losses

Evaluate = Callable[[Callable[..., Any]], float]
Teacher = Program | passes.StoredOutputs


@dataclass(frozen=True)
class Chain:
    """What is compressed, on which data, and how.

    - `teacher`: from a seed to a trained Program. `shrink`: from it to the student, before any training.
    - `items`: what is trained on, one batch after the other; iterated once an epoch. `calibration`: inputs alone.
    - `metrics`: by name, each a number from something callable like the model; higher is better.
    - `losses`, `taps`: what the student is compared with its teacher by, see passes.AttachTeacher.
    - `tune`: the training of the student; `alone`: the same without a teacher, None where there are no labels.
    - `quantized`: the quantization-aware training that follows, with the teacher.
    - `inputs`: what is timed.
    - `stored`: whether the teacher runs over the items once only, and its outputs are read from a file after that.
    """

    name: str
    data: str
    teacher: Callable[[int], Program]
    shrink: Callable[[Program], Program]
    items: Iterable[Any] = field(repr=False)
    calibration: Sequence[Any] = field(repr=False)
    metrics: Mapping[str, Evaluate] = field(repr=False)
    losses: Losses | Mapping[str, Losses]
    tune: Training
    quantized: Training
    inputs: tuple[Tensor, ...] | dict[str, Tensor] = field(repr=False)
    taps: Losses | Mapping[Key, Losses] = ()
    alone: Training | None = None
    stored: bool = False
    target: str = field(default_factory=this_machine)


@dataclass(frozen=True)
class Row:
    """One model of a chain: its metrics in torch and in onnxruntime, its file, and its speed, dense float being 1."""

    seed: int
    step: str
    macs: float
    torch: tuple[float, ...]
    onnxruntime: tuple[float, ...]
    bytes: int
    seconds: float
    speedup: float = 1.0


def run(chain: Chain, seed: int, folder: Path, report: Callable[[Row], None], timing: float = 6.0) -> list[Row]:
    """Run a chain from one seed; files go to the folder, named after the steps. Every file is validated.

    `timing`: the seconds in which all files run in turn.
    Raises ValidationError if a file does not compute what its Program does.
    """
    rows, files, whole = [], [], 0
    start = time.perf_counter()
    for step, program in _steps(chain, seed, folder):
        whole = whole or macs(program)
        inputs = item_inputs(chain.inputs, program)
        path = folder / f"{step.replace(' ', '-')}.onnx"
        to_onnx(program, path, target=chain.target)
        validate(path, program, inputs, target=chain.target, raise_on_failure=True)
        scores = (_scores(chain, program), _scores(chain, OnnxCallable(path, program)))
        size, seconds = path.stat().st_size, time.perf_counter() - start
        rows.append(Row(seed, step, macs(program) / whole, *scores, size, seconds))
        files.append(path)
        report(rows[-1])
        start = time.perf_counter()
    times = race([Session(path) for path in files], inputs, timing)
    return [replace(row, speedup=time.speedup or 1.0) for row, time in zip(rows, times, strict=True)]


def _scores(chain: Chain, model: Callable[..., Any]) -> tuple[float, ...]:
    return tuple(metric(model) for metric in chain.metrics.values())


def _steps(chain: Chain, seed: int, folder: Path) -> Iterator[tuple[str, Program]]:
    """Make the models of a chain, ready for emission, the dense float one first."""
    dense = chain.teacher(seed)
    clean = Pipeline(passes.CLEANUP)
    yield "dense float", clean(dense)
    yield "dense int8", _converted(chain, clean(dense))
    small = chain.shrink(dense)
    if chain.alone is not None:
        yield "pruned, no teacher", clean(_trained(chain, small, replace(chain.alone, seed=seed)))
    else:
        yield "pruned, not trained", clean(small)
    teacher = passes.store_outputs(dense, chain.items, folder / "teacher.safetensors") if chain.stored else dense
    student = _taught(chain, small, teacher, replace(chain.tune, seed=seed))
    yield "pruned, distilled", clean(student)
    yield "pruned, distilled, int8", _converted(chain, clean(student))
    yield "pruned, distilled, trained int8", _trained_int8(chain, clean(student), teacher, seed)


def _converted(chain: Chain, program: Program) -> Program:
    quantize = passes.Quantize(chain.calibration, target=chain.target, correct_bias=True)
    return Pipeline((quantize, passes.QuantizeEmbeddings()))(program)


def _trained(chain: Chain, program: Program, training: Training) -> Program:
    return fxopt.train(program, chain.items, training)


def _taught(chain: Chain, program: Program, teacher: Teacher, training: Training) -> Program:
    joint = Pipeline((passes.AttachTeacher(teacher, chain.losses, chain.taps),))(program)
    return passes.DetachTeacher()(_trained(chain, joint, training))


def _trained_int8(chain: Chain, program: Program, teacher: Teacher, seed: int) -> Program:
    ready = Pipeline(
        (
            passes.InsertObservers(chain.target),
            passes.Calibrate(chain.calibration, target=chain.target),
            passes.LearnScales(),
        )
    )(program)
    joint = passes.AttachTeacher(teacher, chain.losses)(ready)
    trained = passes.DetachTeacher()(_trained(chain, joint, replace(chain.quantized, seed=seed)))
    return Pipeline((passes.FixScales(), passes.Convert(chain.target), passes.QuantizeEmbeddings()))(trained)


@dataclass(frozen=True)
class Shuffled:
    """Batches of samples, labels and ids in a new random order each time, `augment`ed; what is left over is left."""

    samples: Tensor = field(repr=False)
    labels: Tensor | None = field(repr=False)
    batch: int = 128
    augment: Callable[[Tensor], Tensor] = field(default=lambda samples: samples, repr=False)

    def __len__(self) -> int:
        return len(self.samples) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        for rows in torch.randperm(len(self.samples))[: len(self) * self.batch].view(-1, self.batch):
            yield self.augment(self.samples[rows]), None if self.labels is None else self.labels[rows], rows
