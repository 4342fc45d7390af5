"""How much of the outputs' error each quantized value makes alone, on a few samples and without labels.

Rounding errors of different values are about independent, so their powers at the outputs add up: the error of any choice
of them is the sum of its parts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.interpret import Step, step_of
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant

SECONDS = 60.0  # the time box
Values = dict[fx.Node, Any]
Noise = Mapping[str, tuple[float, ...]]
TINY = 1e-30


def sensitivity(calibrated: Program, items: Sequence[tuple[Tensor, ...]], seconds: float = SECONDS) -> Noise:
    """Return the noise that each `fake_quantize` of a calibrated Program makes alone, by the name of what it quantizes.

    That is a value's node, or the dotted name of a weight. Noise is the power of the error over the power of the
    output, one figure an output with floating values, over all `items`. All values of one item are in memory at once.

    Within `seconds` as many items are run as can be; if not even one is done, the values with the least noise of their
    own are estimated: as that noise times what was measured of the others, in the median. But for that time box the
    result is the same on every run.
    """
    graph = _Lanes(calibrated.eval())
    deadline = time.perf_counter() + seconds
    sums: dict[fx.Node, list[float]] = {}
    power: list[float] = []
    own: dict[fx.Node, float] = {}
    for number, item in enumerate(items):
        began = time.perf_counter()
        exact = graph.exact(item)
        if not number:
            own = {fake: _relative(exact[fake.args[0]], graph.compute(fake, exact)) for fake in graph.fakes}
        found: dict[fx.Node, list[float]] = {}
        for fake in sorted(own, key=lambda fake: -own[fake]):
            if not number and found and time.perf_counter() > deadline:
                break
            found[fake] = graph.noise(fake, exact)
        _add(sums, found)
        power = [a + b for a, b in zip(power or [0.0] * graph.width, graph.power(exact), strict=True)]
        if 2 * time.perf_counter() - began > deadline:
            break
    measured = {
        fake: tuple(noise / max(whole, TINY) for noise, whole in zip(noises, power, strict=True))
        for fake, noises in sums.items()
    }
    return {_name(fake): noise for fake, noise in (measured | _estimates(own, measured, graph.width)).items()}


def _add(sums: dict[fx.Node, list[float]], found: Mapping[fx.Node, list[float]]) -> None:
    for fake, noises in found.items():
        before = sums.get(fake, [0.0] * len(noises))
        sums[fake] = [a + b for a, b in zip(before, noises, strict=True)]


def _estimates(
    own: Mapping[fx.Node, float], measured: Mapping[fx.Node, tuple[float, ...]], width: int
) -> dict[fx.Node, tuple[float, ...]]:
    """Estimate the noise of what was not measured."""
    gains = [
        statistics.median([noises[place] / own[fake] for fake, noises in measured.items() if own[fake]] or [1.0])
        for place in range(width)
    ]
    return {fake: tuple(gain * noise for gain in gains) for fake, noise in own.items() if fake not in measured}


def _name(fake: fx.Node) -> str:
    source = fake.args[0]
    assert isinstance(source, fx.Node)
    return str(source.target) if is_constant(source) else source.name


def _relative(exact: Any, found: Any) -> float:
    left, right = exact.detach().double(), found.detach().double()
    return float((left - right).square().sum()) / max(float(left.square().sum()), TINY)


@dataclass(frozen=True)
class _Lanes:
    """A calibrated Program that is run in float, and again behind one `fake_quantize` where that changes something."""

    program: Program
    steps: tuple[Step, ...] = field(init=False, repr=False)
    fakes: tuple[fx.Node, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        nodes = [node for node in self.program.graph.nodes if node.op not in ("placeholder", "output")]
        object.__setattr__(self, "steps", tuple(step_of(self.program, node) for node in nodes))
        object.__setattr__(self, "fakes", tuple(node for node in nodes if node.target is fake_quantize))

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
        with torch.no_grad():
            for step in self.steps:
                fake = step.node.target is fake_quantize
                values[step.node] = values[step.node.args[0]] if fake else step.compute(values)  # type: ignore[index]
        return values

    def compute(self, fake: fx.Node, exact: Values) -> Any:
        """Return the quantized value of a `fake_quantize`."""
        with torch.no_grad():
            return step_of(self.program, fake).compute(exact)

    def power(self, exact: Values) -> list[float]:
        """Return the power of each output."""
        return [float(exact[node].detach().double().square().sum()) for node in self.outputs]

    def noise(self, fake: fx.Node, exact: Values) -> list[float]:
        """Return the power of each output's error if this value alone is quantized."""
        changed = {fake: self.compute(fake, exact)}
        with torch.no_grad():
            for step in self._behind(fake):
                if step.node.target is fake_quantize:
                    changed[step.node] = changed[step.node.args[0]]  # type: ignore[index]
                else:
                    changed[step.node] = step.compute({node: changed.get(node, exact[node]) for node in step.reads})
        return [
            float((exact[node].double() - changed[node].double()).square().sum()) if node in changed else 0.0
            for node in self.outputs
        ]

    def _behind(self, start: fx.Node) -> Iterator[Step]:
        """Yield the steps that depend on a node, in order."""
        reached = {start}
        for step in self.steps:
            if not reached.isdisjoint(step.reads):
                reached.add(step.node)
                yield step
