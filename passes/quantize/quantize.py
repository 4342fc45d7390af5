"""Quantize: static int8 quantization in one pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fxopt.graph.program import Program
from fxopt.passes.quantize.calibrate import Calibrate
from fxopt.passes.quantize.convert import Convert
from fxopt.passes.quantize.insert import InsertObservers
from fxopt.passes.quantize.observers import Observer
from fxopt.passes.quantize.placement import reasons_of


@dataclass(frozen=True)
class Quantize:
    """Quantize to int8 with calibrated, static ranges: InsertObservers, Calibrate and Convert in a row.

    - `data`: any iterable of items like the example inputs; read once, streamed.
    - `target`: the name of a row of fxopt.target.TARGETS.
    - `observer`: "mse" (least squared error) or "minmax".
    - `keep_float`: names of nodes that stay float, or {name: reason}.

    What stays float and why is in the notes of the result. Raises DataError, TargetError or PassError.
    """

    data: Iterable[Any] = field(repr=False)
    target: str = "x86"
    observer: Observer = "mse"
    keep_float: Mapping[str, str] | Collection[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", reasons_of(self.keep_float))

    def __call__(self, program: Program) -> Program:
        """Return the quantized Program."""
        result = program
        for step in (
            InsertObservers(self.target, self.keep_float),
            Calibrate(self.data, self.observer),
            Convert(self.target),
        ):
            result = step(result)
        return replace(result, history=(*program.history, repr(self)))
