"""A call of one op as a small model, emitted as ONNX and compared with torch in onnxruntime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxopt.export.to_onnx import OnnxModel, to_onnx
from fxopt.graph.capture import capture

Size = int | str
Op = Callable[..., Any]

# What a named size is at capture, and in the runs that follow.
CAPTURE_SIZES = {"B": 2, "H": 9, "W": 8, "T": 6}
RUN_SIZES = ({"B": 2, "H": 9, "W": 8, "T": 6}, {"B": 3, "H": 12, "W": 11, "T": 9})
OPSETS = (18, 21, 23)
RELATIVE_TOLERANCE = 1e-5


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(list(shape), generator=generator)


def positive(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(list(shape), generator=generator) + 0.1


def mask(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(list(shape), generator=generator) < 0.6


def integers(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(-4, 5, list(shape), generator=generator)


@dataclass(frozen=True)
class Input:
    """A tensor input of the model; a size "B", "H", "W" or "T" is dynamic."""

    shape: tuple[Size, ...]
    draw: Callable[[Sequence[int], torch.Generator], Tensor] = normal

    def tensor(self, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        return self.draw([sizes[size] if isinstance(size, str) else size for size in self.shape], generator)


@dataclass(frozen=True)
class Weight:
    """A parameter of the model."""

    shape: tuple[int, ...]
    draw: Callable[[Sequence[int], torch.Generator], Tensor] = normal


@dataclass(frozen=True)
class SizeOf:
    """A symbolic integer: the size of the model's first input in a dimension, times a factor."""

    dim: int
    factor: int = 1


@dataclass(frozen=True)
class Case:
    """A call `op(*args, **kwargs)`, in which Input, Weight and SizeOf stand for tensors and symbolic integers.

    `result` picks what is returned of an op with several results (default: all). `opsets`: where it can be emitted.
    `tolerance` is relative to the range of the expected output. `emits`: op types that the ONNX graph must hold.
    """

    op: Op
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    result: int | None = None
    opsets: tuple[int, ...] = OPSETS
    tolerance: float = RELATIVE_TOLERANCE
    emits: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        inner = ",".join(_describe(value) for value in (*self.args, *self.kwargs.values()))
        return f"{self.op}({inner})".removeprefix("aten.").replace(" ", "")


def case(op: Op, *args: Any, **options: Any) -> Case:
    """Write a Case with its positional arguments in place; options are the fields of Case."""
    return Case(op, args, **options)


def _describe(value: Any) -> str:
    if isinstance(value, Input):
        return "x".join(map(str, value.shape)) or "scalar"
    if isinstance(value, Weight):
        return "w" + "x".join(map(str, value.shape))
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_describe, value)) + "]"
    return str(value)


class Model(nn.Module):
    """The call of a Case."""

    def __init__(self, case: Case, generator: torch.Generator) -> None:
        super().__init__()
        self.case = case
        self.leaves, self.spec = pytree.tree_flatten((list(case.args), dict(case.kwargs)))
        for position, leaf in enumerate(self.leaves):
            if isinstance(leaf, Weight):
                tensor = leaf.draw(leaf.shape, generator)
                self.register_parameter(f"weight_{position}", nn.Parameter(tensor, requires_grad=False))

    def forward(
        self, a: Tensor, b: Tensor | None = None, c: Tensor | None = None, d: Tensor | None = None
    ) -> Any:
        """Call the op on the inputs and own parameters."""
        given = iter([a, b, c, d])
        values = []
        for position, leaf in enumerate(self.leaves):
            if isinstance(leaf, Input):
                values.append(next(given))
            elif isinstance(leaf, Weight):
                values.append(getattr(self, f"weight_{position}"))
            elif isinstance(leaf, SizeOf):
                values.append(a.shape[leaf.dim] * leaf.factor)
            else:
                values.append(leaf)
        args, kwargs = pytree.tree_unflatten(values, self.spec)
        result = self.case.op(*args, **kwargs)
        return result if self.case.result is None else result[self.case.result]


def emit(case: Case, opset: int) -> tuple[Model, OnnxModel]:
    """Capture the call of a Case with its named sizes dynamic, and emit it."""
    generator = torch.Generator().manual_seed(0)
    model = Model(case, generator).eval()
    inputs = [leaf for leaf in model.leaves if isinstance(leaf, Input)]
    dynamic = {
        name: {dim: size.lower() for dim, size in enumerate(leaf.shape) if isinstance(size, str)}
        for name, leaf in zip("abcd", inputs, strict=False)
    }
    example = tuple(leaf.tensor(CAPTURE_SIZES, generator) for leaf in inputs)
    program = capture(model, example, dynamic=dynamic)
    targets = [node.target for node in program.graph.nodes]
    assert case.op in targets or not isinstance(case.op, torch._ops.OpOverload), f"torch.export replaced {case.op}"
    return model, to_onnx(program, opset=opset)


def check(case: Case, opset: int) -> OnnxModel:
    """Emit a Case and compare onnxruntime with torch at two sets of sizes; returns the emitted model."""
    model, emitted = emit(case, opset)
    onnx.checker.check_model(emitted.proto, full_check=True)
    types = {node.op_type for node in emitted.proto.graph.node}
    assert set(case.emits) <= types, f"{case.name} emits {sorted(types)}"
    session = session_of(emitted.proto)
    names = [value.name for value in emitted.proto.graph.input]
    for seed, sizes in enumerate(RUN_SIZES):
        generator = torch.Generator().manual_seed(seed)
        inputs = [leaf.tensor(sizes, generator) for leaf in model.leaves if isinstance(leaf, Input)]
        with torch.no_grad():
            expected = [leaf for leaf in pytree.tree_leaves(model(*inputs)) if isinstance(leaf, Tensor)]
        feeds = {name: tensor.numpy() for name, tensor in zip("abcd", inputs, strict=False) if name in names}
        for got, want in zip(session.run(None, feeds), expected, strict=True):
            assert_close(got, want.numpy(), case.tolerance, f"{case.name} at {sizes}, opset {opset}")
    return emitted


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def assert_close(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any], tolerance: float, what: str) -> None:
    """Fail unless shapes and dtypes agree and floats differ by at most `tolerance` of the range of the expectation."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype), what
    if not np.issubdtype(want.dtype, np.floating):
        np.testing.assert_array_equal(got, want, err_msg=what)
        return
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=what)
    if not finite.any():
        return
    scale = max(float(np.abs(want[finite]).max()), 1e-3)
    error = float(np.abs(got[finite] - want[finite]).max()) / scale
    assert not math.isnan(error) and error <= tolerance, f"{what}: error {error:.2g} of the range"
