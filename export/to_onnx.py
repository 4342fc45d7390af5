"""Program -> ONNX: one walk over the graph, one rule an op, and a file that is written whole or not at all.

Node names are the fx node names; inputs, outputs and dynamic dimensions carry the names of the specs. An op without a
rule is delegated alone to torch.onnx's exporter and inlined.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, fx

from fxopt.errors import ExportError, FxoptError, TargetError, where
from fxopt.export.builder import CONTRIB, ONNX_TYPE, OnnxGraph, Value
from fxopt.export.delegate import delegate
from fxopt.export.lower import lower
from fxopt.export.model_file import OnnxModel
from fxopt.export.onnx_rules import ONNX_RULES
from fxopt.graph.batch_norm_factor import batch_norm_factor
from fxopt.graph.learned import learned_fake_quantize
from fxopt.graph.program import Program, TensorSpec
from fxopt.graph.tracked import tracked_grid, weight_grid
from fxopt.target import OPSETS, Target, find_target
from fxopt.version import __version__

IR_VERSION = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
DEFAULT_OPSET = 21
ATTENTION_OPSET = 23
# What quantization-aware training puts in for a while.
FOR_TRAINING = (batch_norm_factor, learned_fake_quantize, tracked_grid, weight_grid)


def to_onnx(
    program: Program,
    path: str | Path | None = None,
    *,
    target: str | Target = "portable",
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> OnnxModel:
    """Emit a Program as ONNX, and write it to `path` if one is given.

    `opset` is 18 to 23; by default 21, or 23 where the Program holds a whole attention and the target runs that well.
    Weights beyond 2 GB go to `path` + ".data". The file appears only once it is complete.

    Raises ExportError, TargetError, or UnsupportedOpError for an op that neither fxopt nor torch.onnx can express.
    """
    if program.taps:
        raise ExportError("The Program has a teacher attached; export the student: DetachTeacher()(program).")
    for node in program.graph.nodes:
        if node.target in FOR_TRAINING:
            raise ExportError(f"{where(node)} is there to train: run FoldRestoredBatchNorm and FixScales first.")
    found = find_target(target)
    program = lower(program.eval(), found)
    version = _choose_opset(program, found, opset)
    graph = OnnxGraph(program, version, found)
    inputs, outputs = _boundary_specs(graph)
    _emit_nodes(graph)
    _emit_outputs(graph, outputs)
    result = _assemble(graph, inputs, outputs, {"fxopt.target": found.name, **(metadata or {})})
    if path is not None:
        result.write(Path(path))
    return result


def _choose_opset(program: Program, target: Target, opset: int | None) -> int:
    if opset is not None:
        if opset not in OPSETS:
            raise TargetError(f"Opset {opset} is not supported; choose {OPSETS.start} to {OPSETS.stop - 1}.")
        return opset
    attention = torch.ops.aten.scaled_dot_product_attention.default
    has_attention = any(node.target is attention for node in program.graph.nodes)
    return ATTENTION_OPSET if has_attention and target.attention else DEFAULT_OPSET


def _boundary_specs(graph: OnnxGraph) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Reserve the user's names of inputs and outputs, before any node takes one.

    An output that is named as an input gets a number behind its name.
    """
    inputs = [replace(spec, name=graph.unique(spec.name)) for spec in graph.program.inputs]
    for spec, node in zip(inputs, graph.program.placeholders, strict=True):
        graph.values[node] = spec.name
    return inputs, [replace(spec, name=graph.unique(spec.name)) for spec in graph.program.outputs if spec is not None]


def _emit_nodes(graph: OnnxGraph) -> None:
    graph.emit_symbolic = lambda node: emit_node(graph, node)
    for node in graph.program.graph.nodes:
        if node.op == "call_function" and _holds_tensor(node):
            emit_node(graph, node)


def _holds_tensor(node: fx.Node) -> bool:
    value = node.meta["val"]
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value))


def emit_node(graph: OnnxGraph, node: fx.Node) -> Value:
    """Emit one call by its rule, or delegated; the ONNX value and node that end it get the fx node's name."""
    outer, graph._node = graph._node, node
    first = len(graph.nodes)
    try:
        value = _apply_rule(graph, node)
    finally:
        graph._node = outer
    is_own = not any(graph.values.get(source) == value for source in node.all_input_nodes)
    if isinstance(value, str) and len(graph.nodes) > first and is_own:
        value = _name_result(graph, node, value, first)
    graph.values[node] = value
    return value


def _apply_rule(graph: OnnxGraph, node: fx.Node) -> Value:
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        parts = graph.values[node.args[0]]
        assert isinstance(parts, tuple) and isinstance(node.args[1], int)
        return parts[node.args[1]]
    rule = ONNX_RULES.get(node.target)
    if rule is None:
        return delegate(graph, node)
    try:
        return rule(graph, *call_arguments(node))
    except FxoptError:
        raise
    except Exception as error:
        raise ExportError(f"The rule for {where(node)} failed: {type(error).__name__}: {error}") from error


def call_arguments(node: fx.Node) -> list[Any]:
    """List the arguments of a call in the order of its schema, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return list(node.args)
    arguments = []
    for position, parameter in enumerate(node.target._schema.arguments):
        if parameter.name in node.kwargs:
            arguments.append(node.kwargs[parameter.name])
        else:
            arguments.append(node.args[position] if position < len(node.args) else parameter.default_value)
    return arguments


def _name_result(graph: OnnxGraph, node: fx.Node, value: str, first: int) -> str:
    """Rename the value a rule made to the fx node's name (it is nobody's input yet outside of this rule)."""
    made = graph.nodes[first:]
    maker = next((n for n in made if value in n.output), None)
    if maker is None:
        return value
    name = graph.unique(node.name)
    for other in made:
        other.input[:] = [name if entry == value else entry for entry in other.input]
    maker.output[:] = [name if entry == value else entry for entry in maker.output]
    maker.name = name
    return name


def _emit_outputs(graph: OnnxGraph, specs: list[TensorSpec]) -> None:
    """Give the values that are outputs their names; one that has a name already is passed through an Identity."""
    values = graph.program.output_node.args[0]
    assert isinstance(values, tuple)
    nodes = [node for node, spec in zip(values, graph.program.outputs, strict=True) if spec is not None]
    made = {name for node in graph.nodes for name in node.output}
    for spec, node in zip(specs, nodes, strict=True):
        assert isinstance(node, fx.Node)
        graph._node = node
        value = graph.value(node)
        if value in made:
            _rename_value(graph, value, spec.name)
            made.remove(value)
        else:
            graph.nodes.append(helper.make_node("Identity", [value], [spec.name], name=f"{spec.name}.Identity"))


def _rename_value(graph: OnnxGraph, old: str, new: str) -> None:
    for node in graph.nodes:
        node.input[:] = [new if entry == old else entry for entry in node.input]
        node.output[:] = [new if entry == old else entry for entry in node.output]
    for key, value in graph.values.items():
        if value == old:
            graph.values[key] = new
        elif isinstance(value, tuple):
            graph.values[key] = tuple(new if entry == old else entry for entry in value)


def _assemble(
    graph: OnnxGraph, inputs: list[TensorSpec], outputs: list[TensorSpec], metadata: Mapping[str, str]
) -> OnnxModel:
    nodes = _live_nodes(graph.nodes, {spec.name for spec in outputs})
    used = {name for node in nodes for name in _read_names(node)}
    imports = [helper.make_opsetid("", graph.opset)]
    if any(node.domain == CONTRIB for node in nodes):
        imports.append(helper.make_opsetid(CONTRIB, 1))
    skeleton = helper.make_model_gen_version(
        helper.make_graph(nodes, "fxopt", list(map(_value_info, inputs)), list(map(_value_info, outputs))),
        opset_imports=imports,
        ir_version=IR_VERSION[graph.opset],
    )
    skeleton.producer_name, skeleton.producer_version = "fxopt", __version__
    history = "\n".join(graph.program.history)
    helper.set_model_props(skeleton, {"fxopt.version": __version__, "fxopt.history": history, **metadata})
    return OnnxModel(
        skeleton,
        weights={name: weight for name, weight in graph.initializers.items() if name in used},
        delegated={op: tuple(nodes) for op, nodes in graph.delegated.items()},
    )


def _live_nodes(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    needed = set(outputs)
    live = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(_read_names(node))
            live.append(node)
    return live[::-1]


def _read_names(node: onnx.NodeProto) -> list[str]:
    """List what a node reads, inside its subgraphs too."""
    names = list(node.input)
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            names += [name for child in inner.node for name in _read_names(child)]
            names += [output.name for output in inner.output]
    return names


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, ONNX_TYPE[spec.dtype], list(spec.shape))
