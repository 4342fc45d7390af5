"""Time int8 convolutions as convolution kernel and as matrix product: `python -m benchmarks.convolution_forms`.

The ratios are what `ConvolutionKernels.matrix_product` of a target is made of: above 1, the matrix product is faster.
Each figure is the median time of one kernel in onnxruntime's profile, one thread, from rounds in which both take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from fxopt.export.measure import profile
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from fxopt.passes.quantize import Quantize
from fxopt.target import TARGETS, ConvolutionKernels

LAYERS = 3
MATRIX_PRODUCT = replace(TARGETS["x86-amx"], convolution=ConvolutionKernels(matrix_product={1: 1}))
CASES = [
    (kernel, channels, size, stride)
    for kernel in (1, 3)
    for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7), (1024, 14))
    for stride in (1, 2)
    if not (kernel == 3 and channels == 1024)
]


@dataclass(frozen=True)
class Timing:
    """Median seconds of one convolution kernel in both forms."""

    kernel: int
    channels: int
    size: int
    stride: int
    convolution: float
    matrix_product: float

    @property
    def ratio(self) -> float:
        """How many times faster the matrix product is."""
        return self.convolution / self.matrix_product


class Convolutions(nn.Module):
    """Convolutions side by side, each pooled, so that little else takes time."""

    def __init__(self, kernel: int, channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, channels, kernel, stride, kernel // 2) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the pooled result of each."""
        return [nn.functional.adaptive_avg_pool2d(torch.relu(layer(x)), 1) for layer in self.layers]


def time_forms(kernel: int, channels: int, size: int, stride: int, rounds: int) -> Timing:
    """Time one shape, alternately in both forms."""
    torch.manual_seed(0)
    x = torch.randn(1, channels, size, size)
    program = Quantize([x])(capture(Convolutions(kernel, channels, stride).eval(), x))
    forms = [to_onnx(program, target=target).proto for target in (TARGETS["x86"], MATRIX_PRODUCT)]
    samples: list[list[float]] = [[], []]
    for _ in range(rounds):
        for proto, found in zip(forms, samples, strict=True):
            found += _kernel_times(proto, x)
    medians = [statistics.median(found) for found in samples]
    return Timing(kernel, channels, size, stride, *medians)


def _kernel_times(proto: onnx.ModelProto, x: Tensor) -> list[float]:
    times = [kernel.seconds for kernel in profile(proto, (x,)) if kernel.op == "QLinearConv"]
    assert len(times) == LAYERS
    return times


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    timings = []
    for case in CASES:
        timing = time_forms(*case, options.rounds)
        timings.append(timing)
        shape = f"{timing.kernel}x{timing.kernel}/{timing.stride} {timing.channels:4} channels {timing.size:2} pixels"
        times = f"{timing.convolution * 1e6:6.0f} us, matrix product {timing.matrix_product * 1e6:6.0f} us"
        print(f"{shape}: convolution {times}, {timing.ratio:.2f}x", flush=True)
    if options.json:
        options.json.write_text(json.dumps([{**asdict(timing), "ratio": timing.ratio} for timing in timings], indent=1))


if __name__ == "__main__":
    main()
