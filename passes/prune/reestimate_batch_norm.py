"""ReestimateBatchNorm: running means and variances of what the batch norms of a changed Program really read.

(Li et al. 2020, "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", where it is called adaptive
batch normalization.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.data import samples_of
from fxopt.graph.interpret import Values, last_reads, step_of
from fxopt.graph.memory import Trimmer
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument
from fxopt.passes.cleanup.layers import like, replace_tensor, set_arguments
from fxopt.passes.quantize.batch_norm_statistics import running_statistics

aten = torch.ops.aten
SAMPLES, AT_ONCE = 512, 32
NAMES = ("running_mean", "running_var")


@dataclass(frozen=True)
class ReestimateBatchNorm:
    """Set the statistics of every batch norm to those of its input on calibration data, one after the other.

    - `data`: any iterable of items like the example inputs, no labels. `samples`: how many samples of it are used;
      they are in memory together, with the values that the norm at hand needs.

    Each norm reads what the corrected ones before it make; its variance is the unbiased one. Nothing else changes, and
    nothing is left to do once batch norms are folded: RepairWeights works then too. Raises DataError for data that is
    empty, does not fit, or holds NaN or infinity.
    """

    data: Iterable[Any] = field(repr=False)
    samples: int = SAMPLES

    def __call__(self, program: Program) -> Program:
        """Return the Program with new statistics; the same one if it has no batch norm with any."""
        running = program.eval()
        norms = running.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
        norms = [node for node in norms if running_statistics(running.module, node) is not None]
        if not norms:
            return program
        items = samples_of(self.data, program, self.samples, AT_ONCE)
        edit = Edit(program, by=self)
        nodes = {node.name: node for node in edit.graph.nodes}
        for name, values in _statistics(running, set(norms), items).items():
            node = nodes[name]
            olds = [argument(node, which) for which in NAMES]
            new = [
                replace_tensor(edit, node, old, like(_tensor(edit, old), value))
                for old, value in zip(olds, values, strict=True)
            ]
            set_arguments(node, **dict(zip(NAMES, new, strict=True)))
        return edit.finish()


def _tensor(edit: Edit, node: fx.Node) -> Tensor:
    value = edit.constant(node)
    assert value is not None
    return value


def _statistics(
    program: Program, norms: set[fx.Node], items: Sequence[tuple[Tensor, ...]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and variance of the inputs of the norms, float64, by name. Each norm then runs with its own."""
    lanes: list[Values] = [dict(zip(program.placeholders, item, strict=True)) for item in items]
    dead, trimmer, found = last_reads(program), Trimmer(), dict[str, tuple[Tensor, Tensor]]()
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            other: Values = {}
            if node in norms:
                found[node.name] = pair = _mean_and_variance([values[node.args[0]] for values in lanes])
                olds = [argument(node, which) for which in NAMES]
                other = {old: value.to(old.meta["val"].dtype) for old, value in zip(olds, pair, strict=True)}
            compute = step_of(program, node).compute
            for values in lanes:
                values[node] = compute({**{source: values[source] for source in node.all_input_nodes}, **other})
                for source in dead.get(node, ()):
                    values.pop(source, None)
                trimmer.made_one(values.get(node))
    return found


def _mean_and_variance(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of each channel (dimension 1) over all parts, float64."""
    flat = [part.transpose(0, 1).flatten(1) for part in parts]
    count = sum(part.shape[1] for part in flat)
    mean = torch.stack([part.sum(1, dtype=torch.float64) for part in flat]).sum(0) / count
    squares = torch.stack([(part.double() - mean[:, None]).square().sum(1) for part in flat]).sum(0)
    return mean, squares / max(count - 1, 1)
