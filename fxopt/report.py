"""The result of a compilation as data: what became smaller and faster, what it cost, what stayed float and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fxopt.choose import Candidate
from fxopt.export.census import Census
from fxopt.export.compare import OutputError
from fxopt.export.measure import Measurement
from fxopt.layers import LayerRow


@dataclass(frozen=True)
class ModelFigures:
    """The figures of one ONNX model: bytes on disk, parameters, multiply-accumulates a call, and a task metric."""

    file_bytes: int
    parameters: int
    macs: int
    metric: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything that compile() found out.

    - `baseline`, `result`: figures of the float model and of the compiled one.
    - `latency`: interleaved times of both (None with measure=False). `differences`: per output, compiled against float.
    - `candidates`: what was timed for the choice; `is_float`: whether float was better than all of them, or asked for.
    - `proof`: per output, onnxruntime against the Program. `census`: the kernels that really run.
    - `float_reasons`: nodes that could be integer and stayed float, with the reason.
    - `layers`: each layer's precision, time, error and reason, in the order of the graph (recipes that quantize).
    - `delegated`: ops that torch.onnx translated. `seconds`: time a stage took. `notes`: what the user should know.
    """

    model: str
    recipe: str
    target: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    baseline: ModelFigures
    result: ModelFigures
    differences: tuple[OutputError, ...]
    proof: tuple[OutputError, ...]
    census: Census
    is_float: bool = False
    candidates: tuple[Candidate, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    latency: Measurement | None = None
    float_reasons: Mapping[str, str] = field(default_factory=dict)
    delegated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    history: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON: infinite figures become None."""
        data = plain(asdict(self))
        assert isinstance(data, dict)
        if self.latency is not None:
            data["latency"]["speedup"] = self.latency.speedup
        for entry, candidate in zip(data["candidates"], self.candidates, strict=True):
            entry["latency"]["speedup"] = candidate.latency.speedup
        data["census"]["integer_kernels"] = self.census.integer_kernels
        return data

    def to_html(self, path: str | Path) -> Path:
        """Write the report as one self-contained HTML page."""
        from fxopt.html import write_html

        return write_html(self, Path(path))


def plain(value: Any) -> Any:
    """Turn mappings, tuples and floats into what JSON holds: an infinite or undefined figure becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
