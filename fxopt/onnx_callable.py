"""An ONNX file as a function: what compile() hands to `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fxopt.export.session import Session
from fxopt.graph.program import Program


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
