"""compile(): capture, passes, emission, proof and report, in one call.

The output file appears only after the proof: it is written beside its place, validated, and moved there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fxopt.check_capture import check_capture
from fxopt.data import Data
from fxopt.errors import ExportError, ModelError, TargetError
from fxopt.export.measure import measure
from fxopt.export.model_file import OnnxModel
from fxopt.export.validate import Validation
from fxopt.graph.capture import Dynamic, call_of, capture
from fxopt.graph.example import example_of
from fxopt.graph.memory import quick_collections
from fxopt.graph.pipeline import Pass, Pipeline
from fxopt.graph.program import Program
from fxopt.job import Job, Progress, silent
from fxopt.limits import Budget, read_budget
from fxopt.onnx_callable import OnnxCallable
from fxopt.outcome import Outcome, best_way, best_within, by_passes, float_model, one_way
from fxopt.pruned import SHARE, Pruning, pruned_model
from fxopt.recipes import NAMES, NEED_DATA, PRUNE, PRUNE_INT8
from fxopt.reference import figures_of
from fxopt.report import Report
from fxopt.target import OPSETS, TARGETS, Target, find_target

Quantizing = Literal["int8", "int8-static", "int8-dynamic", "int8-data-free", "int8-weights", "int4-weights"]
Name = Literal["float", Quantizing, "prune", "prune-int8"]
Recipe = Name | Pipeline | Sequence[Pass]


@dataclass(frozen=True)
class Result:
    """What compile() returns: the file (None if no output was asked for), the Program behind it, and the findings."""

    output: Path | None
    program: Program
    report: Report
    validation: Validation
    model: OnnxModel


@quick_collections()
def compile(
    model: nn.Module | Program,
    example_inputs: Any = None,
    *,
    recipe: Recipe = "int8",
    calibration: Data | str | Path | None = None,
    evaluate: Callable[[Callable[..., Any]], float] | None = None,
    target: str | Target = "auto",
    dynamic: Dynamic = None,
    output: str | Path | None = None,
    opset: int | None = None,
    max_drop: float | str | None = None,
    max_latency: float | str | None = None,
    macs: float | None = None,
    measure: bool = True,
    name: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Compile a model to a proved ONNX file.

    - `model`: an nn.Module or a Program. `example_inputs`: a Tensor, a tuple (positional) or a dict (keywords).
    - `recipe`: "int8" (needs `calibration`): static ranges, dynamic ones for linears, or float, whichever is best when
      timed here; "int8-static" or "int8-dynamic" (linears only; needs no data) without that choice; "int8-data-free"
      (static ranges from batch norms; reads no data); "int8-weights" or "int4-weights" (linears compute in float;
      fitted to `calibration` if there is any; embeddings are int8 tables); "prune" (see RemoveChannels; with
      `calibration` also RepairWeights) or "prune-int8" (the rest as "int8" does), unless dense is faster when timed
      here; "float"; a Pipeline or a list of passes.
    - `calibration`: an iterable of items shaped like the example inputs, a DataLoader, .npz/.npy or `module:function`.
    - `evaluate`: gets something callable like the model and returns a figure, higher is better; run on both.
    - `target`: a row of fxopt.TARGETS ("x86", "x86-amx", "x86-avx2", "arm64", "portable"), or "auto" for this machine.
    - `dynamic`: see capture(). `output`: where to write the ONNX file; nothing appears there unless it is proved.
    - `max_drop`, `max_latency`: bounds for recipe "int8". With max_drop, the fastest model that loses no more: a
      number, in units of `evaluate`, or of the outputs against float's "sqnr=30" (dB, at least), "kl=0.01" (nats, at
      most) or "agreement=0.99" (of argmax, at least), see limits.Drop. With max_latency alone, the most exact model
      that is as fast: a share of the float model's latency (0.5), or a time ("3ms"). With both, the fastest within
      both. What judges is the first 32 calibration samples, held out of calibration if there are 128 or more.
    - `macs`: the share of multiply-accumulates that "prune" leaves (0.5); or give `max_latency`, and it is searched.
    - `measure`: whether to time the result against the float model (False when compiling for another machine; then
      "int8" is "int8-static").
    - `progress`: called with the name of each stage as it starts, and with (name, done, total) as it goes on.

    Raises a FxoptError: CaptureError, DataError, PassError, ExportError, TargetError, ValidationError or BudgetError.
    """
    destination = _writable(output)
    filename = destination.name if destination else "model.onnx"
    job = Job(resolve_target(target), opset, evaluate, progress or silent, filename)
    budget = read_budget(max_drop, max_latency, evaluated=evaluate is not None)
    _check_choices(recipe, opset, calibration, budget, measure)
    pruning = _pruning(recipe, macs, budget)
    with job.stage("capture"):
        program, inputs = _program(model, example_inputs, dynamic)
    with tempfile.TemporaryDirectory(prefix=".fxopt-", dir=destination.parent if destination else None) as folder:
        job.folder = Path(folder)
        outcome = _compile(job, recipe, program, calibration, inputs, measure, budget, pruning)
        del program
        report = _report(job, outcome, inputs, _title(model, name), recipe, measure)
        proved = outcome.proved
        if destination is not None:
            _move(proved.path, destination)
    return Result(destination, proved.program, report, proved.validation, proved.model)


def resolve_target(target: str | Target) -> Target:
    """Return a row of TARGETS; "auto" is the one of this machine. Raises TargetError for a Target that is no row."""
    found = find_target(target)
    if TARGETS.get(found.name) is not found:  # passes look targets up by name
        raise TargetError(
            f"This Target '{found.name}' is not fxopt.TARGETS['{found.name}']. Give it a name of its own and add it: "
            "fxopt.TARGETS['mine'] = dataclasses.replace(target, name='mine'); then pass target='mine'."
        )
    return found


def _check_choices(recipe: Recipe, opset: int | None, calibration: Any, budget: Budget | None, measure: bool) -> None:
    """Raise early: capture and calibration may take minutes."""
    prunes = recipe == PRUNE and budget is not None and budget.drop is None
    if budget is not None and ((recipe != "int8" and not prunes) or not measure):
        raise ModelError(
            f"{budget}: only recipe='int8', with measure=True, chooses among models that it has timed; 'prune' takes "
            "max_latency alone."
        )
    if isinstance(recipe, str) and recipe not in NAMES:
        hint = f"Choose one of {', '.join(NAMES)}, or pass a Pipeline or a list of passes."
        raise ModelError(f"There is no recipe '{recipe}'. {hint}")
    if recipe in NEED_DATA and calibration is None:
        raise ModelError(
            f"recipe='{recipe}' needs calibration data: pass calibration=[...] with items shaped like example_inputs. "
            "'int8-dynamic' and, for a network with batch norms, 'int8-data-free' need none."
        )
    if opset is not None and opset not in OPSETS:
        raise TargetError(f"Opset {opset} is not supported; choose {OPSETS.start} to {OPSETS.stop - 1}.")


def _pruning(recipe: Recipe, macs: float | None, budget: Budget | None) -> Pruning | None:
    """Return what a recipe that prunes should leave, None for another one."""
    if recipe not in (PRUNE, PRUNE_INT8):
        if macs is not None:
            raise ModelError(f"macs={macs}: only the recipes '{PRUNE}' and '{PRUNE_INT8}' remove channels.")
        return None
    if macs is not None and budget is not None:
        raise ModelError(f"macs={macs} and {budget} both say how far to prune: give one of them.")
    if macs is not None and not 0 < macs < 1:
        raise ModelError(f"macs={macs} is the share of multiply-accumulates to leave: a number between 0 and 1.")
    return Pruning(SHARE if macs is None else macs, budget.latency if budget is not None else None)


def _program(model: nn.Module | Program, example_inputs: Any, dynamic: Dynamic) -> tuple[Program, tuple[Tensor, ...]]:
    if isinstance(model, Program):
        if example_inputs is None:
            return model, example_of(model)
        args, kwargs = call_of(example_inputs)
        return model, model.flatten(*args, **kwargs)
    if example_inputs is None:
        raise ModelError("compile() needs example_inputs for an nn.Module: a Tensor, a tuple or a dict.")
    program = capture(model, example_inputs, dynamic=dynamic)
    args, kwargs = call_of(example_inputs)
    inputs = program.flatten(*args, **kwargs)
    check_capture(model, program, inputs)
    return program, inputs


def _compile(
    job: Job,
    recipe: Recipe,
    program: Program,
    source: Data | str | Path | None,
    inputs: tuple[Tensor, ...],
    timed: bool,
    budget: Budget | None,
    pruning: Pruning | None,
) -> Outcome:
    if recipe == "float":
        return float_model(job, program, inputs)
    if not isinstance(recipe, str):
        return by_passes(job, recipe, program, inputs)
    if pruning is not None:
        return pruned_model(job, recipe, program, source, inputs, pruning, timed)
    if recipe != "int8" or not timed or source is None:
        return one_way(job, recipe, program, source, inputs, timed)
    if budget is None:
        return best_way(job, program, source, inputs)
    return best_within(job, program, source, inputs, budget)


def _report(job: Job, outcome: Outcome, inputs: tuple[Tensor, ...], title: str, recipe: Recipe, timed: bool) -> Report:
    proved, reference = outcome.proved, outcome.reference
    latency = outcome.chosen.latency if outcome.chosen else None
    if timed and latency is None:
        with job.stage("measure"):
            other = None if outcome.is_float else reference.path
            latency = measure(proved.path, inputs, baseline=other, settings=job.target.session)
    metrics = _metrics(job, outcome)
    census, validation = proved.validation.census, proved.validation
    assert census is not None
    return Report(
        model=title,
        recipe=recipe if isinstance(recipe, str) else "custom",
        target=job.target.name,
        opset=proved.model.opset,
        inputs=reference.inputs,
        outputs=reference.outputs,
        baseline=replace(reference.figures, metric=metrics[0]),
        result=replace(figures_of(proved.model, proved.program), metric=metrics[1]),
        differences=reference.differences(proved.path, inputs),
        proof=validation.outputs,
        census=census,
        is_float=outcome.is_float,
        candidates=outcome.candidates,
        layers=outcome.layers,
        latency=latency,
        float_reasons=proved.float_reasons,
        delegated=proved.model.delegated,
        seconds=dict(job.seconds),
        history=proved.program.history,
        notes=(*outcome.notes, *proved.program.notes, *validation.notes),
    )


def _metrics(job: Job, outcome: Outcome) -> tuple[float | None, float | None]:
    if job.evaluate is None:
        return None, None
    proved = outcome.proved
    with job.stage("evaluate"):
        result = float(job.evaluate(OnnxCallable(proved.path, proved.program)))
        if outcome.is_float:
            return result, result
        return float(job.evaluate(OnnxCallable(outcome.reference.path, proved.program))), result


def _title(model: nn.Module | Program, name: str | None) -> str:
    return name or (type(model).__name__ if isinstance(model, nn.Module) else "Program")


def _writable(output: str | Path | None) -> Path | None:
    if output is None:
        return None
    path = Path(output)
    if path.is_dir():
        raise ExportError(f"{path} is a folder; name the file, for example {path / 'model.onnx'}.")
    if not path.parent.is_dir():
        raise ExportError(f"Cannot write {path}: there is no folder {path.parent}. Create it first.")
    if not os.access(path.parent, os.W_OK):
        raise ExportError(f"Cannot write {path}: the folder {path.parent} is not writable.")
    return path


def _move(source: Path, destination: Path) -> None:
    """Move the proved file into place, after its data file, whose name the model holds."""
    data = source.with_name(f"{source.name}.data")
    if data.exists():
        os.replace(data, destination.with_name(data.name))
    os.replace(source, destination)


__all__ = ["OnnxCallable", "Result", "check_capture", "compile", "example_of", "resolve_target"]
