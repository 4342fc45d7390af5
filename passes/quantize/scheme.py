"""Scheme: into which integers values and weights are quantized, and Levels: those of one value.

A scale is the real value of one integer step: x' = (q - zero point) · scale (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", equation 1).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from fxopt.errors import PassError
from fxopt.graph.grids import SMALLEST_STEP, scales_of, zero_points_of

ZERO_RANGE = 1.0
BITS = (2, 3, 4, 5, 6, 7, 8, 16)
BIAS_BITS = (8, 16, 32)


@dataclass(frozen=True)
class Levels:
    """The integers [quant_min, quant_max] that one value is quantized into.

    - `symmetric`: zero is the integer 0. - `power_of_two`: scales are powers of two.
    """

    quant_min: int
    quant_max: int
    symmetric: bool = False
    power_of_two: bool = False

    @property
    def steps(self) -> int:
        """How many steps lie between the smallest and the largest integer."""
        return self.quant_max - self.quant_min

    def grid(self, lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
        """Return scales and zero points for ranges [low, high] around zero, in the dtype of the ends."""
        scales = scales_of(lows, highs, self.quant_min, self.quant_max, self.symmetric, self.power_of_two)
        return scales, zero_points_of(lows, scales, self.quant_min, self.symmetric)

    def parameters(self, low: float, high: float) -> tuple[float, int]:
        """Return (scale, zero point) of a range that contains zero; zero is represented exactly.

        The scale is rounded to float32. A range that is (almost) only zero gets a scale as if it reached ZERO_RANGE.
        """
        if (high - low) / self.steps < SMALLEST_STEP:
            low, high = 0.0, ZERO_RANGE
        lows, highs = torch.tensor([[low], [high]], dtype=torch.float64)
        scale = self.grid(lows, highs)[0].float()
        zero_point = zero_points_of(lows, scale.double(), self.quant_min, self.symmetric)
        zero_point = zero_point.clamp(self.quant_min, self.quant_max)
        return float(scale), int(zero_point)

    def quantized(self, values: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        """Return values after quantization to each of several grids, [grids, values]."""
        scales, zeros = scales[:, None], zeros[:, None]
        whole = (torch.round(values / scales) + zeros).clamp_(self.quant_min, self.quant_max)
        return whole.sub_(zeros).mul_(scales)


@dataclass(frozen=True, repr=False)
class Scheme:
    """How values and weights are quantized. The default is int8 for onnxruntime.

    - `activation_bits`, `weight_bits`: 2 to 8, or 16, which is for simulation: no kernel takes it.
    - `bias_bits`: 8, 16 or 32, which are the steps of the sums; see RoundBiases.
    - `symmetric`: activations with the zero point 0, in signed integers, or in unsigned ones where nothing is
      negative; else affine, with any zero point. Weights are always symmetric, in [-m, m] with m = 2^(bits-1) - 1.
    - `per_channel`: one scale for each output channel of a weight, or one for the whole.
    - `power_of_two`: scales are rounded up to powers of two, so that a shift does what a multiplication does (fixed
      point); the step of a bias, the product of two, is one too. The inner values of hardswish and hardsigmoid, which
      divide by 6, keep scales of their own.
    - `clip_weights`: "mse" for the clip of each channel with the least squared error, or a percentile of the
      magnitudes, such as 99.9, to clip at; None clips nothing.

    Raises PassError for other values.
    """

    activation_bits: int = 8
    weight_bits: int = 8
    symmetric: bool = False
    per_channel: bool = True
    power_of_two: bool = False
    clip_weights: float | Literal["mse"] | None = None
    bias_bits: int = 32

    def __post_init__(self) -> None:
        for name in ("activation_bits", "weight_bits"):
            if getattr(self, name) not in BITS:
                raise PassError(f"{name} is {getattr(self, name)!r}. Choose one of {', '.join(map(str, BITS))}.")
        if self.bias_bits not in BIAS_BITS:
            raise PassError(f"bias_bits is {self.bias_bits!r}. Choose one of {', '.join(map(str, BIAS_BITS))}.")
        clip = self.clip_weights
        if clip is not None and not (clip == "mse" if isinstance(clip, str) else 0 < clip <= 100):
            raise PassError(f"clip_weights is {clip!r}. Give 'mse', a percentile above 0 and up to 100, or None.")

    def __repr__(self) -> str:
        """Show what differs from the default."""
        given = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return f"Scheme({', '.join(f'{name}={value!r}' for name, value, default in given if value != default)})"

    @property
    def weight_max(self) -> int:
        """The largest integer of a weight; the smallest is its negative."""
        return int(2 ** (self.weight_bits - 1)) - 1

    def levels(self, low: float) -> Levels:
        """Return the levels of a value whose smallest one is `low`."""
        count = 2**self.activation_bits
        if self.symmetric and low < 0:
            return Levels(-count // 2, count // 2 - 1, True, self.power_of_two)
        return Levels(0, count - 1, self.symmetric, self.power_of_two)


FIXED_POINT = Scheme(symmetric=True, power_of_two=True)
