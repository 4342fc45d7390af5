"""The text of a Program: stable, canonical, and the same however the graph came to be.

    program(x: float32[batch, 3, 8, 8]):
      conv.weight: float32[4, 3, 3, 3]
      %conv2d_1 = conv2d(%x, conv.weight, padding=[1, 1]): float32[batch, 4, 8, 8]
      %relu_1 = relu(%conv2d_1): float32[batch, 4, 8, 8]
      return output=%relu_1: float32[batch, 4, 8, 8]

Calls are numbered per op in graph order, whatever suffixes fx gave them. Tensors come first, under their dotted
names, in order of first use; a 0-dimensional one shows its value, a second name of one tensor the first name.
Arguments that an op's schema requires are positional, the others are named and left out at their defaults.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.lift import symbolic
from fxopt.graph.program import Program
from fxopt.graph.rewrite import get_attribute


def format_program(program: Program) -> str:
    """Write a Program as text, one line a tensor and one line a call."""
    names = canonical_names(program)
    inputs = ", ".join(map(str, program.inputs))
    lines = [f"program({inputs}):", *(f"  {line}" for line in _tensor_lines(program))]
    lines += [f"  {_call_line(program, node, names)}" for node in program.graph.nodes if node.op == "call_function"]
    return "\n".join([*lines, f"  {_return_line(program, names)}"]) + "\n"


def diff(before: Program, after: Program) -> str:
    """Return the unified diff of two Programs' texts; empty if the texts are the same."""
    left, right = (format_program(program).splitlines(keepends=True) for program in (before, after))
    return "".join(difflib.unified_diff(left, right, "before", "after", n=2))


def excerpt(program: Program, node: fx.Node, around: int = 5) -> str:
    """Return the lines of the calls around a node, the node's own marked by an arrow."""
    names = canonical_names(program)
    nodes = [other for other in program.graph.nodes if other.op == "call_function" or other is node]
    position = nodes.index(node)
    shown = nodes[max(0, position - around) : position + around + 1]
    return "\n".join(f"{'->' if other is node else '  '} {format_node(program, other, names)}" for other in shown)


def format_node(program: Program, node: fx.Node, names: dict[fx.Node, str] | None = None) -> str:
    """Return the one line of a node. `names` are its graph's canonical names, where the caller has them."""
    names = names or canonical_names(program)
    if node.op == "output":
        return _return_line(program, names)
    if node.op == "call_function":
        return _call_line(program, node, names)
    return f"{names[node]}: {_value(node.meta.get('val'), program)}"


def canonical_names(program: Program) -> dict[fx.Node, str]:
    """Name every value: `%input`, the dotted name of a tensor, `%op_number` for a call, numbered from 1 per op."""
    count: defaultdict[str, int] = defaultdict(int)
    names = {node: f"%{spec.name}" for node, spec in zip(program.placeholders, program.inputs, strict=False)}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            names[node] = str(node.target)
        elif node.op == "call_function":
            op = re.sub(r"\W", "_", op_name(node.target).split(".")[-1 if isinstance(node.target, str) else 0])
            op = node.target._opname if isinstance(node.target, torch._ops.OpOverload) else op
            count[op] += 1
            names[node] = f"%{op}_{count[op]}"
        else:
            names.setdefault(node, f"%{node.target}")
    return names


def op_name(op: Any) -> str:
    """Spell an op: `conv2d`, `add.Tensor`, `fxopt.quantize`; `aten` and `default` are left out."""
    if isinstance(op, torch._ops.OpOverload):
        overload = "" if op._overloadname == "default" else f".{op._overloadname}"
        return ("" if op.namespace == "aten" else f"{op.namespace}.") + op._opname + overload
    return str(getattr(op, "__name__", op))


def _tensor_lines(program: Program) -> list[str]:
    lines: dict[str, str] = {}
    first_name: dict[int, str] = {}
    used = [source for node in program.graph.nodes for source in node.all_input_nodes if source.op == "get_attr"]
    for node in [*used, *program.graph.find_nodes(op="get_attr")]:
        target = str(node.target)
        if target not in lines:
            lines[target] = f"{target}{_tied(program, target, first_name)}: {_value(node.meta.get('val'), program)}"
            lines[target] += _scalar(program, target)
    return list(lines.values())


def _tied(program: Program, target: str, first_name: dict[int, str]) -> str:
    tensor = _tensor(program, target)
    first = first_name.setdefault(id(tensor), target) if tensor is not None else target
    return "" if first == target else f" = {first}"


def _scalar(program: Program, target: str) -> str:
    tensor = _tensor(program, target)
    if tensor is None or tensor.ndim > 0:
        return ""
    value = tensor.item()
    return f" = {value:.6g}" if isinstance(value, float) else f" = {value}"


def _tensor(program: Program, target: str) -> Tensor | None:
    try:
        tensor = get_attribute(program.module, target)
    except AttributeError:
        return None
    return tensor if isinstance(tensor, Tensor) else None


def _call_line(program: Program, node: fx.Node, names: dict[fx.Node, str]) -> str:
    value = _value(node.meta.get("val"), program)
    if node.target is operator.getitem:
        return f"{names[node]} = {_argument(node.args[0], names)}[{_argument(node.args[1], names)}]: {value}"
    return f"{names[node]} = {op_name(node.target)}({', '.join(_arguments(node, names))}): {value}"


def _return_line(program: Program, names: dict[fx.Node, str]) -> str:
    values = program.output_node.args[0]
    flat = values if isinstance(values, (tuple, list)) else (values,)
    specs = [*program.outputs, *[None] * len(flat)]
    texts = []
    for value, spec in zip(flat, specs, strict=False):
        name, _, kind = str(spec).partition(": ")
        texts.append(_argument(value, names) if spec is None else f"{name}={_argument(value, names)}: {kind}")
    return f"return {', '.join(texts)}"


def _arguments(node: fx.Node, names: dict[fx.Node, str]) -> list[str]:
    if not isinstance(node.target, torch._ops.OpOverload):
        keywords = [f"{name}={_argument(value, names)}" for name, value in node.kwargs.items()]
        return [*(_argument(value, names) for value in node.args), *keywords]
    texts: list[str] = []
    parameters = node.target._schema.arguments
    given = {**{p.name: value for p, value in zip(parameters, node.args, strict=False)}, **node.kwargs}
    for parameter in parameters:
        if parameter.name not in given:
            continue
        value = given[parameter.name]
        if not parameter.has_default_value():
            texts.append(_argument(value, names))
        elif not _is_default(value, parameter.default_value):
            texts.append(f"{parameter.name}={_argument(value, names)}")
    return texts


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, fx.Node) or isinstance(value, bool) != isinstance(default, bool):
        return False
    if isinstance(value, (tuple, list)):
        # A schema such as `int[2] padding=0` holds its default once for all dimensions.
        return list(value) == default or (not isinstance(default, list) and all(v == default for v in value))
    return bool(value == default)


def _argument(value: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return names.get(value, f"%{value.name}")
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_argument(item, names) for item in value)}]"
    if isinstance(value, slice):
        return ":".join("" if v is None else _argument(v, names) for v in (value.start, value.stop, value.step))
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value).removeprefix("torch.")
    return repr(value) if isinstance(value, str) else str(value)


def _value(value: Any, program: Program) -> str:
    """Describe a fake value: dtype[shape] of a tensor, the size itself of a symbolic number."""
    if isinstance(value, Tensor):
        shape = ", ".join(str(symbolic(size, program.dims)) for size in value.shape)
        return f"{str(value.dtype).removeprefix('torch.')}[{shape}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_value(item, program) for item in value)})"
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return str(symbolic(value, program.dims))
    return str(value)
