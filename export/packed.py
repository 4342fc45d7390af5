"""Weights of 4 bits in an ONNX file: two a byte, the first in the lower half."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """A weight in the packed form of its ONNX type: `data` is its raw bytes, `shape` counts values."""

    onnx_type: int
    shape: tuple[int, ...]
    data: Tensor
