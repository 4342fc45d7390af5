"""The float model that a result is compared with: its file, its figures, and its outputs on the example inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fxopt.export.compare import OutputError, compare_outputs
from fxopt.export.model_file import OnnxModel
from fxopt.export.session import Session
from fxopt.export.sweep import reference_outputs
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.cost import macs_per_sample, parameter_count
from fxopt.graph.program import Program
from fxopt.job import Job, Proved
from fxopt.report import ModelFigures


@dataclass(frozen=True)
class Reference:
    """The float model: where its file is, its figures, its inputs and outputs as text, and what it returns."""

    path: Path
    figures: ModelFigures
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    names: tuple[str, ...]
    expected: tuple[Tensor, ...]

    def differences(self, path: Path, inputs: Sequence[Tensor]) -> tuple[OutputError, ...]:
        """Compare the outputs of a file with those of the float model."""
        return tuple(compare_outputs(self.names, self.expected, Session(path)(*inputs)))


def reference_of(
    job: Job, baseline: Program, inputs: Sequence[Tensor], proved: Proved | None = None, name: str = "baseline"
) -> Reference:
    """Return the reference that a float Program makes; `proved` is its own file if there is one already.

    `name`: of the folder its file goes to, where a compilation has several references.
    """
    if proved is not None:
        path, model = proved.path, proved.model
    else:
        path = job.path(name)
        with job.stage("emit baseline"):
            model = to_onnx(baseline, target=job.target, opset=job.opset)
            model.write(path, external=True)  # onnxruntime needs far less memory to load that
    specs = [spec for spec in baseline.outputs if spec is not None]
    return Reference(
        path,
        figures_of(model, baseline),
        tuple(map(str, baseline.inputs)),
        tuple(map(str, specs)),
        tuple(spec.name for spec in specs),
        tuple(reference_outputs(baseline, inputs)),
    )


def figures_of(model: OnnxModel, program: Program) -> ModelFigures:
    """Return the figures of a Program and its file."""
    return ModelFigures(model.file_bytes, parameter_count(program), macs_per_sample(program))
