"""What a Program computes when the positions to remove hold nothing, and the proof that removing them is the same.

The reference runs the original graph with its original constants. After every op, the positions to remove are set to
zero, so that whatever sums over them reads nothing there. An op that averages over them has no meaning for masked
positions: it is computed on those that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxopt.errors import PassError
from fxopt.graph.interpret import Step, Values, run_steps, step_of, widened
from fxopt.graph.program import TRAINING_ARGUMENT, Program
from fxopt.graph.rewrite import get_attribute
from fxopt.passes.cleanup.purity import is_training
from fxopt.passes.prune.coordinates import Removal
from fxopt.passes.prune.cut import select
from fxopt.passes.prune.rule import Value

BOUND = 1e-5  # of an output's range
Cast = Callable[[Any], Any]


def prove(removal: Removal, result: Program, inputs: Sequence[Tensor]) -> float:
    """Compare a cut Program with the masked original; returns the largest difference, relative to an output's range.

    Some networks amplify the rounding of float32 beyond any bound; then both run in float64. Raises PassError above
    BOUND, naming the output.
    """
    name, worst = _worst(removal, result, inputs, as_it_is)
    if not worst <= BOUND:
        name, worst = _worst(removal, result, inputs, widened)
    if not worst <= BOUND:
        raise PassError(
            f"Output '{name}' of the Program without channels is {worst:.1e} of its range away from the masked "
            f"original, also in float64 (allowed: {BOUND:.0e}); nothing was removed. A row in CHANNEL_RULES is wrong: "
            "please report it. RemoveChannels(keep=...) leaves layers alone."
        )
    return worst


def _worst(removal: Removal, result: Program, inputs: Sequence[Tensor], cast: Cast) -> tuple[str, float]:
    """Return the output with the largest error, and that."""
    program = result.eval()
    steps = [_cast(step_of(program, node), cast) for node in program.graph.nodes if node.op != "placeholder"]
    actual = run_steps(program, steps, inputs, None, None)
    pairs = zip(result.outputs, run_masked(removal, result, inputs, cast), actual, strict=True)
    errors = {spec.name: relative_error(left, right) for spec, left, right in pairs if spec is not None}
    return max(errors.items(), key=lambda item: item[1], default=("", 0.0))


def as_it_is(value: Any) -> Any:
    """Leave a tensor in the precision it has."""
    return value


def _cast(step: Step, cast: Cast) -> Step:
    """Let a step read values that are cast."""

    def compute(values: Values) -> Any:
        return step.compute({source: pytree.tree_map(cast, values[source]) for source in step.reads})

    return Step(step.node, step.reads, compute)


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference relative to the range of `expected`, in float64; infinite for other shapes."""
    if expected.shape != actual.shape:
        return float("inf")
    if not expected.is_floating_point():
        return float("inf") if not torch.equal(expected, actual) else 0.0
    left, right = expected.double().flatten(), actual.double().flatten()
    same = (left == right) | (left.isnan() & right.isnan())
    finite = left[left.isfinite()]
    if len(finite) == 0:
        return float("inf") if len(left) else 0.0  # nothing but NaN proves nothing
    if bool(same.all()):
        return 0.0
    span = max(float(finite.abs().max()), float(finite.max() - finite.min()), 1e-12)
    return float((left - right)[~same].abs().max()) / span


def run_masked(removal: Removal, result: Program, inputs: Sequence[Tensor], cast: Cast = as_it_is) -> tuple[Any, ...]:
    """Run the original with the removed positions at zero; returns the flat outputs. `cast`: of what each op reads."""
    copies = {node.name: node for node in result.graph.nodes}
    steps = []
    for node in removal.found.program.graph.nodes:
        if node.op != "placeholder":
            steps.append(_cast(_step(removal, result, node, copies.get(node.name), cast), cast))
    return run_steps(removal.found.program, steps, inputs, None, None)


def _step(removal: Removal, result: Program, node: fx.Node, copy: fx.Node | None, cast: Cast) -> Step:
    labels = removal.found.labels[node]
    averages = any(not removal.keep(label).all() for label in removal.found.inexact.get(node, ()))

    def compute(values: Values) -> Any:
        if node.op == "output":
            return fx.map_arg(node.args[0], values.__getitem__)
        if node.op == "get_attr":
            value = get_attribute(removal.found.program.module, str(node.target))
        elif averages and copy is not None:
            return _on_the_rest(removal, result, node, copy, values, cast)
        else:
            args, kwargs = fx.map_arg((_in_inference(node), node.kwargs), values.__getitem__)
            assert callable(node.target)
            value = node.target(*args, **kwargs)
        return _masked(removal, value, labels)

    return Step(node, tuple(node.all_input_nodes), compute)


def _in_inference(node: fx.Node) -> tuple[Any, ...]:
    if not is_training(node):
        return node.args
    position = TRAINING_ARGUMENT[node.target]
    return (*node.args[:position], False, *node.args[position + 1 :])


def _masked(removal: Removal, value: Any, labels: Value) -> Any:
    if isinstance(labels, list):
        return type(value)([_masked(removal, *pair) for pair in zip(value, labels, strict=True)])
    if not isinstance(value, Tensor) or not isinstance(labels, tuple) or not value.is_floating_point():
        return value
    for dim, label in enumerate(labels):
        mask = removal.keep(label)
        if not mask.all():
            gone = np.flatnonzero(~np.resize(mask, value.shape[dim]))
            value = value.detach().index_fill(dim, torch.from_numpy(gone), 0)
    return value


def _on_the_rest(removal: Removal, result: Program, node: fx.Node, copy: fx.Node, values: Values, cast: Cast) -> Tensor:
    """Compute an op on the positions that stay, with the arguments of its copy, and put the rest at zero."""
    by_name = {source.name: source for source in node.all_input_nodes}

    def compact(source: fx.Node) -> Any:
        if source.op == "get_attr":
            return cast(get_attribute(result.module, str(source.target)))
        labels = removal.found.labels[by_name[source.name]]
        assert isinstance(labels, tuple)
        return select(values[by_name[source.name]], [removal.keep(label) for label in labels])

    args, kwargs = fx.map_arg((copy.args, copy.kwargs), compact)
    assert callable(copy.target)
    value: Tensor = copy.target(*args, **kwargs)
    labels = removal.found.labels[node]
    assert isinstance(labels, tuple)
    for dim, label in enumerate(labels):
        mask = removal.keep(label)
        if not mask.all():
            size = len(mask) * value.shape[dim] // int(mask.sum())  # a dynamic dimension may be longer than its label
            whole = value.new_zeros([*value.shape[:dim], size, *value.shape[dim + 1 :]])
            value = whole.index_copy(dim, torch.from_numpy(np.flatnonzero(np.resize(mask, size))), value)
    return value
