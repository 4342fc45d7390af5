"""The named recipes of compile() that quantize: each says what stays float and makes the quantized Program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.passes.quantize import Quantize, QuantizeDynamic, place
from fxopt.passes.quantize.quantize_dynamic import dynamic_float_reasons
from fxopt.target import Target

# Of the nodes to keep float, with reasons: why each float node stays float, and the quantized Program.
Quantization = Callable[[Mapping[str, str]], tuple[Mapping[str, str], Program]]


def static_int8(baseline: Program, target: Target, data: Iterable[Any]) -> Quantization:
    """Return the recipe "int8": calibrated ranges, for all that the target runs in integers."""

    def quantize(kept: Mapping[str, str]) -> tuple[Mapping[str, str], Program]:
        reasons = place(baseline, target, kept).float_reasons
        return reasons, Pipeline((Quantize(data, target=target.name, keep_float=kept),))(baseline)

    return quantize


def dynamic_int8(baseline: Program) -> Quantization:
    """Return the recipe "int8-dynamic": linears, with ranges taken anew on every run."""

    def quantize(kept: Mapping[str, str]) -> tuple[Mapping[str, str], Program]:
        return dynamic_float_reasons(baseline, kept), Pipeline((QuantizeDynamic(kept),))(baseline)

    return quantize
