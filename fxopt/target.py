"""Targets: what a runtime runs fast, as data.

The rows of x86 come from measurements of onnxruntime's kernels (docs/benchmarks.md): which dtype pair is fast, which
channel counts the kernels take, and which ops may be integer at all. Those of arm64 were read off its source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fxopt.errors import TargetError
from fxopt.machine import this_machine

aten = torch.ops.aten

# Ops with an integer kernel that gains only between integer ops: alone, the conversions around it cost more.
CHAIN_OPS: frozenset[Callable[..., Any]] = frozenset({
    aten.add.Tensor, aten.mul.Tensor, aten.cat.default, aten.sigmoid.default, aten.leaky_relu.default,
    aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.avg_pool2d.default,
    aten.silu.default, aten.hardswish.default, aten.hardsigmoid.default,
})  # fmt: skip


@dataclass(frozen=True)
class ConvolutionKernels:
    """Which convolutions a target runs faster in integers than in float.

    - `input_multiple`, `output_multiple`: what the channels of an ungrouped convolution must be multiples of.
    - `input_minimum`, `output_minimum`: the fewest channels of an ungrouped convolution.
    - `pad_input`: {input channels: channels to pad to with zeros}, for a convolution that reads a float value;
      `pad_positions`: the most positions of a kernel that gains by it, None for any. Larger ones are taken as they are.
    - `group_width`: the fewest input channels a group of a grouped convolution; `chain_group_width`: the fewest inside
      a chain of integer ops, where a somewhat slower kernel costs less than the conversions around a float one.
    - `depthwise_multiple`: what the channels of a depthwise convolution must be a multiple of, inside a chain only.
    - `matrix_product`: {kernel positions: fewest channels}: an ungrouped convolution whose kernel has at least so many
      positions, and at least so many input and output channels, is faster as a matrix product than as a convolution.
    """

    input_multiple: int = 4
    output_multiple: int = 4
    input_minimum: int = 4
    output_minimum: int = 16
    pad_input: Mapping[int, int] = field(default_factory=dict)
    pad_positions: int | None = None
    group_width: int = 32
    chain_group_width: int = 8
    depthwise_multiple: int = 4
    matrix_product: Mapping[int, int] = field(default_factory=dict)

    def padded(self, shape: Sequence[int]) -> int:
        """Return the input channels of a convolution with a weight [outputs, inputs, *kernel], with those of zeros."""
        channels, positions = int(shape[1]), math.prod(shape[2:])
        worth_it = self.pad_positions is None or positions <= self.pad_positions
        return self.pad_input.get(channels, channels) if worth_it else channels


@dataclass(frozen=True)
class Target:
    """One runtime on one kind of machine.

    - `activation`, `weight`: the dtypes of integer activations and weights.
    - `contrib_ops`: whether onnxruntime's com.microsoft ops may be emitted.
    - `convolution`: which convolutions have a fast integer kernel.
    - `width_multiple`: what the widths of float layers should be multiples of: the channels of one block of a kernel.
    - `lstm_minimum`: the fewest hidden units of an LSTM that an integer kernel runs faster; None: there is none.
    - `chain_ops`: ops that are integer only between integer ops.
    - `attention`: whether a whole scaled_dot_product_attention is worth opset 23's Attention op.
    - `session`: onnxruntime session options under which its fusions hold (on this machine, for checking).
    - `weight_max`: the largest magnitude of an integer weight.
    - `same_as`: a target for which the same Program must give a file with the very same outputs; validate() checks it.
    """

    name: str
    activation: torch.dtype
    weight: torch.dtype
    contrib_ops: bool
    attention: bool
    convolution: ConvolutionKernels = field(default_factory=ConvolutionKernels)
    width_multiple: int = 16
    lstm_minimum: int | None = None
    chain_ops: frozenset[Callable[..., Any]] = CHAIN_OPS
    session: Mapping[str, str] = field(default_factory=dict)
    weight_max: int = 127
    same_as: str | None = None


# A CPU with VNNI: it multiplies uint8 by int8 and sums exactly, in one instruction.
X86 = Target(
    "x86",
    torch.uint8,
    torch.int8,
    contrib_ops=True,
    attention=True,
    convolution=ConvolutionKernels(pad_input={3: 4}),
    lstm_minimum=96,
)
TARGETS: dict[str, Target] = {
    "x86": X86,
    # AMX too. Only matrix products use its tiles; a convolution becomes one where its weights have a zero point.
    "x86-amx": replace(
        X86,
        name="x86-amx",
        convolution=ConvolutionKernels(pad_input={3: 4}, matrix_product={1: 256, 9: 128}),
        same_as="x86",
    ),
    # Neither. vpmaddubsw adds two products of uint8 and int8 with saturation to int16: 2 · 255 · 64 = 32640 still fits.
    "x86-avx2": replace(
        X86,
        name="x86-avx2",
        convolution=ConvolutionKernels(pad_input={3: 4}, pad_positions=9, output_multiple=8),
        width_multiple=8,
        weight_max=64,
    ),
    "arm64": Target(
        "arm64",
        torch.int8,
        torch.int8,
        contrib_ops=True,
        attention=True,
        convolution=ConvolutionKernels(input_multiple=1, input_minimum=3),
        lstm_minimum=96,
        session={"session.qdqisint8allowed": "1"},
    ),
    "portable": Target(
        "portable",
        torch.uint8,
        torch.int8,
        contrib_ops=False,
        attention=False,
        convolution=ConvolutionKernels(pad_input={3: 4}),
    ),
}
OPSETS = range(18, 24)


def find_target(target: str | Target) -> Target:
    """Return the Target of a name; "auto" is that of this machine. Raises TargetError, with the names there are."""
    if isinstance(target, Target):
        return target
    name = this_machine() if target == "auto" else target
    if name not in TARGETS:
        raise TargetError(f"There is no target '{name}'. Choose one of auto, {', '.join(TARGETS)}.")
    return TARGETS[name]
