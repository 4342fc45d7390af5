"""Where quantization hurts: the error of each layer on real data, and the distributions of weights and activations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.data import Data, calibration_inputs
from fxopt.errors import DataError
from fxopt.graph.cost import tensors
from fxopt.graph.interpret import run, walk_pairs
from fxopt.graph.program import Program
from fxopt.passes.quantize.histogram import Histogram


@dataclass(frozen=True)
class LayerError:
    """How far the value of one node is from the reference, over all data.

    - `sqnr`: 10 log10(signal power / error power), dB; infinite where nothing differs. `cosine`: of the angle between
      both, -1 to 1. `lost`: by how many dB the node's SQNR is below the least of its inputs': what it adds itself.
    """

    name: str
    op: str
    sqnr: float
    cosine: float
    lost: float


@dataclass
class _Sums:
    """Running sums over items, from which SQNR and cosine follow."""

    power: float = 0.0
    found: float = 0.0
    product: float = 0.0
    noise: float = 0.0

    def add(self, expected: Tensor, value: Tensor) -> None:
        left, right = expected.double().reshape(-1), value.double().reshape(-1)
        self.power += float(left @ left)
        self.found += float(right @ right)
        self.product += float(left @ right)
        self.noise += float((left - right).square().sum())

    @property
    def sqnr(self) -> float:
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.power / self.noise) if self.power else -math.inf

    @property
    def cosine(self) -> float:
        length = math.sqrt(self.power * self.found)
        return min(max(self.product / length, -1.0), 1.0) if length else float(self.power == self.found)


def layer_errors(reference: Program, quantized: Program, data: Data | str | Path) -> list[LayerError]:
    """Compare the values of all nodes that two Programs share by name, on real data; the worst come first.

    `data` is any iterable of items like the example inputs. Both run in step, so few values are in memory at
    once. Raises DataError for data that is empty or does not fit, and where the Programs share no node.
    """
    shared = {n.name for n in reference.graph.nodes if n.op == "call_function"}
    nodes = {n.name: n for n in quantized.graph.nodes if n.op == "call_function" and n.name in shared}
    sums: defaultdict[str, _Sums] = defaultdict(_Sums)
    for item in calibration_inputs(data, reference):
        _compare_item(reference, quantized, item, nodes, sums)
    if not sums:
        raise DataError("The two Programs share no node: pass the float Program and one that was made from it.")
    errors = [
        LayerError(name, str(nodes[name].target), found.sqnr, found.cosine, _lost(nodes[name], sums))
        for name, found in sums.items()
    ]
    return sorted(errors, key=lambda error: error.sqnr)


def _compare_item(
    reference: Program,
    quantized: Program,
    item: tuple[Tensor, ...],
    nodes: Collection[str],
    sums: defaultdict[str, _Sums],
) -> None:
    for name, left, right in walk_pairs(reference.eval(), quantized.eval(), item, {name: name for name in nodes}):
        tensors_alike = isinstance(left, Tensor) and isinstance(right, Tensor) and left.shape == right.shape
        if tensors_alike and left.is_floating_point():
            sums[name].add(left, right)


def _lost(node: fx.Node, sums: defaultdict[str, _Sums]) -> float:
    """Return the dB between a node and the worst compared node before it; nodes without one lose all they lack."""
    before, waiting, seen = [], list(node.all_input_nodes), set()
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        if source.name in sums:
            before.append(sums[source.name].sqnr)
        else:
            waiting += source.all_input_nodes
    own = sums[node.name].sqnr
    least = min(before, default=math.inf)
    return 0.0 if own == least else least - own


@dataclass(frozen=True)
class Distribution:
    """A histogram: counts between edges (one more than counts), and the smallest and largest value."""

    low: float
    high: float
    edges: tuple[float, ...] = field(repr=False)
    counts: tuple[float, ...] = field(repr=False)


def distributions(
    program: Program, data: Data | str | Path, names: Collection[str] | None = None
) -> dict[str, Distribution]:
    """Return the distribution of each node's values over data, and of each floating weight, by name.

    `names` restricts both. Activations stream through histograms of a fixed number of bins, see Histogram. Raises
    DataError for data that is empty or does not fit, or for a name that does not exist.
    """
    weights = {name: tensor for name, tensor in tensors(program).items() if tensor.is_floating_point()}
    known = {node.name for node in program.graph.nodes if node.op != "get_attr"} | weights.keys()
    if unknown := sorted(set(names or ()) - known):
        raise DataError(f"The Program has no node or weight named {', '.join(unknown)}.")
    wanted = known if names is None else set(names)
    found: defaultdict[str, Histogram] = defaultdict(Histogram)

    def see(name: str, value: Any) -> None:
        if name in wanted and isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            low, high = (float(end) for end in torch.aminmax(value.detach()))
            if math.isfinite(low) and math.isfinite(high):
                found[name].update(value.detach().float(), low, high)

    for item in calibration_inputs(data, program):
        run(program.eval(), item, lambda node, value: see(node.name, value))
    for name, tensor in weights.items():
        see(name, tensor)
    return {
        name: Distribution(h.low, h.high, tuple(h.edges().tolist()), tuple(h.counts.tolist()))
        for name, h in found.items()
    }
