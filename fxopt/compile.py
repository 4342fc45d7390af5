"""compile(): capture, passes, emission, proof and report, in one call.

The output file appears only after the proof: it is written beside its place, validated, and moved there.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fxopt.check_capture import check_capture
from fxopt.data import CalibrationData, Data
from fxopt.errors import ExportError, ModelError, TargetError
from fxopt.export.compare import OutputError, compare_outputs
from fxopt.export.measure import Measurement, measure
from fxopt.export.model_file import OnnxModel
from fxopt.export.session import Session
from fxopt.export.sweep import reference_outputs
from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import Validation, validate
from fxopt.graph.capture import Dynamic, call_of, capture
from fxopt.graph.cost import macs_per_sample, parameter_count
from fxopt.graph.memory import release_memory
from fxopt.graph.pipeline import Pass, Pipeline
from fxopt.graph.program import Program
from fxopt.passes.cleanup import CLEANUP
from fxopt.recipes import Quantization, dynamic_int8, static_int8
from fxopt.report import ModelFigures, Report
from fxopt.target import OPSETS, Target, find_target

Recipe = Literal["float", "int8", "int8-dynamic"] | Pipeline | Sequence[Pass]
RECIPES = ("float", "int8", "int8-dynamic")


class Progress(Protocol):
    """What is told how far a compilation is: the stage, and how many of its steps are done (total None: unknown)."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None, /) -> None:
        """Show it."""


def _silent(stage: str, done: int = 0, total: int | None = None) -> None:
    pass


@dataclass(frozen=True)
class Result:
    """What compile() returns: the file (None if no output was asked for), the Program behind it, and the findings."""

    output: Path | None
    program: Program
    report: Report
    validation: Validation
    model: OnnxModel


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
    measure: bool = True,
    name: str | None = None,
    progress: Progress | None = None,
) -> Result:
    """Compile a model to a proved ONNX file.

    - `model`: an nn.Module or a Program. `example_inputs`: a Tensor, a tuple (positional) or a dict (keywords).
    - `recipe`: "float", "int8" (static; needs `calibration`), "int8-dynamic" (linears, with ranges taken on every run;
      needs no data), a Pipeline or a list of passes.
    - `calibration`: an iterable of items shaped like the example inputs, a DataLoader, .npz/.npy or `module:function`.
    - `evaluate`: gets something callable like the model and returns a figure, higher is better; run on both.
    - `target`: "x86", "arm64", "portable", or "auto" for this machine. `dynamic`: see capture().
    - `output`: where to write the ONNX file; nothing appears there unless it is proved.
    - `measure`: whether to time the result against the float model (False when compiling for another machine).
    - `progress`: called with the name of each stage as it starts, and with (name, done, total) as it goes on.

    Raises a FxoptError: CaptureError, DataError, PassError, ExportError, TargetError or ValidationError.
    """
    destination = _writable(output)
    filename = destination.name if destination else "model.onnx"
    job = _Job(resolve_target(target), opset, evaluate, progress or _silent, filename)
    _check_choices(recipe, opset)
    if recipe == "int8" and calibration is None:
        raise ModelError(
            "recipe='int8' needs calibration data: pass calibration=[...] with items shaped like example_inputs."
        )
    with job.stage("capture"):
        program, inputs = _program(model, example_inputs, dynamic)
        if isinstance(model, nn.Module):
            check_capture(model, program, inputs)
    with job.stage("cleanup"):
        baseline = Pipeline(tuple(CLEANUP))(program)
    with tempfile.TemporaryDirectory(prefix=".fxopt-", dir=destination.parent if destination else None) as folder:
        compiled = _run_recipe(job, recipe, program, baseline, calibration, inputs, Path(folder))
        reference = _reference(job, compiled, baseline, inputs, Path(folder))
        del program, baseline  # runtimes now load both files, beside all that is still here
        report = _report(job, compiled, reference, inputs, _title(model, name), recipe, measure)
        if destination is not None:
            _move(compiled.path, destination)
    return Result(destination, compiled.program, report, compiled.validation, compiled.model)


def resolve_target(target: str | Target) -> Target:
    """Return a Target; "auto" is the one of this machine."""
    if target == "auto":
        machine = platform.machine().lower()
        return find_target(
            "x86" if machine in ("x86_64", "amd64") else "arm64" if machine in ("aarch64", "arm64") else "portable"
        )
    return find_target(target)


def _check_choices(recipe: Recipe, opset: int | None) -> None:
    """Raise early: capture and calibration may take minutes."""
    if isinstance(recipe, str) and recipe not in RECIPES:
        hint = f"Choose one of {', '.join(RECIPES)}, or pass a Pipeline or a list of passes."
        raise ModelError(f"There is no recipe '{recipe}'. {hint}")
    if opset is not None and opset not in OPSETS:
        raise TargetError(f"Opset {opset} is not supported; choose {OPSETS.start} to {OPSETS.stop - 1}.")


@dataclass
class _Job:
    """One compilation under way: its settings and the time each stage took."""

    target: Target
    opset: int | None
    evaluate: Callable[[Callable[..., Any]], float] | None
    progress: Progress
    filename: str
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress(name)
        start = time.perf_counter()
        yield
        release_memory()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def calibration_item(self, number: int, count: int | None) -> None:
        """Tell the user how far calibration is."""
        self.progress("quantize", number, count)


@dataclass(frozen=True)
class _Compiled:
    """An emitted and proved Program, in a temporary file."""

    program: Program
    model: OnnxModel
    path: Path
    validation: Validation
    float_reasons: Mapping[str, str]


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
    return program, program.flatten(*args, **kwargs)


def example_of(program: Program) -> tuple[Tensor, ...]:
    """Make example inputs from the specs: normal values for floats, 0 and 1 for integers; 2 for dynamic sizes."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for spec, node in zip(program.inputs, program.placeholders, strict=True):
        shape = [size if isinstance(size, int) else int(size.node.hint or 2) for size in node.meta["val"].shape]
        if spec.dtype.is_floating_point:
            result.append(torch.randn(shape, generator=generator).to(spec.dtype))
        else:
            result.append(torch.randint(0, 2, shape, generator=generator).to(spec.dtype))
    return tuple(result)


def _run_recipe(
    job: _Job,
    recipe: Recipe,
    program: Program,
    baseline: Program,
    calibration: Data | str | Path | None,
    inputs: tuple[Tensor, ...],
    folder: Path,
) -> _Compiled:
    if recipe == "float":
        return _emit(job, baseline, inputs, folder, {})
    if recipe == "int8":
        assert calibration is not None
        data = CalibrationData(calibration, baseline, job.calibration_item)
        return _until_fused(job, static_int8(baseline, job.target, data), inputs, folder)
    if recipe == "int8-dynamic":
        return _until_fused(job, dynamic_int8(baseline), inputs, folder)
    assert not isinstance(recipe, str)
    with job.stage("passes"):
        result = (recipe if isinstance(recipe, Pipeline) else Pipeline(tuple(recipe)))(program)
    return _emit(job, result, inputs, folder, {})


def _until_fused(job: _Job, quantize: Quantization, inputs: tuple[Tensor, ...], folder: Path) -> _Compiled:
    """Quantize, emit and prove; what onnxruntime does not fuse goes back to float, until the census is clean."""
    kept: dict[str, str] = {}
    while True:
        with job.stage("quantize"):
            reasons, program = quantize(kept)
        compiled = _emit(job, program, inputs, folder, dict(reasons), strict=False)
        census = compiled.validation.census
        unfused = dict(census.unfused) if census is not None else {}
        if not unfused.keys() - kept.keys():
            break
        kept |= {name: f"onnxruntime runs it as {kernel}, not as an integer kernel" for name, kernel in unfused.items()}
    compiled.validation.raise_on_failure(str(compiled.path.name))
    return compiled


def _emit(
    job: _Job,
    program: Program,
    inputs: tuple[Tensor, ...],
    folder: Path,
    reasons: Mapping[str, str],
    strict: bool = True,
) -> _Compiled:
    path = folder / job.filename
    with job.stage("emit"):
        model = to_onnx(program, path, target=job.target, opset=job.opset)
    with job.stage("validate"):
        validation = validate(path, program, inputs, target=job.target, raise_on_failure=strict)
    return _Compiled(program, model, path, validation, reasons)


@dataclass(frozen=True)
class _Reference:
    """The float model that the result is compared with: its file, its figures, and how far the result is from it."""

    path: Path
    figures: ModelFigures
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    differences: tuple[OutputError, ...]


def _reference(
    job: _Job, compiled: _Compiled, baseline: Program, inputs: tuple[Tensor, ...], folder: Path
) -> _Reference:
    path, model = compiled.path, compiled.model
    if compiled.program is not baseline:
        path = folder / f"baseline.{job.filename}"
        with job.stage("emit baseline"):
            model = to_onnx(baseline, target=job.target, opset=job.opset)
            model.write(path, external=True)  # onnxruntime needs far less memory to load that
    specs = [spec for spec in baseline.outputs if spec is not None]
    expected = reference_outputs(baseline, inputs)
    return _Reference(
        path,
        _figures(model, baseline),
        tuple(map(str, baseline.inputs)),
        tuple(map(str, specs)),
        tuple(compare_outputs([spec.name for spec in specs], expected, Session(compiled.path)(*inputs))),
    )


def _figures(model: OnnxModel, program: Program) -> ModelFigures:
    return ModelFigures(model.file_bytes, parameter_count(program), macs_per_sample(program))


def _report(
    job: _Job,
    compiled: _Compiled,
    reference: _Reference,
    inputs: tuple[Tensor, ...],
    title: str,
    recipe: Recipe,
    timed: bool,
) -> Report:
    is_float = reference.path == compiled.path
    latency = None
    if timed:
        with job.stage("measure"):
            latency = _time(job, compiled.path, inputs, None if is_float else reference.path)
    metrics = _metrics(job, compiled, reference.path, is_float)
    census = compiled.validation.census
    assert census is not None
    return Report(
        model=title,
        recipe=recipe if isinstance(recipe, str) else "custom",
        target=job.target.name,
        opset=compiled.model.opset,
        inputs=reference.inputs,
        outputs=reference.outputs,
        baseline=replace(reference.figures, metric=metrics[0]),
        result=replace(_figures(compiled.model, compiled.program), metric=metrics[1]),
        differences=reference.differences,
        proof=compiled.validation.outputs,
        census=census,
        latency=latency,
        float_reasons=compiled.float_reasons,
        delegated=compiled.model.delegated,
        seconds=dict(job.seconds),
        history=compiled.program.history,
        notes=(*compiled.program.notes, *compiled.validation.notes),
    )


def _time(job: _Job, path: Path, inputs: tuple[Tensor, ...], baseline: Path | None) -> Measurement:
    return measure(path, inputs, baseline=baseline, settings=job.target.session)


def _metrics(job: _Job, compiled: _Compiled, baseline: Path, is_float: bool) -> tuple[float | None, float | None]:
    if job.evaluate is None:
        return None, None
    with job.stage("evaluate"):
        result = float(job.evaluate(OnnxCallable(compiled.path, compiled.program)))
        return (result if is_float else float(job.evaluate(OnnxCallable(baseline, compiled.program)))), result


class OnnxCallable:
    """An ONNX file that is called like the original model and returns its output structure."""

    def __init__(self, path: Path, program: Program, threads: int = 1) -> None:
        self.session = Session(path, threads=threads)
        self.program = program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run onnxruntime with the signature of the original model."""
        values = iter(self.session(*self.program.flatten(*args, **kwargs)))
        flat = self.program.output_node.args[0]
        assert isinstance(flat, tuple)
        return self.program.unflatten(
            next(values) if spec is not None else constant
            for spec, constant in zip(self.program.outputs, flat, strict=True)
        )


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
