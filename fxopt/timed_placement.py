"""Placement by measured time: which nodes that could be integer cost more as integers than as floats.

Two profiles are enough, of the float file and of the integer one: both show each kernel where it stands, among its
neighbours. A node is worth its integer kernel if that saves more than the conversions at its borders cost; which set of
nodes is cheapest in all is a minimum cut between "integer" and "float".
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx
from torch import fx

from fxopt.export.measure import KernelTime
from fxopt.graph.program import Program
from fxopt.passes.quantize.placement import WEIGHTED, Placement, activations
from fxopt.passes.quantize.rules import QUANTIZE_RULES, Role

LAYERS = [op for op, rule in QUANTIZE_RULES.items() if rule.role in WEIGHTED]
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
FUSED_WITH_ACTIVATION = ("Conv", "FusedConv", "Gemm", "FusedGemm")
LAYOUT = ("Transpose", "ReorderInput", "ReorderOutput")
# The price of a quantization or dequantization, in seconds an element and a call. It need not be exact: the whole
# model is timed before anything is decided.
ELEMENT, CALL = 0.6e-9, 2e-6
SLOWER = "it is slower in integers when timed"
NOT_WORTH_IT = "it gains less in integers than the conversions around it cost, when timed"
# Another candidate costs another emission and proof: a saving below this share is left alone.
WORTH_A_TRY = 0.05


@dataclass(frozen=True)
class NodeTime:
    """The seconds of one node in both files; None where it has no kernel of its own."""

    float_seconds: float | None
    integer_seconds: float | None


def node_times(
    program: Program, float_profile: Sequence[KernelTime], integer_profile: Sequence[KernelTime]
) -> dict[str, NodeTime]:
    """Return the times of the nodes of a float Program, from the profiles of its own file and of the integer one.

    A kernel belongs to the node whose name, or whose name as an output, it starts with; conversions and changes of
    layout belong to none.
    """
    nodes = {node.name: node for node in program.graph.nodes if node.op != "output"}
    values = zip(program.output_node.args[0], program.outputs, strict=True)  # type: ignore[arg-type]
    known = {spec.name: value for value, spec in values if spec is not None} | nodes
    left, right = _by_node(float_profile, known), _by_node(integer_profile, known)
    return {name: NodeTime(left.get(name), right.get(name)) for name in nodes if name in left or name in right}


def _by_node(profile: Sequence[KernelTime], nodes: Mapping[str, fx.Node]) -> dict[str, float]:
    overhead = min((kernel.seconds for kernel in profile), default=0.0)
    result: dict[str, float] = defaultdict(float)
    for kernel in profile:
        if kernel.op not in (*CONVERSIONS, *LAYOUT) and (name := owner(kernel.name, nodes)):
            result[_layer(kernel, nodes[name]).name] += kernel.seconds - overhead
    return dict(result)


def _layer(kernel: KernelTime, node: fx.Node) -> fx.Node:
    """Return the layer behind a fused kernel that has the name of the activation after it."""
    behind = node.all_input_nodes[0] if node.all_input_nodes else node
    fused = kernel.op in FUSED_WITH_ACTIVATION and node.target not in LAYERS and behind.target in LAYERS
    return behind if fused else node


def owner(kernel: str, names: Collection[str]) -> str | None:
    """Return the node a kernel was made from: the longest name that its own is, or continues after _, / or a dot."""
    kernel = kernel.removeprefix("fused ")  # as a Gemm is called that took up its activation
    while kernel:
        if kernel in names:
            return kernel
        kernel = re.sub(r"[_/.]?[^_/.]*$", "", kernel)
    return None


@dataclass(frozen=True)
class Losers:
    """The integer nodes that are better float, with the reason, and the share of the placed time that this saves."""

    reasons: Mapping[str, str]
    saving: float


def slower_in_integers(program: Program, placement: Placement, times: Mapping[str, NodeTime]) -> Losers:
    """Find the integer nodes of a placement that are better float.

    Nodes without a time of their own (merged away, or only moving values) cost nothing.
    """
    prices = Prices(program, placement, times)
    cut = _Cut(prices)
    least, kept = cut.solve()
    reasons = {}
    for name in sorted(kept):
        left, right = prices.seconds(name)
        reasons[name] = SLOWER if right > left else NOT_WORTH_IT
    return Losers(reasons, 1 - least / cut.placed if cut.placed else 0.0)


def compute_nodes(placement: Placement) -> set[str]:
    """Return the integer nodes that compute something."""
    return {name for name, role in placement.integer.items() if role is not Role.SHARE}


class Prices:
    """What nodes and the conversions around them cost, in seconds, for any choice of integer nodes of a placement."""

    def __init__(self, program: Program, placement: Placement, times: Mapping[str, NodeTime]) -> None:
        self.placement = placement
        self.times = times
        self.nodes = {node.name: node for node in program.graph.nodes}

    def seconds(self, name: str) -> tuple[float, float]:
        """Return what a node costs in float and in integers, with the clip that its integer kernel absorbs."""
        time = self.times.get(name, NodeTime(None, None))
        clips = [user.name for user in self.nodes[name].users if self._is_absorbed(user)]
        clip = self.times.get(clips[0], NodeTime(None, None)) if clips else NodeTime(None, None)
        return (time.float_seconds or 0.0) + (clip.float_seconds or 0.0), time.integer_seconds or 0.0

    def _is_absorbed(self, user: fx.Node) -> bool:
        point = self.placement.points.get(user.name)
        return user.name not in self.placement.integer and point is not None and point.readers is None

    def maker(self, value: fx.Node) -> str | None:
        """Return the integer node that makes a quantized value, if one does."""
        for node in (value, *value.all_input_nodes[:1]):
            role = self.placement.integer.get(node.name)
            if role is not None and role is not Role.LINEAR:
                return node.name
        return None

    def readers(self, value: fx.Node) -> list[str | None]:
        """Return the nodes of the placement that read a value, and None for each other reader."""
        return [user.name if user.name in self.placement.integer else None for user in value.users]

    def integer_readers(self, value: fx.Node) -> list[fx.Node]:
        """Return the nodes of the placement that read a value as an activation."""
        return [user for user in value.users if user.name in self.placement.integer and value in activations(user)]

    def conversion(self, value: fx.Node) -> float:
        """Return what quantizing or dequantizing a value costs."""
        return CALL + ELEMENT * _elements(value)


class _Cut:
    """The graph of the minimum cut: the source is "integer", the sink "float".

    What is cut is paid: the float time of a node on the float side, the integer time of one on the integer side, and a
    conversion where a value passes from one side to the other, once however many read it.
    """

    def __init__(self, prices: Prices) -> None:
        self.prices, self.placement = prices, prices.placement
        self.graph = networkx.DiGraph()
        self.graph.add_nodes_from(("integer", "float", *self.placement.integer))
        self.placed = 0.0  # the cost of the placement as it is: the cut that has all its nodes on the integer side
        for name in self.placement.integer:
            left, right = prices.seconds(name)
            self._edge("integer", name, left)  # cut, and paid, where the node ends up on the float side
            self._edge(name, "float", right)
            self.placed += right
        for point in self.placement.points.values():
            self._conversions(prices.nodes[point.value])

    def _conversions(self, value: fx.Node) -> None:
        """Let a value cost a conversion where its maker and one of its readers are on different sides."""
        maker, readers, price = self.prices.maker(value), self.prices.readers(value), self.prices.conversion(value)
        quantized, dequantized = f"quantize {value.name}", f"dequantize {value.name}"
        self._edge(quantized, maker or "float", price)
        self._edge(maker or "integer", dequantized, price if maker else 0.0)
        if (None in readers) if maker else any(readers):
            self.placed += price
        for reader in readers:
            if reader is not None:
                self._edge(reader, quantized, math.inf)
            self._edge(dequantized, reader or "float", math.inf)

    def _edge(self, source: str, sink: str, capacity: float) -> None:
        if source == sink or capacity <= 0:
            return
        if math.isinf(capacity):
            self.graph.add_edge(source, sink)
        else:
            before = self.graph.get_edge_data(source, sink, {"capacity": 0.0}).get("capacity", math.inf)
            self.graph.add_edge(source, sink, capacity=before + capacity)

    def solve(self) -> tuple[float, set[str]]:
        """Return the least cost and the nodes of the placement that are float there."""
        least, (_, far) = networkx.minimum_cut(self.graph, "integer", "float")
        return least, {name for name in far if name in self.placement.integer}


def _elements(node: fx.Node) -> int:
    """Count the elements of a value; a dynamic size counts as in the captured example."""
    sizes: Iterable[int] = (
        size if isinstance(size, int) else int(size.node.hint or 1) for size in node.meta["val"].shape
    )
    return math.prod(sizes)
