"""Program: an fx graph of functional ATen ops with the specs of its inputs and outputs.

A Program is what every pass takes and returns. Its module holds placeholders (one a tensor input), `get_attr` nodes
(parameters, buffers and constants under the dotted names of the original model), calls of ops, and one output node.
Every value node carries its fake tensor in `node.meta["val"]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from fxopt.errors import DataError
from fxopt.graph.taps import Tap
from fxopt.graph.tracked import tracked_grid

aten = torch.ops.aten

# The position of the training argument of each op whose behaviour differs between training and inference.
TRAINING_ARGUMENT: dict[Any, int] = {
    aten.batch_norm.default: 5,
    aten.instance_norm.default: 5,
    aten.dropout.default: 2,
    aten.feature_dropout.default: 2,
    aten.alpha_dropout.default: 2,
    aten.lstm.input: 6,
    aten.gru.input: 6,
    aten.rnn_tanh.input: 6,
    aten.rnn_relu.input: 6,
    tracked_grid: 8,
}
# Their argument 3 is the running mean.
NORMS: tuple[Any, ...] = (aten.batch_norm.default, aten.instance_norm.default)


@dataclass(frozen=True)
class TensorSpec:
    """The name, dtype and shape of one input or output tensor.

    `shape` holds an int for a fixed dimension and an expression in the user's dimension names ("batch",
    "2*height") for a dynamic one.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Program:
    """A captured model: the graph, what goes in and out, and which passes made it.

    - `module`: an fx.GraphModule over ATen ops; calling it takes the tensor inputs in order, returns the flat outputs.
    - `inputs`: one spec a tensor input, in the order of the placeholders.
    - `outputs`: one spec a flat output; None where the original output holds None or a plain number.
    - `in_spec`, `out_spec`: the pytree structure of the original call `(args, kwargs)` and of its result.
    - `constants`: the leaves of the original call that are no tensors, by leaf position; they are baked in.
    - `dims`: the user's name of each dynamic dimension, by its symbol.
    - `history`: the reprs of the passes applied, in order. `notes`: what the user should know (specialised
      dimensions, dropped state updates, nodes left alone and why).
    - `kept`: which positions of the captured model are left where channels were removed: node name -> dimension ->
      positions. What is not listed is whole.
    - `taps`: which outputs are compared in training; see fxopt.graph.taps. A Program with taps is a student and its
      teacher in one.
    """

    module: fx.GraphModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec | None, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    constants: Mapping[int, Any] = field(default_factory=dict)
    dims: Mapping[str, str] = field(default_factory=dict)
    history: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    parameters_of_call: tuple[str, ...] = ()
    kept: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    taps: tuple[Tap, ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The graph of the module. Treat it as read-only: passes edit a copy (see rewrite.Edit)."""
        return self.module.graph

    @property
    def placeholders(self) -> tuple[fx.Node, ...]:
        """The input nodes, one a tensor input."""
        return tuple(self.graph.find_nodes(op="placeholder"))

    @property
    def output_node(self) -> fx.Node:
        """The one output node; its first argument is the tuple of flat outputs."""
        return self.graph.output_node()

    @property
    def fake_mode(self) -> FakeTensorMode:
        """The mode that all fake tensors of this Program belong to."""
        for node in self.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, FakeTensor):
                return value.fake_mode
        return FakeTensorMode()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run with the signature of the original model; returns its original output structure.

        Raises DataError if the structure, a shape or a dtype does not match what was captured.
        """
        return self.unflatten(self.module(*self.flatten(*args, **kwargs)))

    def flatten(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Turn a call with the original signature into the tensor inputs, in order, and check them."""
        leaves, spec = pytree.tree_flatten(self._ordered(args, kwargs))
        if spec != self.in_spec:
            raise DataError(
                f"The inputs have another structure than the captured example.\n  expected: {_describe(self.in_spec)}\n"
                f"  got:      {_describe(spec)}\nPass {', '.join(map(str, self.inputs))}."
            )
        for position, constant in self.constants.items():
            if leaves[position] is not constant and leaves[position] != constant:
                raise DataError(
                    f"Input leaf {position} was captured as the constant {constant!r}, but this call passes "
                    f"{leaves[position]!r}. Capture again with that value."
                )
        tensors = tuple(leaf for position, leaf in enumerate(leaves) if position not in self.constants)
        self.check_inputs(tensors)
        return tensors

    def _ordered(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give a call the split into positional and keyword arguments that the captured example had."""
        expected_args, expected_kwargs = _call_template(self.in_spec)
        names = self.parameters_of_call
        if len(args) == expected_args and list(kwargs) == expected_kwargs:
            return args, kwargs
        by_name = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) <= len(names) and set(by_name) == {*names[:expected_args], *expected_kwargs}:
            args = tuple(by_name[name] for name in names[:expected_args])
            kwargs = {name: by_name[name] for name in expected_kwargs}
        return args, kwargs

    def call_arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Turn tensor inputs, in order, into the positional and keyword arguments of the original call."""
        rest = iter(tensors)
        leaves = [
            self.constants[leaf] if leaf in self.constants else next(rest) for leaf in range(self.in_spec.num_leaves)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.in_spec)
        return args, kwargs

    def unflatten(self, outputs: Iterable[Any]) -> Any:
        """Give flat outputs the structure of the original model's result."""
        return pytree.tree_unflatten(list(outputs), self.out_spec)

    def check_inputs(self, tensors: tuple[Any, ...]) -> None:
        """Raise DataError unless every tensor has the dtype and shape of its spec; named dims must agree."""
        sizes: dict[str, int] = {}
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            if not isinstance(tensor, Tensor):
                raise DataError(f"Input '{spec.name}' must be a Tensor, got {type(tensor).__name__}. Expected {spec}.")
            problem = _mismatch(spec, tensor, sizes)
            if problem:
                got = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
                raise DataError(f"Input '{spec.name}' does not fit: {problem}. Expected {spec}, got {got}.")

    def train(self) -> Program:
        """Return this Program with batch norm and dropout in training mode; parameters are shared.

        Frozen batch norms (passes.FreezeBatchNorm) stay in inference mode.
        """
        return _set_training(self, True)

    def eval(self) -> Program:
        """Return this Program with batch norm and dropout in inference mode; parameters are shared."""
        return _set_training(self, False)

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """Iterate over the trainable parameters."""
        return self.module.parameters()

    def save(self, path: str | Path) -> None:
        """Write a `.pt2` file (torch.export.save) with the specs, names and history as JSON inside."""
        from fxopt.graph.serialize import save

        save(self, Path(path))

    def with_note(self, *notes: str) -> Program:
        """Return this Program with notes added, each once."""
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))

    def __str__(self) -> str:
        from fxopt.graph.printer import format_program

        return format_program(self)


def _call_template(spec: pytree.TreeSpec) -> tuple[int, list[str]]:
    args, kwargs = spec.child(0), spec.child(1)
    return args.num_children, list(kwargs.context)


def _describe(spec: pytree.TreeSpec) -> str:
    args, kwargs = pytree.tree_unflatten(["*"] * spec.num_leaves, spec)
    return ", ".join(
        [*(str(a).replace("'", "") for a in args), *(f"{k}={str(v).replace(chr(39), '')}" for k, v in kwargs.items())]
    )


def _mismatch(spec: TensorSpec, tensor: Tensor, sizes: dict[str, int]) -> str | None:
    if tensor.dtype != spec.dtype:
        return f"its dtype is {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.ndim != len(spec.shape):
        return f"it has {tensor.ndim} dimensions instead of {len(spec.shape)}"
    for dim, (expected, size) in enumerate(zip(spec.shape, tensor.shape, strict=True)):
        known = sizes.setdefault(expected, size) if isinstance(expected, str) else expected
        if known != size:
            name = f" ({expected}, {known} elsewhere)" if isinstance(expected, str) else ""
            return f"dimension {dim}{name} has size {size}"
    return None


def _set_training(program: Program, training: bool) -> Program:
    from fxopt.graph.rewrite import Edit

    if not any(_is_in_other_mode(node, training) for node in program.graph.nodes):
        return program
    edit = Edit(program, by=None)
    for node in edit.graph.nodes:
        if _is_in_other_mode(node, training):
            node.update_arg(TRAINING_ARGUMENT[node.target], training)
    return edit.finish()


def is_frozen(node: fx.Node) -> bool:
    """Say whether a batch norm has its running statistics for good: it is in inference mode and its momentum is 0."""
    return node.target is aten.batch_norm.default and node.args[5:7] == (False, 0.0)


def _is_in_other_mode(node: fx.Node, training: bool) -> bool:
    """Say whether a node runs in training mode, or not, though it should do the opposite."""
    position = TRAINING_ARGUMENT.get(node.target)
    if position is None or (node.target in NORMS and node.args[3] is None):
        return False  # a norm without running statistics uses the input's own in both modes
    if is_frozen(node):
        return False
    return bool(node.args[position] != training)
