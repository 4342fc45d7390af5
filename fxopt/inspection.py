"""What a Program or an ONNX file is made of, for the command line."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from fxopt.errors import DataError
from fxopt.export.session import Session
from fxopt.graph.cost import macs_per_sample, parameter_bytes, parameter_count
from fxopt.graph.program import Program
from fxopt.options import example

SESSION_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int16)": torch.int16,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


def inspection(name: str, program: Program) -> dict[str, Any]:
    """Return what a Program is made of, as plain data. `ops` counts the calls of each op, most frequent first."""
    ops = Counter(_op_name(node.target) for node in program.graph.nodes if node.op == "call_function")
    return {
        "model": name,
        "inputs": [str(spec) for spec in program.inputs],
        "outputs": [str(spec) for spec in program.outputs if spec is not None],
        "ops": dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        "parameters": parameter_count(program),
        "parameter_bytes": parameter_bytes(program),
        "macs": macs_per_sample(program),
        "history": list(program.history),
        "notes": list(program.notes),
    }


def _op_name(target: Any) -> str:
    """Name an op: `conv2d`, `softmax.int` (an overload that is not the default), `operator.getitem`."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target).removeprefix("aten.").removesuffix(".default")
    return f"{getattr(target, '__module__', '').removeprefix('_')}.{getattr(target, '__name__', target)}"


def session_inputs(session: Session, given: Any) -> tuple[Tensor, ...]:
    """Return the inputs of an ONNX file in order: the given ones (a tuple or a dict), else random ones of its shapes.

    A dynamic dimension gets size 1. Raises DataError if the given inputs are not those of the file.
    """
    if given is None:
        generator = torch.Generator().manual_seed(0)
        return tuple(_example(entry, generator) for entry in session.raw.get_inputs())
    if isinstance(given, dict):
        if set(given) != set(session.inputs):
            raise DataError(f"--input names {', '.join(given)}, but the model has {', '.join(session.inputs)}.")
        return tuple(given[name] for name in session.inputs)
    if len(given) != len(session.inputs):
        raise DataError(f"--input gives {len(given)} inputs, but the model has {', '.join(session.inputs)}.")
    return tuple(given)


def _example(entry: Any, generator: torch.Generator) -> Tensor:
    if entry.type not in SESSION_DTYPES:
        raise DataError(f"Input '{entry.name}' is a {entry.type}, which cannot be made up here.")
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    return example(shape, SESSION_DTYPES[entry.type], generator)
