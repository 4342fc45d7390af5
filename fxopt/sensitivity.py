"""How much of the outputs' error each quantized value makes alone, on a few samples and without labels.

Rounding errors of different values are about independent, so their powers at the outputs add up: the error of any
choice of them is the sum of its parts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.interpret import Step, step_of
from fxopt.graph.ops import fake_quantize
from fxopt.graph.padding import real_positions, without_padding
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes, is_constant
from fxopt.graph.rewrite import argument

SECONDS = 60.0  # the time box
Values = dict[fx.Node, Any]
Noise = Mapping[str, tuple[float, ...]]
TINY = 1e-30


@torch.no_grad()
def sensitivity(
    calibrated: Program,
    items: Sequence[tuple[Tensor, ...]],
    dynamic: Program | None = None,
    seconds: float = SECONDS,
) -> Noise:
    """Return the noise that each quantized value makes alone, by the name of what is quantized.

    - `calibrated`: a Program with a `fake_quantize` for each such value: a node's, or a weight under its dotted name.
    - `dynamic`: the same Program without them, and with nodes that take ranges on every run: their noise is that of
      input and weight together, under the name of dynamic_key().

    Noise is the power of the error over the power of the output, one figure an output with floating values, over all
    `items` without their padding. All values of one item are in memory at once.

    Within `seconds` as many items are run as can be; if not even one is done, the values with the least noise of their
    own are estimated: as that noise times what was measured of the others, in the median. But for that time box the
    result is the same on every run.
    """
    graph = _Lanes(calibrated.eval())
    units = {**_fakes(graph), **(_dynamic_layers(graph, dynamic.eval()) if dynamic is not None else {})}
    deadline = time.perf_counter() + seconds
    sums: dict[str, list[float]] = {}
    power, own = [0.0] * graph.width, dict[str, float]()
    for number, item in enumerate(items):
        began = time.perf_counter()
        exact = graph.exact(item)
        own = own or {name: _relative(exact[unit.node], unit.compute(exact)) for name, unit in units.items()}
        for name in sorted(own, key=lambda name: -own[name]):
            if not number and sums and time.perf_counter() > deadline:
                break
            before = sums.get(name, [0.0] * graph.width)
            sums[name] = [a + b for a, b in zip(before, graph.noise(units[name], exact), strict=True)]
        power = [a + b for a, b in zip(power, graph.power(exact), strict=True)]
        if 2 * time.perf_counter() - began > deadline:
            break
    measured = {
        name: tuple(noise / max(whole, TINY) for noise, whole in zip(noises, power, strict=True))
        for name, noises in sums.items()
    }
    return measured | _estimates(own, measured, graph.width)


def dynamic_key(name: str) -> str:
    """Return the name under which the noise of a node with dynamic ranges is found: its value may have noise too."""
    return f"dynamic {name}"


def _estimates(
    own: Mapping[str, float], measured: Mapping[str, tuple[float, ...]], width: int
) -> dict[str, tuple[float, ...]]:
    """Estimate the noise of what was not measured."""
    gains = [
        statistics.median([noises[place] / own[name] for name, noises in measured.items() if own[name]] or [1.0])
        for place in range(width)
    ]
    return {name: tuple(gain * noise for gain in gains) for name, noise in own.items() if name not in measured}


def _relative(exact: Any, found: Any) -> float:
    """Return the power of the error over that of the value; the first part counts of what has several."""
    left, right = (value[0] if isinstance(value, (tuple, list)) else value for value in (exact, found))
    return float((left.double() - right.double()).square().sum()) / max(float(left.double().square().sum()), TINY)


@dataclass(frozen=True)
class _Unit:
    """Something to quantize alone: `compute` returns the quantized value of a node from the exact values."""

    node: fx.Node
    compute: Callable[[Values], Any]


def _fakes(graph: _Lanes) -> dict[str, _Unit]:
    """Return the values and weights behind a `fake_quantize`."""
    units = {}
    for step in graph.steps:
        source = step.node.args[0] if step.node.target is fake_quantize else None
        if isinstance(source, fx.Node):
            units[str(source.target) if is_constant(source) else source.name] = _Unit(step.node, step.compute)
    return units


def _dynamic_layers(graph: _Lanes, dynamic: Program) -> dict[str, _Unit]:
    """Return the integer nodes of a Program with dynamic ranges that the graph has too."""
    nodes = {step.node.name: step.node for step in graph.steps}
    claims = integer_nodes(dynamic)
    layers = [node for node in dynamic.graph.nodes if node.name in claims and node.name in nodes]
    known = {node.name: node for node in (*graph.program.placeholders, *nodes.values()) if node.op != "get_attr"}

    def unit(layer: fx.Node) -> _Unit:
        return _Unit(nodes[layer.name], lambda exact: _recomputed(dynamic, layer, known, exact))

    return {dynamic_key(layer.name): unit(layer) for layer in layers}


def _recomputed(dynamic: Program, layer: fx.Node, known: Mapping[str, fx.Node], exact: Values) -> Any:
    """Compute a node of another Program from the exact values of those before it that both have."""
    values: Values = {}
    waiting = [layer]
    while waiting:
        node = waiting[-1]
        missing = [source for source in node.all_input_nodes if source not in values]
        if node is not layer and node.name in known:
            values[node] = exact[known[node.name]]
        elif missing:
            waiting += missing
            continue
        else:
            values[node] = step_of(dynamic, node).compute(values)
        waiting.pop()
    return values[layer]


@dataclass(frozen=True)
class _Lanes:
    """A calibrated Program that is run in float, and again behind one `fake_quantize` where that changes something."""

    program: Program
    steps: tuple[Step, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        nodes = [node for node in self.program.graph.nodes if node.op not in ("placeholder", "output")]
        object.__setattr__(self, "steps", tuple(step_of(self.program, node) for node in nodes))

    @property
    def outputs(self) -> list[fx.Node]:
        """The outputs with floating values."""
        (flat,) = self.program.output_node.args
        assert isinstance(flat, tuple)
        return [n for n in flat if isinstance(n, fx.Node) and n.meta["val"].is_floating_point()]

    @property
    def width(self) -> int:
        return len(self.outputs)

    def exact(self, item: Sequence[Tensor]) -> Values:
        """Return the values of all nodes in float."""
        values: Values = dict(zip(self.program.placeholders, item, strict=True))
        for step in self.steps:
            fake = step.node.target is fake_quantize
            values[step.node] = values[argument(step.node, "x")] if fake else step.compute(values)
        return values

    def power(self, exact: Values) -> list[float]:
        """Return the power of each output."""
        real = self._real(exact)
        return [float(without_padding(exact[node], real).double().square().sum()) for node in self.outputs]

    def noise(self, unit: _Unit, exact: Values) -> list[float]:
        """Return the power of each output's error if this alone is quantized."""
        changed = {unit.node: unit.compute(exact)}
        for step in self._behind(unit.node):
            if step.node.target is fake_quantize:
                changed[step.node] = changed[argument(step.node, "x")]
            else:
                changed[step.node] = step.compute({node: changed.get(node, exact[node]) for node in step.reads})
        real = self._real(exact)
        errors = {node: exact[node].double() - changed[node].double() for node in self.outputs if node in changed}
        return [
            float(without_padding(errors[node], real).square().sum()) if node in errors else 0.0
            for node in self.outputs
        ]

    def _real(self, exact: Values) -> Tensor | None:
        nodes = self.program.placeholders
        return real_positions([spec.name for spec in self.program.inputs], [exact[node] for node in nodes])

    def _behind(self, start: fx.Node) -> Iterator[Step]:
        """Yield the steps that depend on a node, in order."""
        reached = {start}
        for step in self.steps:
            if not reached.isdisjoint(step.reads):
                reached.add(step.node)
                yield step
