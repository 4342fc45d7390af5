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

from fxopt.export.model_file import OnnxModel
from fxopt.export.to_onnx import to_onnx
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

    @property
    def inputs(self) -> list[Input]:
        """The tensor inputs of the call, in order."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Input)]

    def forward(self, *inputs: Tensor) -> Any:
        """Call the op on the inputs and own parameters."""
        given = iter(inputs)
        values: list[Any] = []
        for position, leaf in enumerate(self.leaves):
            if isinstance(leaf, Input):
                values.append(next(given))
            elif isinstance(leaf, Weight):
                values.append(getattr(self, f"weight_{position}"))
            elif isinstance(leaf, SizeOf):
                values.append(inputs[0].shape[leaf.dim] * leaf.factor)
            else:
                values.append(leaf)
        args, kwargs = pytree.tree_unflatten(values, self.spec)
        result = self.case.op(*args, **kwargs)
        return result if self.case.result is None else result[self.case.result]


class Group(nn.Module):
    """The calls of many cases in one graph: torch.export and onnxruntime start once for all of them."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.calls = [Model(case, generator) for case in cases]
        self.models = nn.ModuleList(self.calls)

    def draw(self, sizes: Mapping[str, int], seed: int) -> list[list[Tensor]]:
        """Draw the inputs of every case."""
        generator = torch.Generator().manual_seed(seed)
        return [[leaf.tensor(sizes, generator) for leaf in model.inputs] for model in self.calls]

    def forward(self, inputs: list[list[Tensor]]) -> Any:
        """Make every call on its inputs."""
        return [model(*given) for model, given in zip(self.calls, inputs, strict=True)]


def named(inputs: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Give the inputs of a Group the names that capture gives them."""
    return {f"inputs_{i}_{j}": leaf for i, row in enumerate(inputs) for j, leaf in enumerate(row)}


def emit(cases: Sequence[Case], opset: int) -> tuple[Group, OnnxModel]:
    """Capture the calls with their named sizes dynamic, and emit them as one model."""
    group = Group(cases).eval()
    dynamic = {
        name: {dim: size.lower() for dim, size in enumerate(leaf.shape) if isinstance(size, str)}
        for name, leaf in named([model.inputs for model in group.calls]).items()
    }
    program = capture(group, (group.draw(CAPTURE_SIZES, 0),), dynamic=dynamic)
    targets = {node.target for node in program.graph.nodes}
    assert {case.op for case in cases} <= targets, "torch.export replaced one of the ops"
    return group, to_onnx(program, opset=opset)


def check(cases: Sequence[Case], opset: int) -> OnnxModel:
    """Emit calls and compare onnxruntime with torch at two sets of sizes; returns the emitted model."""
    group, emitted = emit(cases, opset)
    onnx.checker.check_model(emitted.proto, full_check=True)
    session = session_of(emitted.proto)
    names = {value.name for value in emitted.proto.graph.input}
    for seed, sizes in enumerate(RUN_SIZES):
        inputs = group.draw(sizes, seed)
        with torch.no_grad():
            expected = [[x for x in pytree.tree_leaves(row) if isinstance(x, Tensor)] for row in group(inputs)]
        feeds = {name: tensor.numpy() for name, tensor in named(inputs).items() if name in names}
        results = iter(session.run(None, feeds))
        for case, row in zip(cases, expected, strict=True):
            for want in row:
                assert_close(next(results), want.numpy(), case.tolerance, f"{case.name} at {sizes}, opset {opset}")
        assert next(results, None) is None
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
