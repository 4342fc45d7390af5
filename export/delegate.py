"""An op without a rule: torch.onnx's exporter translates it alone, and the result is inlined."""

from __future__ import annotations

from torch import fx

from fxopt.errors import UnsupportedOpError, where
from fxopt.export.builder import OnnxGraph, Value


def delegate(graph: OnnxGraph, node: fx.Node) -> Value:
    """Emit one call by torch.onnx's exporter."""
    raise UnsupportedOpError(f"{where(node)} has no row in ONNX_RULES.")
