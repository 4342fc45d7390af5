"""What a region gave in float, to be given again with rounded weights: the tasks of learned rounding.

The inputs of a region are those behind the quantized layers before it, its outputs are compared with the float ones
(asymmetric reconstruction). With `drop`, a share of the elements are left as in float while training (Wei et al. 2022,
"QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.interpret import step_of
from fxopt.graph.ops import fake_quantize
from fxopt.graph.patches import patches
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import argument
from fxopt.passes.quantize.lanes import Lanes
from fxopt.passes.quantize.regions import Region, layer_region, weight_of

aten = torch.ops.aten
ROWS = 2**15  # that a layer is fitted to at most, taken at random places of its input
ELEMENTS = 2**24  # of those rows, in memory together
BATCH = 256  # rows
SMALLEST = 1e-12


def mixed(pair: tuple[Tensor, Tensor], drop: float, generator: torch.Generator | None) -> Tensor:
    """Return the value behind quantization, with a share of its elements as in float while training."""
    exact, quantized = pair
    if generator is None or drop == 0 or exact is quantized or not _is_float(quantized):
        return quantized
    return torch.where(torch.rand(quantized.shape, generator=generator) < drop, exact, quantized)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@dataclass(frozen=True)
class Rows:
    """A layer as a product of rows with its weight: exact and quantized inputs [G, P, K], outputs [G, P, N / G]."""

    region: Region
    inputs: tuple[Tensor, Tensor]
    target: Tensor
    bias: Tensor | None
    drop: float

    @property
    def batches(self) -> int:
        """How many batches of rows there are."""
        return max(1, self.target.shape[1] // BATCH)

    def difference(self, weights: Sequence[Tensor], batch: int, generator: torch.Generator | None) -> Tensor:
        """Return the difference to the float outputs of some rows."""
        chosen = slice(batch, None, self.batches)
        exact, quantized = (value[:, chosen] for value in self.inputs)
        x = mixed((exact, quantized), self.drop, generator)
        weight = weights[0].reshape(len(x), -1, x.shape[2])
        y = x @ weight.mT
        if self.bias is not None:
            y = y + self.bias.reshape(len(x), 1, -1)
        return apply_activation(self.region, y) - self.target[:, chosen]


def apply_activation(region: Region, y: Tensor) -> Tensor:
    """Apply to a layer's result the activation function that belongs to its region."""
    last = region.nodes[-1]
    if last in region.layers:
        return y
    assert callable(last.target)
    result: Tensor = last.target(y, *last.args[1:], **last.kwargs)
    return result


def has_rows(region: Region) -> bool:
    """Say whether a region is one linear or conv2d with nothing but an activation function."""
    return region.nodes[0].target in (aten.linear.default, aten.conv2d.default) and region == layer_region(
        region.nodes[0]
    )


def rows_of(region: Region, lanes: Sequence[Lanes], targets: Sequence[Tensor], drop: float) -> Rows:
    """Take the rows of a layer at random places, equally many of each sample, or all if they are few."""
    layer = region.layers[0]
    generator = torch.Generator().manual_seed(0)
    groups = 1 if layer.target is aten.linear.default else int(argument(layer, "groups"))
    size = int(weight_of(layer).meta["val"][0].numel()) * groups
    positions = [target.numel() // weight_of(layer).meta["val"].shape[0] for target in targets]
    share = min(1.0, min(ROWS, ELEMENTS // size) / max(sum(positions), 1))
    found: list[tuple[Tensor, ...]] = []
    for values, target, count in zip(lanes, targets, positions, strict=True):
        taken = torch.arange(count)
        if share < 1:
            taken = torch.randint(count, (max(1, int(share * count)),), generator=generator)
        pair = values[argument(layer, "input")]
        exact = _patches(layer, pair[0], taken) if drop and pair[0] is not pair[1] else None
        quantized = _patches(layer, pair[1], taken)
        y = _last(layer, target).reshape(-1, weight_of(layer).meta["val"].shape[0])[taken]
        found.append((quantized if exact is None else exact, quantized, y))
    exact, quantized, y = (
        torch.cat(parts).reshape(sum(map(len, parts)), groups, -1).transpose(0, 1).contiguous()
        for parts in zip(*found, strict=True)
    )
    bias = argument(layer, "bias")
    known = None if bias is None else lanes[0][bias][1].detach()
    return Rows(region, (exact, quantized), y, known, drop)


def _last(layer: fx.Node, value: Tensor) -> Tensor:
    """Move the channels of a layer's value to the end."""
    return value if layer.target is aten.linear.default else value.movedim(-3, -1)


def _patches(layer: fx.Node, x: Tensor, taken: Tensor) -> Tensor:
    """Return what a layer multiplies with its weight at some positions of its output, [positions, inputs]."""
    if layer.target is aten.linear.default:
        return x.reshape(-1, x.shape[-1])[taken]
    x = x if x.ndim == 4 else x[None]
    padding, stride, dilation = (argument(layer, name) for name in ("padding", "stride", "dilation"))
    kernel = weight_of(layer).meta["val"].shape[2:]
    return patches(x, taken, kernel, stride, [(side, side) for side in padding], dilation).flatten(1)


@dataclass(frozen=True)
class Replay:
    """A region run node by node on the inputs of one item after the other."""

    program: Program
    region: Region
    weights: Mapping[fx.Node, Tensor]  # of layers that are rounded already
    learned: tuple[fx.Node, ...]
    inputs: tuple[Mapping[fx.Node, tuple[Tensor, Tensor]], ...]
    targets: tuple[tuple[Tensor, ...], ...]
    drop: float

    @property
    def batches(self) -> int:
        """How many items there are."""
        return len(self.inputs)

    def difference(self, weights: Sequence[Tensor], batch: int, generator: torch.Generator | None) -> Tensor:
        """Return the differences to the float outputs of an item, each relative to the output's own size."""
        found = self._run(weights, batch, generator)
        differences = [
            (value - target).flatten() / max(float(target.square().mean()) ** 0.5, SMALLEST)
            for value, target in zip(found, self.targets[batch], strict=True)
        ]
        return torch.cat(differences)

    def _run(self, weights: Sequence[Tensor], batch: int, generator: torch.Generator | None) -> list[Tensor]:
        known = {**self.weights, **dict(zip(self.learned, weights, strict=True))}
        values = {node: mixed(pair, self.drop, generator) for node, pair in self.inputs[batch].items()} | known
        for node in self.region.nodes:
            if node in known:
                continue
            value = step_of(self.program, node).compute(values)
            if node.target is fake_quantize and not is_constant(node.args[0]):
                value = mixed((values[argument(node, "x")], value), self.drop, generator)
            values[node] = value.detach() if node.op == "get_attr" else value
        return [values[end] for end in self.region.ends]


def replay_of(
    program: Program,
    region: Region,
    lanes: Sequence[Lanes],
    targets: Sequence[tuple[Tensor, ...]],
    weights: Mapping[fx.Node, Tensor],
    learned: Sequence[fx.Node],
    drop: float,
) -> Replay:
    """Keep what a region reads."""
    inputs = tuple({node: _detached(values[node]) for node in region.inputs} for values in lanes)
    return Replay(program, region, weights, tuple(learned), inputs, tuple(targets), drop)


def _detached(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    left, right = (value.detach() if isinstance(value, Tensor) else value for value in pair)
    return left, left if pair[0] is pair[1] else right
