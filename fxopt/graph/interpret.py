"""Run a Program node by node: look at every value, compare two Programs, and keep little in memory.

A value is dropped after its last use. Gradients are not recorded; call `program.module` for those.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import DataError
from fxopt.graph.memory import Trimmer
from fxopt.graph.program import Program
from fxopt.graph.rewrite import get_attribute

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
    if len(inputs) != len(program.inputs):
        raise DataError(f"The Program takes {len(program.inputs)} tensors, got {len(inputs)}.")
    program.check_inputs(tuple(inputs))
    names = {node.name for node in program.graph.nodes}
    if stop_after is not None and stop_after not in names:
        raise DataError(f"There is no node '{stop_after}' to stop after; the last ones are {sorted(names)[-5:]}.")
    dead: defaultdict[Step, list[fx.Node]] = defaultdict(list)
    last_read = {node: step for step in steps for node in step.reads}
    for node, last in last_read.items():
        dead[last].append(node)
    values: Values = dict(zip(program.placeholders, inputs, strict=True))
    trimmer = Trimmer()
    with torch.no_grad():
        for node, value in values.items():
            _look(observe, node, value)
            if node.name == stop_after:
                return (value,)
        for step in steps:
            values[step.node] = step.compute(values)
            if step.node.op == "output":
                break
            _look(observe, step.node, values[step.node])
            if step.node.name == stop_after:
                return (values[step.node],)
            for node in dead[step]:
                values.pop(node, None)
            trimmer.made_one(values.get(step.node))
    return tuple(values[program.output_node])


def _look(observe: Observe | None, node: fx.Node, value: Any) -> None:
    if observe is not None and node.op != "get_attr":
        observe(node, value)


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

    `left` is the reference. Nodes correspond by name, where shape and dtype kind agree; `names` restricts them. All
    values of `left` that are compared are in memory at once.
    """
    shared = {node.name for node in right.graph.nodes if node.op == "call_function"}
    if names is not None:
        shared &= set(names)
    reference: dict[str, Tensor] = {}
    ratios: dict[str, float] = {}

    def keep(node: fx.Node, value: Any) -> None:
        if node.name in shared and isinstance(value, Tensor):
            reference[node.name] = value

    def measure(node: fx.Node, value: Any) -> None:
        expected = reference.pop(node.name, None)
        if isinstance(value, Tensor) and expected is not None and _comparable(expected, value):
            ratios[node.name] = sqnr(expected, value)

    run(left, inputs, keep)
    run(right, inputs, measure)
    return ratios


def _comparable(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and left.is_floating_point() == right.is_floating_point()


def sqnr(reference: Tensor, value: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio 10·log10(Σ reference² / Σ (reference − value)²), in dB.

    Infinite where the two are equal; positions where both are NaN or the same infinity count as equal. NaN where one
    alone is NaN.
    """
    left, right = reference.detach().double(), value.detach().double()
    equal = (left == right) | (left.isnan() & right.isnan())
    error = (left - right)[~equal].square().sum().item()
    power = left[left.isfinite()].square().sum().item()
    if error == 0 or math.isnan(error):
        return math.inf if error == 0 else math.nan
    return 10 * math.log10(power / error) if power > 0 and math.isfinite(error) else -math.inf
