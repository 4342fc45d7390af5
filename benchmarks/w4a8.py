"""Weights of 4 bits and activations of 8, on trained models: `python -m benchmarks.w4a8 --models fashion_cnn`.

Each way of rounding the weights (for each output channel a scale that makes the least squared error) is scored by the
task's metric and by the SQNR of the outputs on the scored data, in the simulation (`fake_quantize`) that Convert and
onnxruntime agree with. Each is followed by bias correction. "ends 8 bits": the first and the last layer have weights of
8 bits, which is common practice.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from benchmarks.real_models import RealModel, real_models
from benchmarks.real_models.efficientnet import EFFICIENTNET_VIEWS
from benchmarks.real_models.model import Inputs, output_tensors
from fxopt import FxoptError, capture
from fxopt.graph.pipeline import Pass, Pipeline
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import AdaRound, Calibrate, CorrectBias, InsertObservers, RoundGptq, Scheme
from fxopt.passes.quantize.regions import has_grid, weight_of
from fxopt.passes.quantize.weight_scales import symmetric_scales

W4A8 = Scheme(weight_bits=4, clip_weights="mse")
MODELS = ("fashion_cnn", "fashion_vit", EFFICIENTNET_VIEWS.name)


@dataclass(frozen=True)
class WidenWeights:
    """Give the weights of some layers of a calibrated Program 8 bits, at a scale that clips nothing."""

    layers: Collection[str]

    def __call__(self, program: Program) -> Program:
        """Return the Program with the other grids."""
        edit = Edit(program, by=self)
        for layer in [node for node in edit.graph.nodes if node.name in self.layers]:
            fake = weight_of(layer)
            source = argument(fake, "x")
            weight = edit.constant(source)
            assert weight is not None
            scale = symmetric_scales(weight.detach(), 127, torch.zeros(len(weight), dtype=torch.float64))
            stored = edit.add_constant(f"{source.target}_scale_8", scale, before=fake)
            edit.update(fake, (source, stored, argument(fake, "zero_point"), 0, -127, 127), {})
        return edit.finish()


@dataclass(frozen=True)
class Data:
    """What the passes may look at, and how long."""

    items: Sequence[Inputs] = field(repr=False)
    samples: int
    iterations: int


# Of the data: what is done to the calibrated Program, by the name of the way.
WAYS: dict[str, Callable[[Data], tuple[Pass, ...]]] = {
    "nearest": lambda data: (),
    "RoundGptq": lambda data: (RoundGptq(data.items, data.samples),),
    "AdaRound, layers": lambda data: (AdaRound(data.items, data.samples, iterations=data.iterations),),
    "AdaRound, blocks": lambda data: (AdaRound(data.items, data.samples, "block", data.iterations),),
}


class Compared:
    """A Program behind quantization, called as the model is, that is compared with the float one at every call."""

    def __init__(self, exact: Callable[..., Any], program: Program) -> None:
        self.exact, self.program = exact, program.eval()
        self.signal = self.noise = 0.0

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        """Return what the quantized Program makes of the inputs."""
        found = self.program(*args, **kwargs)
        for value, right in zip(output_tensors(found), output_tensors(self.exact(*args, **kwargs)), strict=True):
            self.signal += float(right.double().square().sum())
            self.noise += float((value - right).double().square().sum())
        return found

    @property
    def sqnr(self) -> float:
        """The signal-to-quantization-noise ratio over all outputs so far, in dB."""
        return 10 * math.log10(self.signal / self.noise) if self.noise else math.inf


def ends(program: Program) -> tuple[str, ...]:
    """Return the names of the first and the last layer with a quantized weight."""
    layers: list[fx.Node] = [node for node in program.graph.nodes if has_grid(node)]
    return (layers[0].name, layers[-1].name)


def calibrated(model: RealModel, data: Data, scheme: Scheme) -> Program:
    """Capture a model and put its values and weights on the grids of a scheme."""
    captured = capture(model.build(), model.inputs(2), dynamic=model.dynamic)
    return Pipeline((*CLEANUP, InsertObservers(), Calibrate(data.items, scheme=scheme)))(captured)


def score(model: RealModel, data: Data, ways: Collection[str], at_ends: Collection[int]) -> list[dict[str, Any]]:
    """Round a model's weights in some ways, and print and return the figures of each.

    `at_ends`: the bits of the weights of the first and the last layer, 4 or 8, or both after each other.
    """
    exact, rows = model.build(), [dict[str, Any](model=model.name, way="float", sqnr=math.inf, seconds=0.0)]
    rows[0]["metric"] = model.evaluate(exact)
    print(_line(rows[0]), flush=True)

    def add(way: str, program: Program, passes: Sequence[Pass]) -> None:
        start = time.process_time()
        rounded = Pipeline((*passes, CorrectBias(data.items, data.samples)))(program)
        seconds = time.process_time() - start
        compared = Compared(exact, rounded)
        with torch.no_grad():
            metric = model.evaluate(compared)
        rows.append({"model": model.name, "way": way, "metric": metric, "sqnr": compared.sqnr, "seconds": seconds})
        print(_line(rows[-1]), flush=True)

    add("8 bits, nearest", calibrated(model, data, Scheme()), ())
    narrow = calibrated(model, data, W4A8)
    programs = {4: narrow, 8: WidenWeights(ends(narrow))(narrow)}
    for bits in at_ends:
        for way in ways:
            add(way + (", ends 8 bits" if bits == 8 else ""), programs[bits], WAYS[way](data))
    return rows


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:<20} {row['way']:<34} metric {row['metric']:.4f}  SQNR {row['sqnr']:5.1f} dB  "
        f"{row['seconds']:4.0f} s of CPU time"
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--ways", nargs="*", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--at-ends", type=int, nargs="*", choices=(4, 8), default=(4, 8), help="bits, first and last")
    parser.add_argument("--samples", type=int, default=64, help="of the calibration data, to round by")
    parser.add_argument("--iterations", type=int, default=1000, help="of AdaRound, for each layer or block")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for model in (*real_models(), EFFICIENTNET_VIEWS):
        if model.name not in options.models:
            continue
        try:
            data = Data(model.calibration(), options.samples, options.iterations)
            rows += score(model, data, options.ways, options.at_ends)
        except FxoptError as error:
            rows.append({"model": model.name, "error": str(error)})
            print(f"{model.name:<20} {error}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
