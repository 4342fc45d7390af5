"""Comparison of output tensors: errors relative to the output's range, SQNR, top-1 agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputError:
    """How far one output is from its reference.

    - `max_error`: the largest absolute difference. `relative`: that over the range (max - min) of the reference.
    - `sqnr`: 10 log10(signal power / error power) in dB; infinite where nothing differs.
    - `agreement`: the share of rows whose argmax over the last dimension is the same.
    """

    name: str
    max_error: float
    relative: float
    sqnr: float
    agreement: float

    def worse(self, other: OutputError | None) -> OutputError:
        """Take the worse of each figure of two comparisons of the same output."""
        if other is None:
            return self
        return OutputError(
            self.name,
            max(self.max_error, other.max_error),
            max(self.relative, other.relative),
            min(self.sqnr, other.sqnr),
            min(self.agreement, other.agreement),
        )


def compare_output(name: str, reference: Tensor, value: Tensor) -> OutputError:
    """Compare an output with its reference. A wrong shape, dtype, NaN or infinity counts as an infinite error."""
    wrong = OutputError(name, math.inf, math.inf, -math.inf, 0.0)
    if reference.shape != value.shape or reference.dtype != value.dtype:
        return wrong
    if reference.numel() == 0:
        return OutputError(name, 0.0, 0.0, math.inf, 1.0)
    left, right = reference.detach().to(torch.float64), value.to(torch.float64)
    finite = left.isfinite()
    if not torch.equal(finite, right.isfinite()) or not _equal_where(~finite, left, right):
        return wrong
    left, right = torch.where(finite, left, 0.0), torch.where(finite, right, 0.0)
    error = (left - right).abs().max().item()
    spread = (left.max() - left.min()).item() or left.abs().max().item()
    power, noise = left.square().sum().item(), (left - right).square().sum().item()
    return OutputError(
        name,
        max_error=error,
        relative=error / spread if spread else (0.0 if error == 0 else math.inf),
        sqnr=math.inf if noise == 0 else 10 * math.log10(max(power, 1e-300) / noise),
        agreement=_agreement(left, right),
    )


def _equal_where(mask: Tensor, left: Tensor, right: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(left[mask]), torch.nan_to_num(right[mask])) and torch.equal(
        left[mask].isnan(), right[mask].isnan()
    )


def _agreement(left: Tensor, right: Tensor) -> float:
    if left.ndim == 0 or left.shape[-1] < 2:
        return 1.0
    return float((left.argmax(-1) == right.argmax(-1)).double().mean().item())


def compare_outputs(names: Sequence[str], references: Sequence[Tensor], values: Sequence[Tensor]) -> list[OutputError]:
    """Compare all outputs, in order."""
    return [compare_output(*triple) for triple in zip(names, references, values, strict=True)]
