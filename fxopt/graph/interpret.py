"""Run a Program node by node: look at every value, compare two Programs, and keep little in memory.

A value is dropped after its last use. Gradients are not recorded; call `program.module` for those.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import DataError
from fxopt.graph.memory import Trimmer
from fxopt.graph.program import Program
from fxopt.graph.rewrite import get_attribute

CHUNK = 2**20  # elements that are compared at once: in float64, and several times over

Observe = Callable[[fx.Node, Any], None]
Values = dict[fx.Node, Any]


@dataclass(frozen=True)
class Step:
    """One value to compute: `compute` reads those of `reads` and returns that of `node`."""

    node: fx.Node
    reads: tuple[fx.Node, ...]
    compute: Callable[[Values], Any]


def run(
    program: Program, inputs: Sequence[Tensor], observe: Observe | None = None, stop_after: str | None = None
) -> tuple[Any, ...]:
    """Run on tensor inputs in order (see Program.flatten); returns the flat outputs.

    `observe(node, value)` is called with every value as it is made, that of inputs and of called ops. `stop_after`
    names a node: the run ends there and returns its value alone. Raises DataError for inputs that do not fit.
    """
    steps = [step_of(program, node) for node in program.graph.nodes if node.op != "placeholder"]
    return run_steps(program, steps, inputs, observe, stop_after)


def step_of(program: Program, node: fx.Node) -> Step:
    """Return the step that computes a node as the graph says."""

    def compute(values: Values) -> Any:
        if node.op == "get_attr":
            return get_attribute(program.module, str(node.target))
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "output":
            return args[0]
        assert callable(node.target)
        return node.target(*args, **kwargs)

    return Step(node, tuple(node.all_input_nodes), compute)


def run_steps(
    program: Program, steps: Sequence[Step], inputs: Sequence[Tensor], observe: Observe | None, stop_after: str | None
) -> tuple[Any, ...]:
    """Run steps in order, dropping each value after the last step that reads it."""
    names = {node.name for node in program.graph.nodes}
    if stop_after is not None and stop_after not in names:
        raise DataError(f"There is no node '{stop_after}' to stop after; the last ones are {sorted(names)[-5:]}.")
    for node, value in walk_steps(program, steps, inputs):
        if node.op == "output":
            return tuple(value)
        if observe is not None and node.op != "get_attr":
            observe(node, value)
        if node.name == stop_after:
            return (value,)
    raise AssertionError("a Program has an output")


def walk_steps(program: Program, steps: Sequence[Step], inputs: Sequence[Tensor]) -> Iterator[tuple[fx.Node, Any]]:
    """Yield each node with its value as it is made, inputs and output included; each is dropped after its last use.

    Raises DataError for inputs that do not fit.
    """
    if len(inputs) != len(program.inputs):
        raise DataError(f"The Program takes {len(program.inputs)} tensors, got {len(inputs)}.")
    program.check_inputs(tuple(inputs))
    dead: defaultdict[Step, list[fx.Node]] = defaultdict(list)
    last_read = {node: step for step in steps for node in step.reads}
    for node, last in last_read.items():
        dead[last].append(node)
    values: Values = dict(zip(program.placeholders, inputs, strict=True))
    trimmer = Trimmer()
    yield from list(values.items())
    for step in steps:
        with torch.no_grad():  # not around the yield: the caller would be in it
            values[step.node] = step.compute(values)
        yield step.node, values[step.node]
        for node in dead[step]:
            values.pop(node, None)
        trimmer.made_one(values.get(step.node))


def run_together(program: Program, items: Sequence[Sequence[Tensor]]) -> list[tuple[Any, ...]]:
    """Run on several items side by side, node after node; returns the flat outputs of each.

    What no input reaches, such as a weight that is dequantized, is computed once, and all items share it. More is in
    memory than when one runs after the other: the values of all items that are needed at a time.
    """
    for item in items:
        program.check_inputs(tuple(item))
    dead, shared = last_reads(program), same_for_all(program)
    lanes: list[Values] = [dict(zip(program.placeholders, item, strict=True)) for item in items]
    trimmer = Trimmer()
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                continue
            compute_together(lanes, node, step_of(program, node).compute, node in shared)
            if node.op == "output":
                break
            for values in lanes:
                for source in dead.get(node, ()):
                    values.pop(source, None)
                trimmer.made_one(values.get(node))
    return [tuple(values[program.output_node]) for values in lanes]


def compute_together(
    lanes: Sequence[dict[fx.Node, Any]], node: fx.Node, compute: Callable[[dict[fx.Node, Any]], Any], is_same: bool
) -> None:
    """Compute a node for each item, given the values that were computed before it; once if it is the same for all."""
    for number, values in enumerate(lanes):
        values[node] = lanes[0][node] if is_same and number else compute(values)


def same_for_all(program: Program) -> set[fx.Node]:
    """Return the nodes that no input reaches: their values are the same whatever the inputs."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op in ("get_attr", "call_function") and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def last_reads(program: Program) -> dict[fx.Node, list[fx.Node]]:
    """Return for each node the values that nothing reads after it."""
    dead: defaultdict[fx.Node, list[fx.Node]] = defaultdict(list)
    last = {source: node for node in program.graph.nodes for source in node.all_input_nodes}
    for source, reader in last.items():
        dead[reader].append(source)
    return dead


def node_values(program: Program, inputs: Sequence[Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return the values of the named nodes, by name. Raises DataError for a name that no tensor node has."""
    found: dict[str, Tensor] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if node.name in names and isinstance(value, Tensor):
            found[node.name] = value

    run(program, inputs, keep)
    missing = sorted(set(names) - set(found))
    if missing:
        raise DataError(f"No tensor node is named {', '.join(missing)}.")
    return {name: found[name] for name in names}


def compare(
    left: Program, right: Program, inputs: Sequence[Tensor], names: Collection[str] | None = None
) -> dict[str, float]:
    """Return the signal-to-noise ratio in dB of each node that both Programs have, by name, in `right`'s order.

    `left` is the reference. Nodes correspond by name, where shape and dtype kind agree; `names` restricts them.
    """
    shared = {node.name for node in right.graph.nodes if node.op == "call_function"}
    shared &= {node.name for node in left.graph.nodes}
    if names is not None:
        shared &= set(names)
    pairs = walk_pairs(left, right, inputs, {name: name for name in shared})
    return {name: sqnr(expected, value) for name, expected, value in pairs if _comparable(expected, value)}


def walk_pairs(
    left: Program, right: Program, inputs: Sequence[Tensor], pairs: Mapping[str, str]
) -> Iterator[tuple[str, Any, Any]]:
    """Run two Programs in step; yield (name in `left`, value there, value in `right`) of corresponding nodes.

    `pairs` maps names of `right` to names of `left`; the order is that of `right`. A value of `left` is kept until
    that of `right` is there: few at once, where the order of both is about the same.
    """
    awaited = set(pairs.values())
    reference = ((node.name, value) for node, value in _walk(left, inputs) if node.name in awaited)
    waiting: dict[str, Any] = {}
    for node, value in _walk(right, inputs):
        name = pairs.get(node.name)
        if name is None:
            continue
        while name not in waiting:
            waiting.update([next(reference)])
        yield name, waiting.pop(name), value


def _walk(program: Program, inputs: Sequence[Tensor]) -> Iterator[tuple[fx.Node, Any]]:
    steps = [step_of(program, node) for node in program.graph.nodes if node.op != "placeholder"]
    return walk_steps(program, steps, inputs)


def _comparable(left: Any, right: Any) -> bool:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return False
    return left.shape == right.shape and left.is_floating_point() == right.is_floating_point()


def sqnr(reference: Tensor, value: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio 10·log10(Σ reference² / Σ (reference − value)²), in dB.

    Infinite where the two are equal; positions where both are NaN or the same infinity count as equal. NaN where one
    alone is NaN.
    """
    power = error = 0.0
    flat = (torch.split(tensor.detach().reshape(-1), CHUNK) for tensor in (reference, value))
    for left, right in zip(*flat, strict=True):
        left, right = left.double(), right.double()
        more = _squares(left - right)
        if not math.isfinite(more):
            equal = (left == right) | (left.isnan() & right.isnan())
            more, left = _squares((left - right)[~equal]), left[left.isfinite()]
        error += more
        power += _squares(left)
    if error == 0 or math.isnan(error):
        return math.inf if error == 0 else math.nan
    return 10 * math.log10(power / error) if power > 0 and math.isfinite(error) else -math.inf


def _squares(values: Tensor) -> float:
    return float(values @ values)


def relative_noise(expected: Sequence[Any], actual: Sequence[Any]) -> float:
    """Return the power of the error over the power of the expected values, summed over outputs."""
    total = 0.0
    for left, right in zip(expected, actual, strict=True):
        if isinstance(left, Tensor) and left.is_floating_point():
            exact, found = left.detach().double(), right.detach().double()
            total += float((exact - found).square().sum()) / max(float(exact.square().sum()), 1e-30)
    return total


def widened(value: Any) -> Any:
    """Return a float32 tensor in float64, anything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.dtype is torch.float32 else value
