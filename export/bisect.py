"""Find the first node whose ONNX value differs from the Program's, by binary search over the graph.

An error made by one node is seen in all that follow, so the first bad value is found with few runs: each loads the
model cut off behind one node, without optimisations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import helper
from torch import Tensor, fx

from fxopt.errors import ValidationError
from fxopt.export.builder import ONNX_TYPE
from fxopt.export.compare import compare_output
from fxopt.export.session import Session
from fxopt.graph.interpret import node_values
from fxopt.graph.program import Program


def first_difference(
    model: str | Path, program: Program, inputs: Sequence[Tensor], *, tolerance: float, sqnr: float | None = None
) -> fx.Node | None:
    """Return the first node (in graph order) whose value differs beyond the tolerance; None if none is found."""
    proto = onnx.load(model)
    values = _values_by_node(proto, program)
    low, high = 0, len(values) - 1
    found: fx.Node | None = None
    while low <= high:
        middle = (low + high) // 2
        node, name = values[middle]
        if _differs(proto, program, inputs, node, name, tolerance, sqnr):
            found, high = node, middle - 1
        else:
            low = middle + 1
    return found


def _values_by_node(proto: onnx.ModelProto, program: Program) -> list[tuple[fx.Node, str]]:
    """Pair the nodes that have an ONNX node of their name with the value it makes."""
    made = {node.name: node.output[0] for node in proto.graph.node}
    nodes = [
        node for node in program.graph.nodes if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)
    ]
    return [(node, made[node.name]) for node in nodes if node.name in made]


def _differs(
    proto: onnx.ModelProto,
    program: Program,
    inputs: Sequence[Tensor],
    node: fx.Node,
    name: str,
    tolerance: float,
    sqnr: float | None,
) -> bool:
    reference = node_values(program, tuple(inputs), [node.name])[node.name]
    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    del cut.graph.output[:]
    cut.graph.output.append(helper.make_tensor_value_info(name, ONNX_TYPE[reference.dtype], None))
    try:
        value = Session(cut, level="none")(*inputs)[0]
    except ValidationError:
        return True
    result = compare_output(name, reference, value)
    return result.relative > tolerance if sqnr is None else result.sqnr < sqnr
