"""OnnxGraph: the ONNX graph under construction, with the few helpers that emission rules are written in.

A rule is a function `rule(g, *arguments) -> value` for one ATen overload. `g` is the OnnxGraph; the arguments are
those of the ATen schema in order, defaults filled in: fx nodes for tensors and symbolic integers, plain Python values
otherwise. It returns the name of the ONNX value that holds the result (a tuple of names for an op with several).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import SymInt, Tensor, fx

from fxopt.errors import ExportError, where
from fxopt.export.packed import Packed
from fxopt.graph.program import Program
from fxopt.graph.rewrite import constant
from fxopt.target import Target

Value = str | tuple[str, ...]
Rule = Callable[..., Value]

ONNX_TYPE: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.bool: TensorProto.BOOL,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.int16: TensorProto.INT16,
    torch.uint16: TensorProto.UINT16,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.complex64: TensorProto.COMPLEX64,
}
CONTRIB = "com.microsoft"


class OnnxGraph:
    """ONNX nodes and initializers in the making, and the ONNX value of each fx node done so far."""

    def __init__(self, program: Program, opset: int, target: Target) -> None:
        self.program = program
        self.opset = opset
        self.target = target
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, np.ndarray[Any, Any] | Tensor | Packed] = {}
        self.values: dict[fx.Node, Value] = {}
        self.domains: set[str] = set()
        self.delegated: dict[str, list[str]] = {}
        self.translations: dict[Any, onnx.ModelProto] = {}  # what torch.onnx made of a delegated call
        self.emit_symbolic: Callable[[fx.Node], Value]
        self._constants: dict[Any, str] = {}
        self._tensors: dict[Any, str] = {}
        self._taken: set[str] = set()
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:
        """The fx node whose rule is running."""
        assert self._node is not None
        return self._node

    def unique(self, name: str) -> str:
        """Reserve a value name, with a number appended where it is taken."""
        candidate, number = name, 1
        while candidate in self._taken:
            candidate, number = f"{name}_{number}", number + 1
        self._taken.add(candidate)
        return candidate

    # --- emitting ---------------------------------------------------------------------------------------------------

    def op(self, op_type: str, *inputs: Any, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output; inputs are fx nodes, value names, numbers, lists, arrays or None (absent)."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(self, op_type: str, *inputs: Any, outputs: int, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        """Append a node with several outputs and return their names."""
        names = [self.value(value) for value in inputs]
        while names and not names[-1]:
            names.pop()
        results = [self.unique(f"{self.node.name}.{op_type}") for _ in range(outputs)]
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op_type, names, results, name=results[0], domain=domain, **given))
        self.domains.add(domain)
        return tuple(results)

    def value(self, value: Any) -> str:
        """Return the ONNX value name of an fx node, a constant, or None ("" means an absent input)."""
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        if isinstance(value, fx.Node):
            return self._value_of(value)
        return self.constant(value)

    def _value_of(self, node: fx.Node) -> str:
        if node not in self.values:
            if node.op == "get_attr":
                self.values[node] = self._initializer(node)
            elif isinstance(node.meta.get("val"), (SymInt, torch.SymFloat, torch.SymBool, int, float)):
                self.values[node] = self.emit_symbolic(node)
            else:
                raise ExportError(f"{where(node)} is used before it is emitted.")
        value = self.values[node]
        if not isinstance(value, str):
            raise ExportError(f"{where(node)} has several results; one of them must be chosen by getitem.")
        return value

    def _initializer(self, node: fx.Node) -> str:
        tensor = constant(self.program.module, node)
        if tensor is None:
            raise ExportError(f"{where(node)} is not a tensor.")
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() == 0 or key not in self._tensors:
            name = self.unique(str(node.target))
            self.initializers[name] = tensor.detach()
            self._tensors[key] = name
        return self._tensors[key]

    def constant(self, value: Any, dtype: torch.dtype | None = None, name: str | None = None) -> str:
        """Return the name of an initializer with this number, list, array or tensor; equal small ones are shared.

        Python ints and lists of ints become int64, floats float32, bools bool, unless `dtype` says otherwise.
        `name` is what the initializer is called if it is free: the dotted name of the parameter it is made of.
        """
        array = _as_array(value, dtype)
        if isinstance(array, Tensor):
            tensor_key = (array.data_ptr(), tuple(array.shape), array.stride(), array.dtype)
            if array.numel() == 0 or tensor_key not in self._tensors:
                self._tensors[tensor_key] = self._add_constant(array, name)
            return self._tensors[tensor_key]
        if array.size > 64:
            return self._add_constant(array, name)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._add_constant(array, name)
        return self._constants[key]

    def _add_constant(self, array: np.ndarray[Any, Any] | Tensor, name: str | None) -> str:
        small = isinstance(array, np.ndarray) and array.ndim == 0
        name = self.unique(name or (f"constant_{array.item()}" if small else f"{self.node.name}.constant"))
        self.initializers[name] = array
        return name

    def packed(self, value: Packed, name: str) -> str:
        """Return the name of a new initializer with a packed weight."""
        name = self.unique(name)
        self.initializers[name] = value
        return name

    # --- asking -----------------------------------------------------------------------------------------------------

    def tensor(self, value: Any) -> Tensor | None:
        """Return the tensor behind a parameter, buffer or constant node; None for anything computed."""
        found = constant(self.program.module, value)
        return None if found is None else found.detach()

    def val(self, node: fx.Node | None = None) -> Any:
        """Return the fake tensor of an fx node (default: of the node being emitted)."""
        return (node or self.node).meta["val"]

    def dtype(self, value: Any = None) -> torch.dtype:
        """Return the dtype of an fx node, of a Python number (its torch default), or of the node being emitted.

        Symbolic floats are float64, as in Python.
        """
        if value is None or isinstance(value, fx.Node):
            fake = self.val(value)
            if isinstance(fake, Tensor):
                return fake.dtype
            if isinstance(fake, (float, torch.SymFloat)):
                return torch.float64
            value = fake
        if isinstance(value, (bool, torch.SymBool)):
            return torch.bool
        return torch.int64 if isinstance(value, (int, SymInt)) else torch.get_default_dtype()

    def rank(self, node: fx.Node | None = None) -> int:
        """Return the number of dimensions of a tensor node (default: of the node being emitted)."""
        return int(self.val(node).ndim)

    # --- shapes and dtypes ------------------------------------------------------------------------------------------

    def cast(self, value: Any, dtype: torch.dtype, source: torch.dtype | None = None) -> str:
        """Cast a value to a dtype; a number becomes a constant of it; nothing is emitted where it has it already.

        `source` is the dtype of a value given by name; for a name without it, a Cast is always emitted.
        """
        if isinstance(value, (bool, int, float)):
            return self.constant(value, dtype)
        known = self.dtype(value) if isinstance(value, fx.Node) else source
        if known == dtype:
            return self.value(value)
        return self.op("Cast", value, to=ONNX_TYPE[dtype])

    def sizes(self, sizes: Sequence[Any]) -> str:
        """Return a 1-D int64 value from sizes, each an int or a symbolic integer's node."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(np.array(sizes, dtype=np.int64))
        return self.op("Concat", *[[size] if isinstance(size, int) else size for size in sizes], axis=0)

    def scalar(self, value: Any) -> str:
        """Return a 0-D value from a number or a symbolic integer's node (kept as 1-D, of one element)."""
        if isinstance(value, fx.Node) and not isinstance(self.val(value), Tensor):
            return self.op("Squeeze", value, [0])
        return self.value(value)

    def shape_of(self, node: fx.Node) -> str:
        """Return the shape of a tensor node as a 1-D int64 value, as a constant where it is static."""
        shape = self.val(node).shape
        if all(isinstance(size, int) for size in shape):
            return self.constant(np.array(shape, dtype=np.int64))
        return self.op("Shape", node)

    def reshape(self, value: Any, source: Tensor, result: Tensor, sizes: Sequence[Any] | None = None) -> str:
        """Reshape to the shape of `result` (fake); `sizes` (ints and nodes) are the fallback for two unknown sizes.

        A size that the source has at the same place is written as 0, one more unknown size as -1, so that the shape
        is a constant and onnxruntime can see through it.
        """
        if _same_shape(source, result):
            return self.value(value)
        target: list[int] = []
        unknown = 0
        shape: Sequence[int | SymInt] = result.shape
        for dim, size in enumerate(shape):
            if isinstance(size, int):
                target.append(size)
            elif dim < source.ndim and str(source.shape[dim]) == str(size):
                target.append(0)
            else:
                target.append(-1)
                unknown += 1
        if 0 in [size for size in shape if isinstance(size, int)]:
            return self.op("Reshape", value, self.sizes(list(sizes or shape)), allowzero=1)
        if unknown <= 1:
            return self.op("Reshape", value, self.constant(np.array(target, dtype=np.int64)))
        if sizes is None:
            raise ExportError(f"{where(self.node)} reshapes to two unknown sizes.")
        return self.op("Reshape", value, self.sizes(sizes))


def _same_shape(left: Tensor, right: Tensor) -> bool:
    return [str(size) for size in left.shape] == [str(size) for size in right.shape]


def _as_array(value: Any, dtype: torch.dtype | None) -> np.ndarray[Any, Any] | Tensor:
    if isinstance(value, Tensor):
        value = value.detach() if dtype is None else value.detach().to(dtype)
        return value if value.dtype is torch.bfloat16 or value.numel() > 64 else np.asarray(value.cpu().numpy())
    if isinstance(value, np.ndarray) and dtype is None:
        return value
    if dtype is not None:
        return _as_array(torch.as_tensor(value, dtype=dtype), None)
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 else array
