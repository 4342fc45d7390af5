"""The named recipes of compile(). One that quantizes is one or more ways of making a quantized Program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fxopt.data import calibration_inputs, first_samples, split_items
from fxopt.graph.cost import macs_by_node
from fxopt.graph.interpret import relative_noise
from fxopt.graph.memory import release_memory
from fxopt.graph.padding import run_without_padding
from fxopt.graph.pipeline import Pass, Pipeline
from fxopt.graph.program import Program
from fxopt.passes.quantize import (
    EqualizeLayers,
    Gptq,
    Quantize,
    QuantizeDataFree,
    QuantizeDynamic,
    QuantizeEmbeddings,
    QuantizeWeights,
    SmoothQuant,
    place,
)
from fxopt.passes.quantize.batch_norm_statistics import batch_norm_statistics, rescaled
from fxopt.passes.quantize.calibrate import KnownRanges
from fxopt.passes.quantize.concatenations import keep_apart
from fxopt.passes.quantize.equalize_layers import equalizing_scales
from fxopt.passes.quantize.expected_noise import expected_noise
from fxopt.passes.quantize.improve import WORTH_IT, improve
from fxopt.passes.quantize.moment_rules import moments_of
from fxopt.passes.quantize.observers import Observer
from fxopt.passes.quantize.placement import Placement
from fxopt.passes.quantize.quantize_dynamic import dynamic_float_reasons
from fxopt.passes.quantize.quantize_embeddings import embedding_float_reasons
from fxopt.passes.quantize.quantize_weights import weight_float_reasons
from fxopt.passes.quantize.rounded import JUDGED, LARGEST, apart, worth_it
from fxopt.target import Target

LINEAR, LSTM = torch.ops.aten.linear.default, torch.ops.aten.lstm.input
# Of the nodes to keep float, with reasons: why each float node stays float, and the quantized Program.
Quantization = Callable[[Mapping[str, str]], tuple[Mapping[str, str], Program]]

WEIGHT_BITS = {"int8-weights": 8, "int4-weights": 4}
DATA_FREE = "int8-data-free"
PRUNE, PRUNE_INT8 = "prune", "prune-int8"
NAMES = ("float", "int8", "int8-static", "int8-dynamic", DATA_FREE, *WEIGHT_BITS, PRUNE, PRUNE_INT8)
NEED_DATA = ("int8", "int8-static", PRUNE_INT8)
# Dynamic ranges are worth a try where at least this share of the multiply-accumulates can have them.
DYNAMIC_SHARE = 0.3
# Smoothing is worth its trials where linears do at least this share: the classifier of a convolutional net gained
# nothing by it, and can be most of the weights.
LINEAR_SHARE = 0.05
# What is tried before the ranges are taken is tried on so many samples, few at once: that memory comes on top.
SAMPLES, AT_ONCE = 16, 4


def quantizations(
    recipe: str, baseline: Program, target: Target, data: Iterable[Any] | None
) -> Iterator[tuple[str, Quantization]]:
    """Yield the ways that a recipe has of quantizing a Program, with their names, the usual one first.

    Each is made when it is asked for: it can hold all weights once more.
    """
    if recipe in WEIGHT_BITS:
        yield "weights", weights_only(baseline, WEIGHT_BITS[recipe], data)
    elif recipe == "int8-dynamic" or data is None:
        yield "dynamic", dynamic_int8(baseline, target, data)
    else:
        yield "static", static_int8(baseline, target, data)
        if recipe == "int8" and _dynamic_share(baseline, target) >= DYNAMIC_SHARE:
            yield "mixed", mixed_int8(baseline, target, data)


def data_free_int8(captured: Program, baseline: Program, target: Target) -> Quantization:
    """Quantize with static ranges that the batch norms of the captured Program tell. Raises PassError without any.

    Layers are equalized if that is expected to leave less noise.
    """
    statistics, equalized = batch_norm_statistics(captured, baseline), EqualizeLayers()(baseline)
    plain = QuantizeDataFree(moments_of(baseline, statistics), target.name)
    told = rescaled(statistics, equalizing_scales(baseline))
    other = QuantizeDataFree(moments_of(equalized, told), target.name)
    better = expected_noise(equalized, other) < WORTH_IT * expected_noise(baseline, plain)
    eased, step = (equalized, other) if better else (baseline, plain)

    def quantize(kept: Mapping[str, str]) -> tuple[Mapping[str, str], Program]:
        now = replace(step, keep_float=kept)
        return now.placement(eased).float_reasons, Pipeline((now,))(eased)

    return quantize


def static_int8(baseline: Program, target: Target, data: Iterable[Any]) -> Calibrated:
    """Quantize with calibrated ranges all that the target runs in integers."""
    few = _few(data, baseline)
    trial = Quantize(few, target=target.name, correct_bias=False)
    # EqualizeLayers is not among them: per-channel weights leave it little to win, and trained networks lost by it.
    smooth = _linear_share(baseline) >= LINEAR_SHARE
    eased = improve(baseline, _smoothings(few), trial.calibrated, _tensors(few, baseline)) if smooth else baseline
    return Calibrated(eased, target, data, _best_observer(eased, trial, few))


@dataclass(frozen=True)
class Calibrated:
    """Quantize an eased float Program with calibrated ranges, and the nodes of `dynamic` with ranges of every run."""

    eased: Program = field(repr=False)
    target: Target
    data: Iterable[Any] = field(repr=False)
    observer: Observer = "mse"
    dynamic: Mapping[str, str] = field(default_factory=dict)
    known: KnownRanges = field(default_factory=KnownRanges, repr=False)

    def __call__(self, kept: Mapping[str, str]) -> tuple[Mapping[str, str], Program]:
        """Return why each float node stays float, and the quantized Program."""
        again = {name: reason for name, reason in kept.items() if name in self.dynamic}
        result = Pipeline((self._quantize({**kept, **self.dynamic}),))(self.eased)
        if self.dynamic:
            result = with_dynamic_ranges(result, self.eased, QuantizeDynamic(again, self.target.name), self.data)
        static = self.placement(kept).float_reasons
        reasons = {name: reason for name, reason in static.items() if name not in self.dynamic or name in kept}
        if self.dynamic:
            reasons |= dynamic_float_reasons(self.eased, kept, self.target)
        return _with_embeddings(reasons, result, kept)

    def _quantize(self, kept: Mapping[str, str]) -> Quantize:
        return Quantize(
            self.data,
            self.target.name,
            self.observer,
            keep_float=kept,
            correct_bias=True,
            round_weights=True,
            known=self.known,
        )

    def placement(self, kept: Mapping[str, str]) -> Placement:
        """Return what becomes integer with calibrated ranges, once there are any."""
        apart = keep_apart(self.eased, self.target, {**kept, **self.dynamic}, self.known.extents)
        return place(self.eased, self.target, apart)

    def calibrated(self, kept: Mapping[str, str]) -> Program:
        """Return the Program with a `fake_quantize` for each value that gets a calibrated range."""
        return self._quantize({**kept, **self.dynamic}).calibrated(self.eased)

    def with_dynamic(self, kept: Mapping[str, str]) -> Program | None:
        """Return the Program with the dynamic nodes alone in integers; None if there are none."""
        again = {name: reason for name, reason in kept.items() if name in self.dynamic}
        return QuantizeDynamic(again, self.target.name)(self.eased) if self.dynamic else None


@dataclass(frozen=True)
class Dynamic:
    """Quantize linears and LSTMs of an eased float Program with ranges of every run, and the tables of embeddings."""

    eased: Program = field(repr=False)
    target: Target
    data: Iterable[Any] | None = field(default=None, repr=False)

    def __call__(self, kept: Mapping[str, str]) -> tuple[Mapping[str, str], Program]:
        """Return why each float node stays float, and the quantized Program."""
        reasons = dynamic_float_reasons(self.eased, kept, self.target)
        step = QuantizeDynamic(kept, self.target.name)
        return _with_embeddings(reasons, with_dynamic_ranges(self.eased, self.eased, step, self.data), kept)


def dynamic_int8(baseline: Program, target: Target, data: Iterable[Any] | None = None) -> Dynamic:
    """Quantize linears and LSTMs, with ranges taken anew on every run, and the tables of embeddings."""
    if data is None or _linear_share(baseline) < LINEAR_SHARE:
        return Dynamic(baseline, target, data)
    return Dynamic(_eased_for_dynamic(baseline, target, _few(data, baseline)), target, data)


def with_dynamic_ranges(program: Program, exact: Program, step: QuantizeDynamic, data: Iterable[Any] | None) -> Program:
    """Quantize linears with dynamic ranges, their weights rounded by data if that takes noise out of the outputs.

    `exact` is the float Program, `program` the same with other layers quantized.
    """
    plain = Pipeline((step,))(program)
    fitted, others = apart(data, program) if data is not None else ([], [])
    if not fitted:
        return plain
    judged = first_samples(others, JUDGED)
    expected = run_without_padding(exact.eval(), judged)

    def noise(found: Program) -> float:
        return relative_noise(expected, run_without_padding(found.eval(), judged))

    rounded = Pipeline((replace(step, data=fitted, largest=LARGEST),))(program)
    return rounded if noise(rounded) < worth_it(fitted, others) * noise(plain) else plain


def exact_program(way: Quantization, baseline: Program) -> Program:
    """Return the float Program whose values those inside a quantized one stand for: scales may have moved in it."""
    return way.eased if isinstance(way, (Calibrated, Dynamic)) else baseline


def _with_embeddings(
    reasons: Mapping[str, str], layers: Program, kept: Mapping[str, str]
) -> tuple[Mapping[str, str], Program]:
    """Quantize the tables of embeddings of a Program whose layers are quantized."""
    return {**reasons, **embedding_float_reasons(layers, kept)}, Pipeline((QuantizeEmbeddings(kept),))(layers)


def _few(data: Iterable[Any], program: Program) -> list[Any]:
    return split_items(first_samples(data, SAMPLES), program, AT_ONCE)


def _eased_for_dynamic(baseline: Program, target: Target, few: list[Any]) -> Program:
    return improve(
        baseline, _smoothings(few, dynamic=True), QuantizeDynamic(target=target.name), _tensors(few, baseline)
    )


def _smoothings(few: list[Any], dynamic: bool = False) -> tuple[SmoothQuant, ...]:
    return tuple(SmoothQuant(few, dynamic=dynamic, multiply=multiply, known={}) for multiply in (False, True))


def _best_observer(program: Program, quantize: Quantize, few: Sequence[Any]) -> Observer:
    """Return the observer whose ranges err less on samples that they were not taken from."""
    half = (len(few) + 1) // 2
    seen, judged = few[:half], _tensors(few[half:] or few, program)
    exact = run_without_padding(program.eval(), judged)

    def noise(observer: Observer, known: KnownRanges) -> float:
        found = replace(quantize, data=seen, observer=observer, known=known).calibrated(program).eval()
        result = relative_noise(exact, run_without_padding(found, judged))
        del found
        release_memory()
        return result

    # Clipping outliers helps most convolutional nets, and harms where outliers carry the meaning, as in transformers.
    known = KnownRanges()
    clipped = noise("mse", known)
    return "mse" if clipped <= noise("minmax", known.whole()) else "minmax"


def _tensors(items: Iterable[Any], program: Program) -> list[tuple[Tensor, ...]]:
    return list(calibration_inputs(items, program))


def weights_only(baseline: Program, bits: int, data: Iterable[Any] | None) -> Quantization:
    """Quantize the weights of linears in groups, fitted to data if there is any, and the tables of embeddings."""

    def quantize(kept: Mapping[str, str]) -> tuple[Mapping[str, str], Program]:
        step: Pass = QuantizeWeights(bits, keep_float=kept) if data is None else Gptq(data, bits, keep_float=kept)
        layers = Pipeline((step,))(baseline)
        return _with_embeddings(weight_float_reasons(baseline, bits, keep_float=kept), layers, kept)

    return quantize


def mixed_int8(baseline: Program, target: Target, data: Iterable[Any]) -> Calibrated:
    """Quantize linears and LSTMs with ranges taken on every run, and with calibrated ranges the rest that can be."""
    dynamic = dict.fromkeys(dynamic_nodes(baseline, target), "its range is taken on every run")
    eased = _eased_for_dynamic(baseline, target, _few(data, baseline))
    return Calibrated(eased, target, data, dynamic=dynamic)


def dynamic_nodes(baseline: Program, target: Target) -> list[str]:
    """List the layers that can have dynamic ranges, by the names they have in the float Program."""
    reasons = dynamic_float_reasons(baseline, target=target)
    return [node.name for node in baseline.graph.nodes if node.target in (LINEAR, LSTM) and node.name not in reasons]


def _linear_share(baseline: Program) -> float:
    """Return the share of the multiply-accumulates in linears."""
    counts, linears = macs_by_node(baseline), baseline.graph.find_nodes(op="call_function", target=LINEAR)
    return sum(counts.get(node.name, 0) for node in linears) / max(sum(counts.values()), 1)


def _dynamic_share(baseline: Program, target: Target) -> float:
    """Return the share of the multiply-accumulates in layers that can have dynamic ranges."""
    counts = macs_by_node(baseline)
    return sum(counts.get(name, 0) for name in dynamic_nodes(baseline, target)) / max(sum(counts.values()), 1)
