"""Quantization-aware training beside quantization after training: `python -m benchmarks.qat --bits w4a8 w4a4`.

Each number of bits is met by two ways without labels, weights rounded to the nearest and by AdaRound, with biases
corrected (PTQ), and by training (QAT): from the calibrated grids on, scales are learned with the weights, once a seed.
Every model is scored as a Program with `fake_quantize`, and as an ONNX file that is validated, in onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import fxopt
from benchmarks.real_models.fashion import FASHION, fashion_data
from benchmarks.real_models.model import RealModel
from benchmarks.train_fashion import augment
from fxopt import FxoptError, Pipeline, Training
from fxopt.export.session import Session
from fxopt.graph.program import Program
from fxopt.machine import this_machine
from fxopt.passes import CLEANUP, CrossEntropy
from fxopt.passes.quantize import (
    AdaRound,
    Calibrate,
    Convert,
    CorrectBias,
    FixScales,
    FoldRestoredBatchNorm,
    FreezeBatchNorm,
    InsertObservers,
    LearnScales,
    RestoreBatchNorm,
    Scheme,
)
from fxopt.target import find_target
from fxopt.training.optimizers import AdamW

BITS = {
    "w8a8": Scheme(),
    "w4a8": Scheme(weight_bits=4, clip_weights="mse"),
    "w4a4": Scheme(4, 4, clip_weights="mse"),
    "w3a3": Scheme(3, 3, clip_weights="mse"),
    "w2a4": Scheme(4, 2, clip_weights="mse"),
}
SAMPLES, ITERATIONS = 64, 1000  # of AdaRound
FREEZE = 0.5  # the share of the steps after which restored batch norms keep their statistics


class AugmentedImages:
    """Training images and their labels in batches, in another order and mirrored and shifted anew at every pass."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int = 128) -> None:
        self.images, self.labels, self.batch = images, labels, batch

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images))[: len(self) * self.batch]
        for rows in order.view(len(self), self.batch):
            yield augment(self.images[rows]), self.labels[rows]


@dataclass(frozen=True)
class Way:
    """How a model is trained: for how long, how fast, and with which batch norms."""

    epochs: float
    rate: float
    restore: bool = False

    def __call__(self, captured: Program, calibrated: Program, seed: int) -> Program:
        """Return the trained Program with fixed scales."""
        start = LearnScales()(calibrated)
        changes = {}
        if self.restore:
            start, changes = RestoreBatchNorm(captured)(start), {FREEZE: FreezeBatchNorm()}
        training = Training(
            epochs=self.epochs, task=CrossEntropy(label_smoothing=0.05), optimizer=AdamW(self.rate), seed=seed,
            changes=changes, log_every=10_000,
        )  # fmt: skip
        trained = fxopt.train(start, AugmentedImages(*fashion_data("train")), training)
        return Pipeline((FoldRestoredBatchNorm(), FixScales()))(trained)


@dataclass(frozen=True)
class Row:
    """The figures of one Program: the metric in torch and in onnxruntime, and the seconds that making it took."""

    model: str
    bits: str
    way: str
    torch: float
    onnxruntime: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.model:<14}{self.bits:<6}{self.way:<16}torch {100 * self.torch:.2f}   "
            f"onnxruntime {100 * self.onnxruntime:.2f}   {self.seconds:4.0f} s"
        )


def score(model: RealModel, program: Program, bits: str, way: str, seconds: float, target: str) -> Row:
    """Score a Program in torch and, converted, exported and validated, in onnxruntime."""
    example = model.inputs(2)
    tensors = program.flatten(*example) if isinstance(example, tuple) else program.flatten(**example)
    converted = Convert(target)(program)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        fxopt.export.to_onnx(converted, path, target=target)
        fxopt.export.validate(path, converted, tensors, target=target, raise_on_failure=True)
        session = Session(str(path), settings=find_target(target).session)
        exported = model.evaluate(lambda *inputs: session(*inputs))
    row = Row(model.name, bits, way, model.evaluate(program.eval()), exported, seconds)
    print(row, flush=True)
    return row


def compare(model: RealModel, bits: str, way: Way, seeds: Sequence[int], target: str) -> list[Row]:
    """Quantize a model after training and by training; print and return the figures."""
    captured = fxopt.capture(model.build(), model.inputs(2), dynamic=model.dynamic)
    items = model.calibration()
    calibrate = Calibrate(items, target=target, scheme=BITS[bits])
    calibrated = Pipeline((*CLEANUP, InsertObservers(target), calibrate))(captured)
    correct = CorrectBias(items, SAMPLES)
    makers: dict[str, Callable[[], Program]] = {
        "PTQ, nearest": lambda: correct(calibrated),
        "PTQ, AdaRound": lambda: correct(AdaRound(items, SAMPLES, iterations=ITERATIONS)(calibrated)),
    }
    makers |= {f"QAT, seed {seed}": lambda seed=seed: way(captured, calibrated, seed) for seed in seeds}  # type: ignore[misc]
    rows = []
    for name, make in makers.items():
        start = time.perf_counter()
        program = make()
        rows.append(score(model, program, bits, name, time.perf_counter() - start, target))
    print(summary(rows), flush=True)
    return rows


def summary(rows: Sequence[Row]) -> str:
    """Say in a line what training gains over the best way without."""
    before = max(row.torch for row in rows if row.way.startswith("PTQ"))
    trained = [row for row in rows if row.way.startswith("QAT")]
    apart = max(abs(row.torch - row.onnxruntime) for row in trained or rows)
    if not trained:
        return f"{rows[0].bits}: PTQ {100 * before:.2f}"
    deviation = statistics.stdev(row.torch for row in trained) if len(trained) > 1 else 0.0
    mean = statistics.mean(row.torch for row in trained)
    exported = statistics.mean(row.onnxruntime for row in trained)
    return (
        f"{rows[0].bits}: PTQ {100 * before:.2f}, QAT {100 * mean:.2f} ± {100 * deviation:.2f}, {len(trained)} seeds, "
        f"in onnxruntime {100 * exported:.2f}; a seed's two at most {100 * apart:.2f} points apart"
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=[model.name for model in FASHION], default=["fashion_cnn"])
    parser.add_argument("--bits", nargs="*", choices=tuple(BITS), default=("w4a8", "w4a4"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=0.5)
    parser.add_argument("--rate", type=float, default=3e-4, help="the highest learning rate of AdamW")
    parser.add_argument("--batch-norm", choices=("folded", "restored"), default="folded")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    way = Way(options.epochs, options.rate, options.batch_norm == "restored")
    rows: list[Row] = []
    try:
        for model in (model for model in FASHION if model.name in options.models):
            print(f"{model.name:<14}float {100 * model.evaluate(model.build()):.2f}", flush=True)
            for bits in options.bits:
                rows += compare(model, bits, way, range(options.seeds), this_machine())
    except FxoptError as error:
        print(error)
        return 1
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in rows], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
