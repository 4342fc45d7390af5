"""The tools that are compared, and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tool:
    """A tool: its file in this folder, its settings, and whether it needs an environment of its own.

    `only` limits a setting to one kind of model (see Case.kind).
    """

    module: str
    settings: tuple[str, ...]
    own_environment: bool = True
    only: Mapping[str, str] | None = None

    def settings_for(self, kind: str) -> tuple[str, ...]:
        """Return the settings that a kind of model is quantized with."""
        only = self.only or {}
        return tuple(setting for setting in self.settings if only.get(setting, kind) == kind)


OURS = "fxopt"
LATENCY = "latency-"  # starts settings of ours that are a bound: the share of the float model's latency
TOOLS: Mapping[str, Tool] = {
    OURS: Tool("fxopt_tool", ("int8", "int8-static", "int8-dynamic"), own_environment=False),
    "onnxruntime": Tool(
        "onnxruntime_quantize",
        ("minmax", "entropy", "percentile", "matmul", "default", "dynamic"),
        own_environment=False,
        only={"matmul": "transformer"},
    ),
    "nncf": Tool("nncf_tool", ("default", "full-bias-correction")),
    "torchao": Tool("torchao_tool", ("x86",)),
    "aimet": Tool("aimet_tool", ("minmax",)),
    "quark": Tool("quark_tool", ("u8s8",)),
    "modelopt": Tool("modelopt_tool", ("entropy",)),
}
