"""What compile() ends with: the proved Program of one recipe, or of the best of several ways to quantize.

Each function cleans the captured Program up itself, so that it can let go of it: when files are timed, runtimes hold
all weights beside what is still in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxopt.choose import (
    AT_ONCE,
    MARGIN,
    SAMPLES,
    USABLE,
    Candidate,
    choose,
    explain,
    fast_but_inexact,
    try_candidates,
    why_float,
)
from fxopt.data import CalibrationData, Data, calibration_inputs, first_samples, split_items
from fxopt.errors import ValidationError
from fxopt.fidelity import hold_out
from fxopt.graph.cost import tensors
from fxopt.graph.memory import release_memory
from fxopt.graph.pipeline import Pass, Pipeline
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes
from fxopt.job import Job, Proved, prove, prove_quantized, unproved
from fxopt.layers import LayerRow, Layers, few_samples
from fxopt.limits import Budget, Drop
from fxopt.passes.cleanup import CLEANUP
from fxopt.passes.quantize import place
from fxopt.recipes import (
    DATA_FREE,
    Quantization,
    data_free_int8,
    dynamic_int8,
    dynamic_nodes,
    exact_program,
    quantizations,
)
from fxopt.reference import Reference, reference_of
from fxopt.timed_placement import WORTH_A_TRY, NodeTime, compute_nodes, node_times, slower_in_integers
from fxopt.within_budget import within_budget

Source = Data | str | Path
DYNAMIC_SAVES = 0.75  # of the float time of a linear, at best: its weights are a quarter of the bytes


@dataclass(frozen=True)
class Outcome:
    """What was compiled: the proved Program, the float model it is compared with, what was tried and what chosen.

    `notes` say why; `layers` are empty for a recipe that does not quantize.
    """

    proved: Proved
    reference: Reference
    candidates: tuple[Candidate, ...] = ()
    chosen: Candidate | None = None
    notes: tuple[str, ...] = ()
    layers: tuple[LayerRow, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether the result is the float model itself."""
        return self.reference.path == self.proved.path


def float_model(job: Job, program: Program, inputs: tuple[Tensor, ...]) -> Outcome:
    """Compile to a float file."""
    return _float(job, cleaned(job, program), inputs)


def by_passes(job: Job, recipe: Pipeline | Sequence[Pass], program: Program, inputs: tuple[Tensor, ...]) -> Outcome:
    """Compile with the user's own passes."""
    with job.stage("passes"):
        result = (recipe if isinstance(recipe, Pipeline) else Pipeline(tuple(recipe)))(program)
    return Outcome(prove(job, "custom", result, inputs), reference_of(job, cleaned(job, program), inputs))


def one_way(
    job: Job, recipe: str, program: Program, source: Source | None, inputs: tuple[Tensor, ...], timed: bool
) -> Outcome:
    """Compile with a named recipe that quantizes, in the one way or the usual way it has."""
    baseline = cleaned(job, program)
    reference = reference_of(job, baseline, inputs)
    data = None if source is None else CalibrationData(source, baseline, job.calibration_item)
    if recipe == DATA_FREE:
        with job.stage("quantize"):
            way = data_free_int8(program, baseline, job.target)
    else:
        _, way = next(_ways(job, recipe, baseline, data))
    proved = prove_quantized(job, "quantized", way, inputs)
    sample = None if data is None or recipe == DATA_FREE else few_samples(data.source, baseline)
    layers = Layers(job, baseline, reference.path, inputs if timed else None, sample)
    return Outcome(proved, reference, layers=layers.rows(proved, exact_program(way, baseline)))


def best_way(job: Job, program: Program, source: Source, inputs: tuple[Tensor, ...]) -> Outcome:
    """Compile to int8 in every way there is, and keep what is best when timed; that may be the float model.

    Where all that is fast is too inexact to be of use, more is left float until it is of use.
    """
    tried = _try_all(job, program, source, inputs)
    release_memory()
    with job.stage("measure"):
        files = {name: proved.path for name, proved in tried.proved.items()}
        candidates = tuple(try_candidates(files, tried.reference.path, inputs, tried.samples, job.target.session))
    best = choose(candidates)
    notes = (*explain(candidates, best), *tried.notes)
    if best is not None:
        return Outcome(tried.proved[best.name], tried.reference, candidates, best, notes, tried.rows[best.name])
    integer = {name for proved in tried.proved.values() for name in integer_nodes(proved.program)}
    reasons = {**tried.float_reasons, **dict.fromkeys(integer, f"of all files, {why_float(candidates)}")}
    del tried
    if fast_but_inexact(candidates):
        searched = best_within(job, program, source, inputs, Budget(Drop("sqnr", USABLE), None))
        notes += searched.notes
        if not searched.is_float:
            return replace(searched, notes=notes)
    return _float(job, cleaned(job, program), inputs, candidates, notes, reasons)


@dataclass
class _Tried:
    """The proved candidates and their layers, by name, the float model, and the samples to compare them on.

    - `notes` tell which ones are not proved: others may be, and one failure does not end the compilation.
    - `float_reasons`: why the nodes of candidates without any integers are float; such candidates are the float model.

    It outlives the float Program, whose weights must not be in memory when files are timed: nothing here holds that.
    """

    reference: Reference
    samples: list[tuple[Tensor, ...]]
    proved: dict[str, Proved] = field(default_factory=dict)
    rows: dict[str, tuple[LayerRow, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    float_reasons: dict[str, str] = field(default_factory=dict)


def _try(
    tried: _Tried,
    name: str,
    way: Quantization,
    layers: Layers,
    inputs: tuple[Tensor, ...],
    kept: Mapping[str, str] | None = None,
) -> Proved | None:
    """Prove a candidate; None, with a note, if that fails or it is a float model."""
    try:
        proved = prove_quantized(layers.job, name, way, inputs, kept)
    except ValidationError as error:
        tried.notes.append(unproved(name, error))
        return None
    if not _has_integers(proved.program):
        tried.notes.append(f"{name} is out: it finds nothing to quantize")
        tried.float_reasons |= proved.float_reasons
        return None
    tried.proved[name] = proved
    tried.rows[name] = layers.rows(proved, exact_program(way, layers.baseline))
    return proved


def _has_integers(program: Program) -> bool:
    """Say whether anything is computed or stored as 8 bits or fewer."""
    return bool(integer_nodes(program)) or any(
        value.dtype in (torch.int8, torch.uint8) for value in tensors(program).values()
    )


def _try_all(job: Job, program: Program, source: Source, inputs: tuple[Tensor, ...]) -> _Tried:
    """Prove every candidate."""
    baseline = cleaned(job, program)
    reference = reference_of(job, baseline, inputs)
    job.profile(reference.path, inputs)  # before there are integer Programs beside it
    data = CalibrationData(source, baseline, job.calibration_item)
    layers = Layers(job, baseline, reference.path, inputs, few_samples(data.source, baseline))
    items = first_samples(calibration_inputs(data.source, baseline), SAMPLES)
    tried = _Tried(reference, split_items(items, baseline, AT_ONCE))
    for name, way in _ways(job, "int8", baseline, data):
        proved = _try(tried, name, way, layers, inputs)
        losers = _losers(job, proved, baseline, reference, inputs) if name == "static" and proved is not None else {}
        if proved is not None and losers:
            _try(tried, "timed", way, layers, inputs, {**proved.kept, **losers})
        del way, proved
    if "mixed" not in tried.proved and _dynamic_may_do(job, tried.proved.get("static"), baseline, reference, inputs):
        with job.stage("quantize"):
            dynamic = dynamic_int8(baseline, job.target, data)
        _try(tried, "dynamic", dynamic, layers, inputs)
    return tried


def best_within(job: Job, program: Program, source: Source, inputs: tuple[Tensor, ...], budget: Budget) -> Outcome:
    """Compile to the best int8 model within a budget, or to float where only that is within it."""
    baseline = cleaned(job, program)
    reference = reference_of(job, baseline, inputs)
    float_profile = job.profile(reference.path, inputs)  # before there are integer Programs beside it
    data = CalibrationData(source, baseline, job.calibration_item)
    rest, judged = hold_out(data)
    ways = dict(_ways(job, "int8", baseline, rest))
    tried, notes = {}, []
    for name in list(ways):
        try:
            tried[name] = prove_quantized(job, name, ways[name], inputs)
        except ValidationError as error:  # another way may be
            notes.append(unproved(name, error))
            del ways[name]
            if not ways:
                raise
    found = within_budget(job, budget, ways, tried, reference, float_profile, inputs, judged)
    if found.proved is None or found.chosen is None:
        return _float(job, baseline, inputs, found.candidates, (found.note, *notes))
    layers = Layers(job, baseline, reference.path, inputs, few_samples(data.source, baseline))
    rows = layers.rows(found.proved, exact_program(_way_of(found.chosen.name, ways), baseline))
    return Outcome(found.proved, reference, found.candidates, found.chosen, (found.note, *notes), rows)


def _ways(job: Job, recipe: str, baseline: Program, data: Iterable[Any] | None) -> Iterator[tuple[str, Quantization]]:
    """Yield the ways to quantize, see quantizations(); what is searched for each counts as quantizing."""
    ways = quantizations(recipe, baseline, job.target, data)
    while True:
        with job.stage("quantize"):
            found = next(ways, None)
        if found is None:
            return
        yield found
        del found  # the next one has weights of its own
        release_memory()


def cleaned(job: Job, program: Program) -> Program:
    """Return the Program after CLEANUP."""
    with job.stage("cleanup"):
        return Pipeline(tuple(CLEANUP))(program)


def _float(
    job: Job,
    baseline: Program,
    inputs: tuple[Tensor, ...],
    candidates: tuple[Candidate, ...] = (),
    notes: tuple[str, ...] = (),
    reasons: Mapping[str, str] | None = None,
) -> Outcome:
    """Prove the float model: as what was asked for, or because no candidate is better, with layers that say so."""
    proved = prove(job, "float", baseline, inputs, reasons)
    reference = reference_of(job, baseline, inputs, proved)
    rows = Layers(job, baseline, reference.path, inputs, None).rows(proved, baseline) if candidates or notes else ()
    return Outcome(proved, reference, candidates, None, notes, rows)


def _way_of(candidate: str, ways: Mapping[str, Quantization]) -> Quantization:
    """Return the way that a candidate was quantized in; those that are not named after one come from the first."""
    return ways.get(candidate.partition("-")[0], next(iter(ways.values())))


def _losers(
    job: Job, static: Proved, baseline: Program, reference: Reference, inputs: tuple[Tensor, ...]
) -> Mapping[str, str]:
    """Return the nodes that profiles show to be slower in integers, with reasons, if that saves enough for a trial."""
    profiles = job.profile(reference.path, inputs), job.profile(static.path, inputs, job.target.session)
    with job.stage("measure"):
        placement = place(baseline, job.target, static.kept)
        losers = slower_in_integers(baseline, placement, node_times(baseline, *profiles))
    worth_it = losers.saving >= WORTH_A_TRY and not losers.reasons.keys() >= compute_nodes(placement)
    return losers.reasons if worth_it else {}


def _dynamic_may_do(
    job: Job, static: Proved | None, baseline: Program, reference: Reference, inputs: tuple[Tensor, ...]
) -> bool:
    """Say whether dynamic ranges of the linears alone may be about as fast as all that can be in integers.

    They are more exact, so that they are then the better choice: the convolutions stay float.
    """
    profile = job.profile(reference.path, inputs)
    whole = sum(kernel.seconds for kernel in profile)
    times = node_times(baseline, profile, [])
    layers = (times.get(name, NodeTime(None, None)) for name in dynamic_nodes(baseline, job.target))
    saved = DYNAMIC_SAVES * sum(time.float_seconds or 0.0 for time in layers)
    if saved <= WORTH_A_TRY * whole or static is None:
        return saved > WORTH_A_TRY * whole
    integer = sum(kernel.seconds for kernel in job.profile(static.path, inputs, job.target.session))
    return whole - saved < integer * MARGIN
