"""Each layer of a quantized model in a row: its precision, its time as floats and as integers, its error, the reason.

Layers are the nodes of the float Program that multiply, and those that became integer or were considered for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, fx

from fxopt.data import Data, calibration_inputs, first_samples, split_items
from fxopt.export.census import INTEGER_KERNELS
from fxopt.export.measure import KernelTime
from fxopt.graph.cost import batch_of_example, macs_by_node
from fxopt.graph.dynamic_lstm import dynamic_lstm
from fxopt.graph.interpret import sqnr, walk_pairs
from fxopt.graph.ops import dynamic_quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes, is_weight_only
from fxopt.graph.rewrite import argument
from fxopt.job import Job, Proved
from fxopt.timed_placement import NodeTime, node_times

aten = torch.ops.aten
FLOAT, INT8, DYNAMIC = "float", "int8", "int8 dynamic"
NO_FORM = "the recipe has no integer form of it"
STAYS_FLOAT = "the model stays float"
SAMPLES = 2  # that errors are measured on: more would cost time and memory, and hardly move a figure


@dataclass(frozen=True)
class LayerRow:
    """One layer of the float model.

    - `precision`: "int8" (static ranges), "int8 dynamic" (ranges of every run), "int8 weights" or "int4 weights"
      (of which only the weights are integers), or "float".
    - `macs`: multiply-accumulates of one sample, or of one call where the batch is fixed.
    - `float_seconds`, `integer_seconds`: of its kernel in the float file and in that of the result, or of what was
      tried first, one thread; None if not measured, or where the runtime merged it into another kernel.
    - `error`: the SQNR in dB of its output, before it is rounded for the next layer, against the float model's, on the
      first calibration samples: the errors of all layers before it are in it. None without data. `reason`: why it is
      float.
    """

    name: str
    op: str
    precision: str
    macs: int
    float_seconds: float | None = None
    integer_seconds: float | None = None
    error: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Layers:
    """What the rows of one compilation are made from.

    - `baseline`: the float Program, and its file `path`. `inputs`: what files are profiled with, None for no times.
    - `sample`: what errors are measured on, None for no errors.
    """

    job: Job
    baseline: Program = field(repr=False)
    path: Path
    inputs: Sequence[Tensor] | None
    sample: tuple[Tensor, ...] | None = field(repr=False)

    def rows(self, proved: Proved, exact: Program) -> tuple[LayerRow, ...]:
        """Return the rows of a result, in the order of the graph.

        `exact` is the float Program whose values those of the result stand for: passes that move scales between layers
        change the values inside.
        """
        claims = integer_nodes(proved.program)
        times = self._times(proved, is_integer=bool(claims))
        errors = {}
        if self.sample is not None and claims:
            with self.job.stage("layer errors"):
                errors = output_errors(exact, proved.program, self.sample, _layers(self.baseline, proved))
        return layer_rows(self.baseline, proved, times, errors)

    def _times(self, proved: Proved, is_integer: bool) -> dict[str, NodeTime]:
        """Take what is known from profiles of this compilation, that of the result first."""
        if self.inputs is None:
            return {}
        float_profile = self.job.profile(self.path, self.inputs)
        if is_integer:
            self.job.profile(proved.path, self.inputs, self.job.target.session)
        result = node_times(self.baseline, float_profile, [])
        others = [path for path in self.job.profiles if path != self.path]
        for path in sorted(others, key=lambda path: path != proved.path):
            for name, seconds in _integer_seconds(self.baseline, self.job.profiles[path]).items():
                known = result.get(name, NodeTime(None, None))
                if known.integer_seconds is None:
                    result[name] = NodeTime(known.float_seconds, seconds)
        return result


def _integer_seconds(program: Program, profile: Sequence[KernelTime]) -> dict[str, float]:
    """Return the seconds of the nodes that have integer kernels in a profile."""
    integer = node_times(program, [], [kernel for kernel in profile if kernel.op in INTEGER_KERNELS])
    times = {name: time.integer_seconds for name, time in node_times(program, [], profile).items() if name in integer}
    return {name: seconds for name, seconds in times.items() if seconds is not None}


def _layers(baseline: Program, proved: Proved) -> list[str]:
    """List the nodes of the float Program that have a row."""
    claims, macs = integer_nodes(proved.program), macs_by_node(baseline)
    changed = {n.name for n in proved.program.graph.nodes if n.target is aten.mul.Tensor}  # quantized tables, see below
    tables = {n.name for n in baseline.graph.nodes if n.target is aten.embedding.default and n.name in changed}
    found = {*macs, *proved.float_reasons, *claims, *tables}
    return [n.name for n in baseline.graph.nodes if n.name in found and claims.get(n.name) != "data"]


def layer_rows(
    baseline: Program, proved: Proved, times: Mapping[str, NodeTime], errors: Mapping[str, float]
) -> tuple[LayerRow, ...]:
    """Return the rows of a quantized result, given what was measured by name of node."""
    claims, reasons = integer_nodes(proved.program), proved.float_reasons
    macs, batch = macs_by_node(baseline), batch_of_example(baseline)
    nodes, found = ({n.name: n for n in side.graph.nodes} for side in (baseline, proved.program))
    rows = []
    for name in _layers(baseline, proved):
        precision = _precision(nodes[name], found[name], name in claims) if name in found else FLOAT
        reason = reasons.get(name, NO_FORM if claims else STAYS_FLOAT) if precision == FLOAT else ""
        time = times.get(name, NodeTime(None, None))
        op, seconds = str(nodes[name].target), (time.float_seconds, time.integer_seconds)
        rows.append(LayerRow(name, op, precision, macs.get(name, 0) // batch, *seconds, errors.get(name), reason))
    return tuple(rows)


def _precision(node: fx.Node, found: fx.Node, claimed: bool) -> str:
    """Say what a node of the float Program became."""
    if node.target is aten.embedding.default and found.target is not node.target:
        return "int8 weights"  # the product of the stored rows and their scales has its name
    if not claimed:
        return FLOAT
    if is_weight_only(found):
        return f"int{argument(argument(found, 'weight'), 'bits')} weights"
    source = found.all_input_nodes[0].all_input_nodes
    made = source[0].all_input_nodes if source else []
    is_dynamic = found.target is dynamic_lstm or (made and made[0].target is dynamic_quantize)
    return DYNAMIC if is_dynamic else INT8


def output_errors(
    exact: Program, quantized: Program, item: Sequence[Tensor], names: Collection[str]
) -> dict[str, float]:
    """Return the SQNR in dB of what the named nodes make in both Programs; of the first result if there are several.

    Both run in step, so that few values are in memory at once.
    """
    found = {node.name: node for node in quantized.graph.nodes if node.op == "call_function"}
    pairs, makers = {}, {}
    for node in exact.graph.nodes:
        value = _first_result(node) if node.name in names else None
        if value is not None and value.name in found:
            pairs[_same_value(node, found[value.name]).name] = value.name
            makers[value.name] = node.name
    ratios = {}
    for name, left, right in walk_pairs(exact.eval(), quantized.eval(), item, pairs):
        if isinstance(left, Tensor) and left.is_floating_point() and left.shape == right.shape:
            ratios[makers[name]] = sqnr(left, right)
    return ratios


def _first_result(node: fx.Node) -> fx.Node | None:
    if not isinstance(node.meta["val"], (tuple, list)):
        return node
    return next((user for user in node.users if user.args[1:] == (0,)), None)


def _same_value(node: fx.Node, found: fx.Node) -> fx.Node:
    """Return the node that has the layout of the float one: the integer LSTM has time first, and is transposed."""
    if node.target is aten.lstm.input and argument(node, "batch_first"):
        return next((user for user in found.users if user.target is aten.transpose.int), found)
    return found


def few_samples(data: Data | str | Path, program: Program) -> tuple[Tensor, ...]:
    """Return the inputs of the first samples of calibration data, or of its first item if they cannot be split."""
    items = first_samples(calibration_inputs(data, program), SAMPLES)
    first: tuple[Tensor, ...] = split_items(items, program, SAMPLES)[0]
    return first
