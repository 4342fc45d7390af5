"""The sigmoid and tanh of onnxruntime: rational approximations, whose last bit can decide a rounding to integers.

1/(1 + e^-x) = 1/2 + x·P(x²)/Q(x²) on [-18, 18] and tanh x = x·P(x²)/Q(x²) on [-9, 9], in float32 with fused
multiply-adds (x86 with AVX2 and later).
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

TANH_LIMIT = 9.0
TANH_NUMERATOR = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
    6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
TANH_DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def logistic(x: Tensor) -> Tensor:
    """Return the sigmoid of a float32 tensor as onnxruntime computes it."""
    value = x.float().clamp(-LIMIT, LIMIT)
    square = value * value
    ratio = _polynomial(NUMERATOR, square) * value / _polynomial(DENOMINATOR, square)
    return (ratio + 0.5).clamp(0.0, 1.0)


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent of a float32 tensor as onnxruntime computes it."""
    value = x.float().clamp(-TANH_LIMIT, TANH_LIMIT)
    square = value * value
    return _polynomial(TANH_NUMERATOR, square) * value / _polynomial(TANH_DENOMINATOR, square)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Evaluate by Horner's scheme, each multiply-add rounded once to float32 (in float64 the product is exact)."""
    first, *rest = (torch.tensor(coefficient, dtype=torch.float32) for coefficient in coefficients)
    result = first.expand_as(x)
    for coefficient in rest:
        result = (result.double() * x.double() + coefficient.double()).float()
    return result
