"""Quantize: static int8 quantization in one pass."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fxopt.graph.memory import return_free_memory
from fxopt.graph.program import Program
from fxopt.passes.quantize.calibrate import Calibrate, KnownRanges
from fxopt.passes.quantize.concatenations import keep_apart
from fxopt.passes.quantize.convert import Convert
from fxopt.passes.quantize.correct_bias import CorrectBias
from fxopt.passes.quantize.insert import InsertObservers
from fxopt.passes.quantize.observers import Observer
from fxopt.passes.quantize.placement import reasons_of
from fxopt.passes.quantize.round_biases import RoundBiases
from fxopt.passes.quantize.rounded import apart, rounded_if_better
from fxopt.passes.quantize.scheme import Scheme
from fxopt.target import find_target


@dataclass(frozen=True)
class Quantize:
    """Quantize to int8 with calibrated, static ranges: InsertObservers, Calibrate and Convert in a row.

    - `data`: any iterable of items like the example inputs, streamed; an iterator that can be read only once is read
      into memory.
    - `target`: the name of a row of fxopt.target.TARGETS, or "auto" for this machine.
    - `observer`: "mse" (least squared error), "minmax", "moving-average", "percentile", "entropy" or "auto" (the best
      of them for each value), see Calibrate.
    - `keep_float`: names of nodes that stay float, or {name: reason}.
    - `correct_bias`: whether to correct biases where that helps, see CorrectBias: it takes two runs of some samples
      side by side in memory.
    - `round_weights`: whether to round the weights of layers with up to 1,536 inputs an output with error feedback
      where that helps, see RoundGptq.
    - `scheme`: bits, symmetry, form of the scales, clips of weights.
    - `known`: ranges that were found before, see Calibrate.

    What stays float and why is in the notes of the result. Raises DataError, TargetError or PassError.
    """

    data: Iterable[Any] = field(repr=False)
    target: str = "x86"
    observer: Observer = "mse"
    keep_float: Mapping[str, str] | Collection[str] = ()
    correct_bias: bool = False
    round_weights: bool = False
    scheme: Scheme = field(default_factory=Scheme)
    known: KnownRanges | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", reasons_of(self.keep_float))

    def __call__(self, program: Program) -> Program:
        """Return the quantized Program."""
        data = list(self.data) if isinstance(self.data, Iterator) else self.data
        result = replace(self, data=data).calibrated(program)
        if self.round_weights:
            fitted, data = apart(data, program)
            result = rounded_if_better(result, fitted, data)
        if self.correct_bias:
            result = CorrectBias(data)(result)  # fitted to samples for which no weight was rounded, if there are such
        result = RoundBiases(self.scheme.bias_bits, self.scheme.power_of_two)(result)
        return_free_memory()  # what the values of calibration took; converting weights needs as much again
        result = Convert(self.target)(result)
        return_free_memory()
        return replace(result, history=(*program.history, repr(self)))

    def calibrated(self, program: Program) -> Program:
        """Return the calibrated Program, without the concatenations whose inputs turn out not to go under one scale.

        The data is read again for each of those.
        """
        kept, known, target = dict(reasons_of(self.keep_float)), self.known or KnownRanges(), find_target(self.target)
        while True:
            observed = InsertObservers(self.target, kept)(program)
            result = Calibrate(self.data, self.observer, self.target, self.scheme, known)(observed)
            apart = keep_apart(program, target, kept, known.extents)
            if apart == kept:
                return result
            kept = apart
