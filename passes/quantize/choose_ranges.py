"""choose_ranges: of the candidate ranges of each point, the one with the least error where the point is read.

    error(range) = Σ over readers  ‖f(q(x), q(w)) − f(x, w)‖² / ‖f(x, w)‖²

f: a layer that reads the point x, with its quantized weight w; where others read it, f(x) = x. The power of each
reader's own output makes readers of different sizes comparable. What comes before the point is float.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.ops import fake_quantize, observe
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant, results
from fxopt.graph.rewrite import argument
from fxopt.passes.quantize.histogram import Histogram
from fxopt.passes.quantize.observers import SEARCHES, searched_range
from fxopt.passes.quantize.placement import WEIGHTED
from fxopt.passes.quantize.range_search import Range
from fxopt.passes.quantize.rules import QUANTIZE_RULES, Role
from fxopt.passes.quantize.scheme import Scheme
from fxopt.passes.quantize.weight_scales import symmetric_scales

SAMPLES = 4


@dataclass
class FirstItems:
    """The first items of a stream, whole, until they hold `samples` samples (first dimension of the first input)."""

    samples: int = SAMPLES
    items: list[tuple[Tensor, ...]] = field(default_factory=list)
    count: int = 0

    def take(self, tensors: tuple[Tensor, ...]) -> None:
        """Keep a copy of an item, or not."""
        if self.count < self.samples:
            self.items.append(tuple(tensor.clone() for tensor in tensors))
            self.count += tensors[0].shape[0] if tensors and tensors[0].ndim else 1


def choose_ranges(
    program: Program,
    items: Sequence[tuple[Tensor, ...]],
    histograms: Mapping[str, Histogram],
    scheme: Scheme,
    weight_max: int,
) -> dict[str, Range]:
    """Return the best range of each group of points, by the name of the group.

    The candidates are those of SEARCHES, on the group's histogram. `program` has observe nodes; each item runs through
    it once, node by node, and a value is dropped after its last use.
    """
    candidates = {
        group: list(dict.fromkeys(searched_range(search, histogram, scheme) for search in SEARCHES.values()))
        for group, histogram in histograms.items()
    }
    run = _ReaderErrors(program, candidates, scheme, weight_max)
    with torch.no_grad():
        for item in items:
            run.run(*item)
    return {group: ranges[int(run.error(group).argmin())] for group, ranges in candidates.items()}


class _ReaderErrors(fx.Interpreter):
    """Runs of a Program that sum up the errors of readers for each candidate range."""

    def __init__(
        self, program: Program, candidates: Mapping[str, list[Range]], scheme: Scheme, weight_max: int
    ) -> None:
        super().__init__(program.module, graph=program.module.graph)
        self.scheme, self.weight_max = scheme, weight_max
        self.candidates = candidates
        # For each point and reader: the squared error of each candidate, and the power of the exact values.
        self.sums: defaultdict[str, dict[fx.Node, tuple[Tensor, Tensor]]] = defaultdict(dict)

    def error(self, group: str) -> Tensor:
        """Return the relative error of each candidate of a group, summed over points and readers."""
        total = torch.zeros(len(self.candidates[group]), dtype=torch.float64)
        for errors, power in self.sums[group].values():
            total += errors / power.clamp(min=1e-30)
        return total

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; at a point or a layer that reads one, measure."""
        if n.target is observe:
            source = n.args[0]
            assert isinstance(source, fx.Node)
            value = self.env[source]
            if (group := self._group(n)) and _is_read_as_it_is(n):
                self._measure(group, n, value, value, lambda x: x)
            return value
        result = super().run_node(n)
        if _is_layer(n) and (group := self._group(n.args[0])):
            (value, weight, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
            assert isinstance(weight, Tensor) and callable(n.target)
            layer, quantized = n.target, self._weight(n, weight)
            self._measure(group, n, value, result, lambda x: layer(x, quantized, *rest, **kwargs))
        return result

    def _group(self, node: Any) -> str | None:
        """Return the group of an observed activation that has a choice, or None for any other node."""
        if not isinstance(node, fx.Node) or node.target is not observe or is_constant(node.args[0]):
            return None
        name = str(argument(node, "name"))
        return name if len(self.candidates.get(name, ())) > 1 else None

    def _weight(self, node: fx.Node, weight: Tensor) -> Tensor:
        observed = node.args[1]
        if not isinstance(observed, fx.Node) or observed.target is not observe:
            return weight
        largest, smallest = self.weight_max, torch.zeros(weight.shape[0], dtype=torch.float64)
        scale, axis = symmetric_scales(weight, largest, smallest, self.scheme), 0 if self.scheme.per_channel else None
        result: Tensor = fake_quantize(weight, scale, torch.zeros_like(scale), axis, -largest, largest)
        return result

    def _measure(self, group: str, reader: fx.Node, x: Tensor, exact: Tensor, read: Callable[[Tensor], Tensor]) -> None:
        errors = []
        for low, high in self.candidates[group]:
            levels = self.scheme.levels(low)
            scale, zero = (torch.tensor(number) for number in levels.parameters(low, high))
            rounded = read(fake_quantize(x, scale, zero, None, levels.quant_min, levels.quant_max))
            errors.append(rounded.sub(exact).square_().sum(dtype=torch.float64))
        sums, power = self.sums[group].get(reader, (torch.zeros(()), torch.zeros(())))
        self.sums[group][reader] = sums + torch.stack(errors), power + exact.square().sum(dtype=torch.float64)


def _is_layer(node: fx.Node) -> bool:
    rule = QUANTIZE_RULES.get(node.target) if node.op == "call_function" else None
    return rule is not None and rule.role in WEIGHTED


def _is_read_as_it_is(point: fx.Node) -> bool:
    """Say whether others than layers read a point; what only moves values has points of its own behind it."""
    return any(not _is_layer(user) and not _moves_to_points(user) for user in point.users)


def _moves_to_points(node: fx.Node) -> bool:
    rule = QUANTIZE_RULES.get(node.target) if node.op == "call_function" else None
    if rule is None or rule.role is not Role.SHARE:
        return False
    return any(user.target is observe for value in results(node) for user in value.users)
