"""Vectors of length 1, with gradients that are finite everywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def directions(vectors: Tensor) -> Tensor:
    """Return each vector [..., width] at length 1; one of zeros has no direction, stays zero and gets no gradient."""
    return over(vectors, torch.linalg.vector_norm(vectors, dim=-1, keepdim=True))


def over(values: Tensor, lengths: Tensor) -> Tensor:
    """Divide values by lengths, 0 or more; what is divided by 0 becomes 0, and gets no gradient."""
    return values / lengths.masked_fill(lengths == 0, math.inf)


def one_minus_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - cosine of vectors [..., width] of length 1, as half the square of their distance.

    That is the same, and exact where the two are nearly equal. One vector of zeros gives 1/2, two give 0.
    """
    return (student - teacher).square().sum(-1) / 2
