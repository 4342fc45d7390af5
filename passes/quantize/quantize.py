"""Quantize: static int8 quantization in one pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxopt.graph.program import Program
from fxopt.passes.quantize.calibrate import Calibrate
from fxopt.passes.quantize.convert import Convert
from fxopt.passes.quantize.correct_bias import SAMPLES, CorrectBias
from fxopt.passes.quantize.insert import InsertObservers
from fxopt.passes.quantize.observers import Observer
from fxopt.passes.quantize.placement import reasons_of
from fxopt.passes.quantize.scheme import Scheme


@dataclass(frozen=True)
class Quantize:
    """Quantize to int8 with calibrated, static ranges: InsertObservers, Calibrate and Convert in a row.

    - `data`: any iterable of items like the example inputs; read once, streamed.
    - `target`: the name of a row of fxopt.target.TARGETS.
    - `observer`: "mse" (least squared error), "minmax", "moving-average", "percentile", "entropy" or "auto" (the best
      of them for each value), see Calibrate.
    - `keep_float`: names of nodes that stay float, or {name: reason}.
    - `correct_bias`: whether to correct biases, see CorrectBias: more exact, for twice the activations of the first 32
      samples in memory.
    - `scheme`: bits, symmetry, form of the scales, clips of weights.

    What stays float and why is in the notes of the result. Raises DataError, TargetError or PassError.
    """

    data: Iterable[Any] = field(repr=False)
    target: str = "x86"
    observer: Observer = "mse"
    keep_float: Mapping[str, str] | Collection[str] = ()
    correct_bias: bool = False
    scheme: Scheme = field(default_factory=Scheme)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", reasons_of(self.keep_float))

    def __call__(self, program: Program) -> Program:
        """Return the quantized Program."""
        data = _Remembered(self.data) if self.correct_bias and _streams(self.data) else self.data
        result = InsertObservers(self.target, self.keep_float)(program)
        result = Calibrate(data, self.observer, self.target, self.scheme)(result)
        if isinstance(data, _Remembered) and data.items:
            result = CorrectBias(data.items)(result)
        result = Convert(self.target)(result)
        return replace(result, history=(*program.history, repr(self)))


def _streams(data: Any) -> bool:
    """Say whether data is a collection of items; Calibrate tells the user what is wrong with anything else."""
    return isinstance(data, Iterable) and not isinstance(data, (Tensor, Mapping))


class _Remembered:
    """Data that streams by once, while the first items of it are kept, up to SAMPLES samples."""

    def __init__(self, data: Iterable[Any]) -> None:
        self.data = data
        self.items: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        self.items, count = [], 0
        for item in self.data:
            if count < SAMPLES:
                self.items.append(item)
                count += _samples(item)
            yield item


def _samples(item: Any) -> int:
    tensors = [leaf for leaf in pytree.tree_leaves(item) if isinstance(leaf, Tensor) and leaf.ndim]
    return len(tensors[0]) if tensors else 1
