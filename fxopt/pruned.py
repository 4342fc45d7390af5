"""The recipes that remove channels: compile() ends with a smaller model, timed against the dense one.

Where there is calibration data, the weights that are left make up for what is gone. What is not faster than the dense
file is not handed over: the model stays dense then, and a note says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from fxopt.choose import AT_ONCE, NOISE, SAMPLES, USABLE, Candidate, try_candidates
from fxopt.data import calibration_inputs, first_samples, load_data, split_items
from fxopt.export.measure import Measurement, measure
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.memory import release_memory
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.job import Job, prove
from fxopt.limits import Latency
from fxopt.outcome import Outcome, Source, best_way, cleaned, float_model, one_way
from fxopt.passes.prune import RemoveChannels, RepairWeights
from fxopt.prune_to_latency import TOLERANCE, search_latency
from fxopt.recipes import PRUNE, PRUNE_INT8
from fxopt.reference import Reference, reference_of

SHARE = 0.5  # of the multiply-accumulates, where nothing else is asked for


@dataclass(frozen=True)
class Pruning:
    """What is to be left: a share of the multiply-accumulates, or of the latency (then `macs` is searched for)."""

    macs: float = SHARE
    latency: Latency | None = None


def pruned_model(
    job: Job,
    recipe: str,
    program: Program,
    source: Source | None,
    inputs: tuple[Tensor, ...],
    pruning: Pruning,
    timed: bool,
) -> Outcome:
    """Compile to the model without channels, and with "prune-int8" that in integers; dense if that is not slower."""
    dense = cleaned(job, program)
    reference = reference_of(job, dense, inputs, name="dense")
    samples = [inputs] if source is None else _samples(source, dense)
    small = _smaller(job, dense, inputs, pruning, reference)
    if source is not None:
        with job.stage("repair"):
            small = RepairWeights(dense, load_data(source, dense) if isinstance(source, (str, Path)) else source)(small)
    del dense
    if recipe == PRUNE_INT8:
        assert source is not None
        made = best_way(job, small, source, inputs) if timed else one_way(job, "int8", small, source, inputs, timed)
        notes = tuple(f"After pruning, against the pruned float model: {note}" for note in made.notes)
        outcome = Outcome(made.proved, reference, notes=notes, layers=made.layers)
        name = PRUNE if made.is_float else PRUNE_INT8
    else:
        outcome, name = Outcome(prove(job, "pruned", small, inputs), reference), PRUNE
    del small
    release_memory()
    return _if_faster(job, name, outcome, program, inputs, samples) if timed else outcome


def _samples(source: Source, program: Program) -> list[tuple[Tensor, ...]]:
    return split_items(first_samples(calibration_inputs(source, program), SAMPLES), program, AT_ONCE)


def _smaller(job: Job, dense: Program, inputs: tuple[Tensor, ...], pruning: Pruning, reference: Reference) -> Program:
    """Remove channels until what was asked for is left."""
    remove = RemoveChannels(macs=pruning.macs, round_to=job.target.width_multiple, inputs=inputs)
    if pruning.latency is None:
        with job.stage("prune"):
            return Pipeline((remove,))(dense)

    def time(candidate: Program | None) -> Measurement:
        path = reference.path if candidate is None else job.path("candidate")
        if candidate is not None:
            to_onnx(candidate, path, target=job.target, opset=job.opset)
        baseline = None if candidate is None else reference.path
        return measure(path, inputs, baseline=baseline, settings=job.target.session)

    with job.stage("search"):
        whole = time(None).seconds
        aim = (1 - TOLERANCE) * pruning.latency.limit(whole) / whole  # at most the limit, within the tolerance
        found = search_latency(dense, aim, remove, time)
        return found.program.with_note(found.note)


def _if_faster(
    job: Job,
    name: str,
    outcome: Outcome,
    program: Program,
    inputs: tuple[Tensor, ...],
    samples: Sequence[tuple[Tensor, ...]],
) -> Outcome:
    """Time the result against the dense file, and return the dense model where the result is slower."""
    with job.stage("measure"):
        files, settings = {name: outcome.proved.path}, job.target.session
        (candidate,) = try_candidates(files, outcome.reference.path, inputs, samples, settings)
    notes = (*outcome.notes, _verdict(candidate))
    if candidate.speedup * NOISE >= 1:
        return replace(outcome, candidates=(candidate,), chosen=candidate, notes=notes)
    return replace(float_model(job, program, inputs), candidates=(candidate,), notes=notes)


def _verdict(candidate: Candidate) -> str:
    """Say what removal gained and what it cost."""
    tried = f"{candidate.name} is {candidate.speedup:.2f}x as fast as the dense model"
    if candidate.speedup * NOISE < 1:
        return f"{tried}: it is slower on this machine, so the model stays dense."
    cost = f"its outputs are {candidate.sqnr:.1f} dB from those of the dense model"
    advice = " (noise of more than a tenth of their power: train what is left before it is used)"
    return f"{tried}; {cost}{advice if candidate.sqnr < USABLE else ''}."
