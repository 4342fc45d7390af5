"""An op without a rule: torch.onnx's exporter translates it alone, and the result is inlined."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from onnx import inliner, numpy_helper
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from fxopt.errors import UnsupportedOpError, where
from fxopt.export.builder import CONTRIB, ONNX_TYPE, OnnxGraph, Value
from fxopt.graph.program import TRAINING_ARGUMENT

CURE = "Write that line with other ops, or add a rule for the op to fxopt.export.onnx_rules."


def delegate(g: OnnxGraph, node: fx.Node) -> Value:
    """Emit one call by torch.onnx's exporter, and record it in `g.delegated`.

    A call without tensor arguments is computed now and becomes a constant. Symbolic integers reach the exporter as
    sizes of additional inputs, so that they stay dynamic. Raises UnsupportedOpError, naming the op, the line of the
    model and a way out.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        raise UnsupportedOpError(f"{where(node)} is no ATen op. {CURE}")
    if torch.Tag.nondeterministic_seeded in node.target.tags and node.target not in TRAINING_ARGUMENT:
        raise UnsupportedOpError(
            f"{where(node)} draws random numbers, which no runtime repeats as torch draws them. "
            "Draw them outside of the model and pass them as an input, or store them in a buffer."
        )
    if any(isinstance(value, Tensor) and value.dtype.is_complex for value in pytree.tree_leaves(node.meta["val"])):
        raise UnsupportedOpError(f"{where(node)} makes complex numbers, which ONNX runtimes do not have. {CURE}")
    g.delegated.setdefault(str(node.target), []).append(node.name)
    if not node.all_input_nodes:
        return _evaluated(g, node)
    call = _SingleCall(node)
    key = call.signature()
    if key not in g.translations:
        g.translations[key] = _export(node, call, g.opset)
    return _inline(g, node, g.translations[key], call.input_values(g))


def delegate_one(g: OnnxGraph) -> str:
    """Delegate the node being emitted, which has one result."""
    value = delegate(g, g.node)
    assert isinstance(value, str)
    return value


def _evaluated(g: OnnxGraph, node: fx.Node) -> Value:
    result = node.target(*node.args, **{**node.kwargs, **_on_cpu(node.kwargs)})  # type: ignore[operator]
    if isinstance(result, Tensor):
        return g.constant(result)
    return tuple(g.constant(part) for part in result)


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"device": "cpu"} if kwargs.get("device") is not None else {}


class _SingleCall(nn.Module):
    """A module that makes one call; what is not constant in the call's arguments is its input."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.call = node
        self.inputs = list(node.all_input_nodes)

    def forward(self, *values: Tensor) -> Any:
        known = dict(zip(self.inputs, values, strict=True))

        def value_of(node: fx.Node) -> Any:
            is_tensor = isinstance(node.meta["val"], Tensor)
            return known[node] if is_tensor else known[node].shape[0]

        args, kwargs = fx.map_arg((self.call.args, {**self.call.kwargs, **_on_cpu(self.call.kwargs)}), value_of)
        assert callable(self.call.target)
        result = self.call.target(*args, **kwargs)
        return tuple(result) if isinstance(result, (tuple, list)) else result

    def signature(self) -> str:
        """Describe the call so that two with the same description have the same translation."""
        numbers = {node: number for number, node in enumerate(self.inputs)}

        def describe(node: fx.Node) -> str:
            fake = node.meta["val"]
            return f"#{numbers[node]} {fake.dtype} {tuple(fake.shape)}" if isinstance(fake, Tensor) else f"#{fake}"

        return str((self.call.target, *fx.map_arg((self.call.args, self.call.kwargs), describe)))

    def examples(self) -> tuple[Tensor, ...]:
        """Make an input of the right shape and dtype for each, with the sizes seen at capture."""
        return tuple(_example(self.call, node) for node in self.inputs)

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """List, for each input, its dynamic dimensions."""
        return tuple(dict.fromkeys(dims, Dim.AUTO) for dims in self.dynamic_dims())

    def dynamic_dims(self) -> list[list[int]]:
        """List the dimensions of each input that are no plain ints."""
        fakes = [node.meta["val"] for node in self.inputs]
        shapes: list[Any] = [fake.shape if isinstance(fake, Tensor) else [fake] for fake in fakes]
        return [[dim for dim, size in enumerate(shape) if not isinstance(size, int)] for shape in shapes]

    def input_values(self, g: OnnxGraph) -> list[str]:
        """Name the ONNX value of each input; a symbolic integer n is a tensor of n elements."""
        return [
            g.value(node) if isinstance(node.meta["val"], Tensor) else g.op("ConstantOfShape", node)
            for node in self.inputs
        ]


def _example(call: fx.Node, node: fx.Node) -> Tensor:
    fake = node.meta["val"]
    if isinstance(fake, Tensor):
        return torch.zeros([_hint(call, size) for size in fake.shape], dtype=fake.dtype)
    if isinstance(fake, (int, torch.SymInt)):
        return torch.zeros(_hint(call, fake))
    raise UnsupportedOpError(f"{where(call)} takes a number computed from sizes, which torch.onnx cannot. {CURE}")


def _hint(call: fx.Node, size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    if not size.node.has_hint():
        raise UnsupportedOpError(
            f"{where(call)} takes a size that depends on the data, which torch.onnx cannot. {CURE}"
        )
    hint = size.node.hint
    assert isinstance(hint, int)
    return hint


def _export(node: fx.Node, call: _SingleCall, opset: int) -> onnx.ModelProto:
    examples = call.examples()
    try:
        with _silent():
            program = torch.onnx.export(
                call,
                examples,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=(call.dynamic_shapes(),),
                verbose=False,
                optimize=True,
            )
    except Exception as error:
        raise UnsupportedOpError(
            f"{where(node)} has no rule, and torch.onnx cannot translate it either: {_reason(error)} {CURE}"
        ) from error
    assert program is not None
    model = inliner.inline_local_functions(program.model_proto)
    _check(node, call, model, opset)
    return model


def _reason(error: BaseException) -> str:
    """Return the first line of the error below all those that only pass it on."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith(".") else f"{text}."


def _check(node: fx.Node, call: _SingleCall, model: onnx.ModelProto, opset: int) -> None:
    """Refuse what the exporter made for fixed sizes, for another opset, or with ops of its own."""
    imports = {entry.domain: entry.version for entry in model.opset_import}
    foreign = {child.domain for child in model.graph.node} - {"", "ai.onnx", CONTRIB}
    if imports.get("") != opset or foreign:
        raise UnsupportedOpError(f"{where(node)} has no rule; torch.onnx translates it to {imports}. {CURE}")
    for value, dims in zip(model.graph.input, call.dynamic_dims(), strict=True):
        fixed = [dim for dim in dims if value.type.tensor_type.shape.dim[dim].HasField("dim_value")]
        if fixed:
            raise UnsupportedOpError(
                f"{where(node)} has no rule, and torch.onnx translates it only for fixed sizes. "
                f"Capture without dynamic dimensions. {CURE}"
            )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's progress lines, warnings and log records off the console."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _inline(g: OnnxGraph, node: fx.Node, model: onnx.ModelProto, inputs: list[str]) -> Value:
    """Add the nodes and weights of a model to the graph, under names that begin with the node's."""
    names = {value.name: name for value, name in zip(model.graph.input, inputs, strict=True)}
    for tensor in model.graph.initializer:
        names[tensor.name] = g.unique(f"{node.name}.{tensor.name}")
        g.initializers[names[tensor.name]] = _array(tensor)
    for child in model.graph.node:
        g.nodes.append(_renamed(g, node, child, names))
        g.domains.add(child.domain)
    results = tuple(names[value.name] for value in model.graph.output)
    return results if isinstance(node.meta["val"], (tuple, list)) else results[0]


def _array(tensor: onnx.TensorProto) -> Any:
    if tensor.data_type == ONNX_TYPE[torch.bfloat16]:
        return torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.bfloat16).reshape(tuple(tensor.dims))
    return numpy_helper.to_array(tensor)


def _renamed(g: OnnxGraph, node: fx.Node, child: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(child)
    for name in child.output:
        names.setdefault(name, g.unique(f"{node.name}.{name}") if name else "")
    copy.input[:] = [names[name] if name else "" for name in child.input]
    copy.output[:] = [names[name] for name in child.output]
    copy.name = copy.output[0]
    for attribute in copy.attribute:
        if attribute.HasField("g"):
            _rename_body(g, node, attribute.g, dict(names))
    return copy


def _rename_body(g: OnnxGraph, node: fx.Node, body: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename inside of a subgraph, which also sees the names around it."""
    for value in [*body.input, *body.initializer]:
        names[value.name] = g.unique(f"{node.name}.{value.name}")
        value.name = names[value.name]
    children = [_renamed(g, node, child, names) for child in body.node]
    del body.node[:]
    body.node.extend(children)
    for value in body.output:
        value.name = names[value.name]


__all__ = ["delegate", "delegate_one"]
