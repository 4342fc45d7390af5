"""One compilation under way: its settings, its stages, and the emission and proof of a Program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fxopt.errors import ValidationError
from fxopt.export.measure import KernelTime, profile
from fxopt.export.model_file import OnnxModel
from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import Validation, validate
from fxopt.graph.memory import release_memory
from fxopt.graph.program import Program
from fxopt.recipes import Quantization
from fxopt.target import Target


class Progress(Protocol):
    """What is told how far a compilation is: the stage, and how many of its steps are done (total None: unknown)."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None, /) -> None:
        """Show it."""


def silent(stage: str, done: int = 0, total: int | None = None) -> None:
    """Show nothing."""


@dataclass
class Job:
    """The settings of a compilation and the time each stage took.

    - `folder`: where files are made; each Program gets a folder of its own in it, since its weights may be a second
      file whose name the first one holds. `filename`: the name of the result.
    - `profiles`: those taken so far, by file.
    """

    target: Target
    opset: int | None
    evaluate: Callable[[Callable[..., Any]], float] | None
    progress: Progress
    filename: str
    folder: Path = Path()
    seconds: dict[str, float] = field(default_factory=dict)
    profiles: dict[Path, list[KernelTime]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a stage and add up its time."""
        self.progress(name)
        start = time.perf_counter()
        yield
        release_memory()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def calibration_item(self, number: int, count: int | None) -> None:
        """Tell the user how far calibration is."""
        self.progress("quantize", number, count)

    def path(self, name: str) -> Path:
        """Return where the file of a Program goes."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder / self.filename

    def profile(
        self, path: Path, inputs: Sequence[Tensor], settings: Mapping[str, str] | None = None
    ) -> list[KernelTime]:
        """Return the profile of a file, which is taken once."""
        if path not in self.profiles:
            with self.stage("measure"):
                self.profiles[path] = profile(path, inputs, settings=settings)
        return self.profiles[path]


@dataclass(frozen=True)
class Proved:
    """An emitted and proved Program, in a temporary file.

    - `float_reasons`: why nodes that could be integer are not. `kept`: those of them that were not told to be float by
      the target's table, but by what was found out later.
    """

    program: Program
    model: OnnxModel
    path: Path
    validation: Validation
    float_reasons: Mapping[str, str]
    kept: Mapping[str, str] = field(default_factory=dict)


def prove(
    job: Job,
    name: str,
    program: Program,
    inputs: tuple[Tensor, ...],
    reasons: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Proved:
    """Emit a Program and validate the file. Raises ValidationError if it is not proved, unless not `strict`."""
    path = job.path(name)
    with job.stage("emit"):
        model = to_onnx(program, path, target=job.target, opset=job.opset)
    with job.stage("validate"):
        validation = validate(path, program, inputs, target=job.target, raise_on_failure=strict)
    return Proved(program, model, path, validation, reasons or {})


def prove_quantized(
    job: Job, name: str, quantize: Quantization, inputs: tuple[Tensor, ...], kept: Mapping[str, str] | None = None
) -> Proved:
    """Quantize, emit and prove; what onnxruntime does not fuse goes back to float, until the census is clean."""
    kept = dict(kept or {})
    while True:
        with job.stage("quantize"):
            reasons, program = quantize(kept)
        proved = prove(job, name, program, inputs, dict(reasons), strict=False)
        census = proved.validation.census
        unfused = dict(census.unfused) if census is not None else {}
        if not unfused.keys() - kept.keys():
            break
        kept |= {node: f"onnxruntime runs it as {kernel}, not as an integer kernel" for node, kernel in unfused.items()}
    proved.validation.raise_on_failure(str(proved.path.name))
    return replace(proved, kept=kept)


def unproved(name: str, error: ValidationError) -> str:
    """Say in a note that a candidate is not proved."""
    return f"{name} is out: {' '.join(str(error).split())}"
