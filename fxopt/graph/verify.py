"""What every Program satisfies, as a table of statements, and verify(), which checks them.

A pass may rely on a valid Program and must leave one; a Pipeline verifies between passes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from fxopt.errors import VerifyError, where
from fxopt.graph.blocks import dequantize_blocks
from fxopt.graph.learned import learned_fake_quantize
from fxopt.graph.lift import symbolic
from fxopt.graph.ops import dequantize, fake_quantize, quantize
from fxopt.graph.printer import excerpt
from fxopt.graph.program import Program, TensorSpec
from fxopt.graph.rewrite import argument, constant, fake_value, get_attribute, same_metadata


@dataclass(frozen=True)
class Violation:
    """Why a statement does not hold, and at which node (None: at no single one)."""

    reason: str
    node: fx.Node | None = None


QUANTIZING = (quantize, dequantize, fake_quantize, learned_fake_quantize)
Predicate = Callable[[Program], Violation | None]


def verify(program: Program, *, full: bool = False) -> Program:
    """Return the Program if every invariant holds.

    `full` also recomputes every fake tensor and compares it with the stored one, which takes about as long as a
    capture. Raises VerifyError with each broken statement, the reason, and the nodes around the place.
    """
    broken = []
    for statement, predicate in INVARIANTS + (EXPENSIVE_INVARIANTS if full else ()):
        violation = predicate(program)
        if violation is not None:
            broken.append(_describe(program, statement, violation))
    if broken:
        last = f" after {program.history[-1]}" if program.history else ""
        raise VerifyError(f"The Program{last} is not valid.\n" + "\n".join(broken))
    return program


def _describe(program: Program, statement: str, violation: Violation) -> str:
    text = f"* {statement}: {violation.reason}"
    if violation.node is None or violation.node.graph is not program.graph:
        return text
    return f"{text}\n  at {where(violation.node)}\n{excerpt(program, violation.node)}"


def _lint(program: Program) -> Violation | None:
    try:
        program.graph.lint()
    except Exception as error:
        return Violation(str(error).splitlines()[0])
    outputs = program.graph.find_nodes(op="output")
    if len(outputs) != 1:
        return Violation(f"it has {len(outputs)} output nodes")
    return None


@functools.cache
def _is_mutable(op: Any) -> bool:
    return isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable


def _opcodes(program: Program) -> Violation | None:
    for node in program.graph.nodes:
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            return Violation(f"{node.op} is none of them", node)
    return None


def _functional(program: Program) -> Violation | None:
    for node in program.graph.nodes:
        if node.op == "call_function" and _is_mutable(node.target):
            return Violation(f"{node.target} changes one of its arguments", node)
    return None


def _attributes_exist(program: Program) -> Violation | None:
    for node in program.graph.find_nodes(op="get_attr"):
        try:
            value = get_attribute(program.module, str(node.target))
        except AttributeError:
            return Violation(f"the module holds no '{node.target}'", node)
        if not isinstance(value, (Tensor, fx.GraphModule)):
            return Violation(f"'{node.target}' is a {type(value).__name__}", node)
        fake = node.meta.get("val")
        if isinstance(value, Tensor) and isinstance(fake, Tensor) and not _same_kind(value, fake):
            return Violation(f"'{node.target}' is {_kind(value)}, its node says {_kind(fake)}", node)
    return None


def _same_kind(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and tuple(left.shape) == tuple(right.shape)


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _nothing_dangles(program: Program) -> Violation | None:
    read = {str(node.target) for node in program.graph.find_nodes(op="get_attr")}
    held = [name for name, _ in program.module.named_parameters(remove_duplicate=False)]
    held += [name for name, _ in program.module.named_buffers(remove_duplicate=False)]
    for name in held:
        if name not in read and not any(name.startswith(f"{prefix}.") for prefix in read):
            return Violation(f"no node reads '{name}'")
    return None


def _values_known(program: Program) -> Violation | None:
    for node in program.graph.nodes:
        if type(node.meta.get("val")) is FakeTensor or node.op == "output" or _is_region(program, node):
            continue
        if "val" not in node.meta:
            return Violation("it has no meta['val']", node)
        if any(type(leaf) in (Tensor, nn.Parameter) for leaf in pytree.tree_leaves(node.meta["val"])):
            return Violation("its meta['val'] is a real tensor", node)
    return None


def _is_region(program: Program, node: fx.Node) -> bool:
    """Say whether a node reads a submodule, the body of a higher-order op."""
    return node.op == "get_attr" and isinstance(getattr(program.module, str(node.target), None), fx.GraphModule)


def _misfit(program: Program, spec: TensorSpec, value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return f"'{spec.name}' is {type(value).__name__}, no tensor"
    actual = TensorSpec(spec.name, value.dtype, tuple(symbolic(size, program.dims) for size in value.shape))
    return None if actual == spec else f"the spec is {spec}, the node gives {actual}"


def _inputs_fit(program: Program) -> Violation | None:
    nodes = program.placeholders
    if len(nodes) != len(program.inputs):
        return Violation(f"{len(nodes)} placeholders for {len(program.inputs)} input specs")
    for spec, node in zip(program.inputs, nodes, strict=True):
        if reason := _misfit(program, spec, node.meta.get("val")):
            return Violation(reason, node)
    return None


def _outputs_fit(program: Program) -> Violation | None:
    values = program.output_node.args[0]
    if not isinstance(values, (tuple, list)):
        return Violation(f"the output node holds {values!r}, no tuple", program.output_node)
    if len(values) != len(program.outputs):
        return Violation(f"{len(values)} values for {len(program.outputs)} output specs", program.output_node)
    for spec, value in zip(program.outputs, values, strict=True):
        fake = value.meta.get("val") if isinstance(value, fx.Node) else value
        if spec is None and isinstance(fake, Tensor):
            return Violation(f"{value} is a tensor without a spec", program.output_node)
        if spec is not None and (reason := _misfit(program, spec, fake)):
            return Violation(reason, value if isinstance(value, fx.Node) else program.output_node)
    return None


def _names_unique(program: Program) -> Violation | None:
    for kind, specs in (("inputs", program.inputs), ("outputs", program.outputs)):
        names = [spec.name for spec in specs if spec is not None]
        if len(set(names)) != len(names):
            return Violation(f"two {kind} are named '{next(n for n in names if names.count(n) > 1)}'")
    return None


def _quantization(program: Program) -> Violation | None:
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in QUANTIZING:
            for reason in _quantization_problems(program, node):
                return Violation(reason, node)
    return None


def _quantization_problems(program: Program, node: fx.Node) -> Iterator[str]:
    x, scale, zero_point = node.args[0], argument(node, "scale"), argument(node, "zero_point")
    assert isinstance(x, fx.Node)
    shape, axis = x.meta["val"].shape, argument(node, "axis")
    if axis is not None and not -len(shape) <= axis < len(shape):
        yield f"axis {axis} of a tensor with {len(shape)} dimensions"
        return
    wanted = () if axis is None else (shape[axis],)
    for name, parameter in (("scale", scale), ("zero_point", zero_point)):
        if str(tuple(parameter.meta["val"].shape)) != str(wanted):
            yield f"{name} has the shape {tuple(parameter.meta['val'].shape)} instead of {wanted} (axis={axis})"
    steps = constant(program.module, scale)
    if steps is not None and not bool((steps.isfinite() & (steps > 0)).all()):
        yield f"scale '{scale.target}' is not positive and finite everywhere"
    low, high = _integer_range(node, x)
    if node.target is quantize:
        info = torch.iinfo(argument(node, "dtype"))
        if not info.min <= low <= high <= info.max:
            yield f"the range [{low}, {high}] does not lie inside {info.dtype}"
    zero = constant(program.module, zero_point)
    if zero is not None and not bool(((zero >= low) & (zero <= high)).all()):
        yield f"zero_point '{zero_point.target}' lies outside of [{low}, {high}]"


def _integer_range(node: fx.Node, x: fx.Node) -> tuple[int, int]:
    if node.target is dequantize:
        info = torch.iinfo(x.meta["val"].dtype)
        return info.min, info.max
    return argument(node, "quant_min"), argument(node, "quant_max")


def _blocks(program: Program) -> Violation | None:
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is dequantize_blocks:
            for reason in _block_problems(program, node):
                return Violation(reason, node)
    return None


def _block_problems(program: Program, node: fx.Node) -> Iterator[str]:
    names = ("q", "scale", "zero_point", "axis", "block_size", "bits")
    q, scale, zero_point, axis, block_size, bits = (argument(node, name) for name in names)
    shape = list(q.meta["val"].shape)
    if bits not in (2, 4, 8) or block_size < 1 or not -len(shape) <= axis < len(shape):
        yield f"{bits} bits in blocks of {block_size} along axis {axis} of a tensor with {len(shape)} dimensions"
        return
    shape[axis] = -(-shape[axis] // block_size)
    for name, parameter in (("scale", scale), ("zero_point", zero_point)):
        if parameter is not None and list(parameter.meta["val"].shape) != shape:
            yield f"{name} has the shape {list(parameter.meta['val'].shape)} instead of {shape}"
    for name, parameter in (("q", q), ("zero_point", zero_point)):
        values = constant(program.module, parameter)
        if values is not None and values.numel() and int(values.max()) >= 1 << bits:
            yield f"{name} '{parameter.target}' holds {int(values.max())}, which {bits} bits cannot"
    steps = constant(program.module, scale)
    if steps is not None and not bool((steps.isfinite() & (steps > 0)).all()):
        yield f"scale '{scale.target}' is not positive and finite everywhere"


def _history(program: Program) -> Violation | None:
    for name in ("history", "notes"):
        entries = getattr(program, name)
        if not isinstance(entries, tuple) or not all(isinstance(entry, str) for entry in entries):
            return Violation(f"{name} is {entries!r}")
    return None


def _call_structure(program: Program) -> Violation | None:
    leaves = len(program.inputs) + len(program.constants)
    if program.in_spec.num_leaves != leaves:
        return Violation(f"a call has {program.in_spec.num_leaves} leaves, inputs and constants are {leaves}")
    if program.out_spec.num_leaves != len(program.outputs):
        return Violation(f"a result has {program.out_spec.num_leaves} leaves, outputs are {len(program.outputs)}")
    return None


def _values_agree(program: Program) -> Violation | None:
    mode = program.fake_mode
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        try:
            value = fake_value(node, mode)
        except Exception as error:
            return Violation(f"the op rejects its arguments: {str(error).splitlines()[0]}", node)
        if not same_metadata(value, node.meta["val"]) and not _is_data_dependent(value):
            return Violation(f"computed {value}, stored {node.meta['val']}", node)
    return None


def _is_data_dependent(value: Any) -> bool:
    """Say whether a fake value has a size that depends on data: each computation names such a size anew."""
    leaves = pytree.tree_leaves(value)
    text = " ".join(str(tuple(leaf.shape)) if isinstance(leaf, Tensor) else str(leaf) for leaf in leaves)
    return re.search(r"\b(u|zuf)\d+\b", text) is not None


def _taps(program: Program) -> Violation | None:
    for tap in program.taps:
        for position in (tap.student, tap.teacher):
            if isinstance(position, int) and not 0 <= position < len(program.outputs):
                return Violation(f"tap '{tap.name}' reads output {position} of {len(program.outputs)}")
    return None


INVARIANTS: tuple[tuple[str, Predicate], ...] = (
    ("the graph passes fx's own lint and has one output node", _lint),
    ("nodes are placeholder, get_attr, call_function or output", _opcodes),
    ("no op changes its arguments", _functional),
    ("every get_attr reads a tensor of the shape and dtype it says", _attributes_exist),
    ("every tensor of the module is read", _nothing_dangles),
    ("every value has its fake tensor", _values_known),
    ("the placeholders fit the input specs", _inputs_fit),
    ("the outputs fit the output specs", _outputs_fit),
    ("the names of inputs are unique, and those of outputs", _names_unique),
    ("quantize and dequantize have fitting scales, zero points and ranges", _quantization),
    ("weights in blocks have fitting scales and zero points, and values of their bits", _blocks),
    ("history and notes are tuples of str", _history),
    ("the call structure has the leaves that the specs describe", _call_structure),
    ("taps read outputs", _taps),
)
EXPENSIVE_INVARIANTS: tuple[tuple[str, Predicate], ...] = (
    ("the stored fake tensors are those the ops compute", _values_agree),
)
