"""The sigmoid of onnxruntime: a rational approximation, whose last bit can decide a rounding to integers.

1/(1 + e^-x) = 1/2 + x·P(x²)/Q(x²) on [-18, 18], in float32 with fused multiply-adds (x86 with AVX2 and later).
"""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 18.0
NUMERATOR = (
    4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01,
)  # fmt: skip
DENOMINATOR = (
    6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03, 1.16817656904453e-01,
    9.93151921023180e-01,
)  # fmt: skip


def logistic(x: Tensor) -> Tensor:
    """Return the sigmoid of a float32 tensor as onnxruntime computes it."""
    value = x.float().clamp(-LIMIT, LIMIT)
    square = value * value
    ratio = _polynomial(NUMERATOR, square) * value / _polynomial(DENOMINATOR, square)
    return (ratio + 0.5).clamp(0.0, 1.0)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Evaluate by Horner's scheme, each multiply-add rounded once to float32 (in float64 the product is exact)."""
    first, *rest = (torch.tensor(coefficient, dtype=torch.float32) for coefficient in coefficients)
    result = first.expand_as(x)
    for coefficient in rest:
        result = (result.double() * x.double() + coefficient.double()).float()
    return result
