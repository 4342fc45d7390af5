"""What SmoothQuant measures: the channels of activations, and the error of quantized linears with each scale."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import DataError, where
from fxopt.graph.grids import SMALLEST_STEP
from fxopt.graph.interpret import run
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.passes.quantize.channel_paths import Reader, balance
from fxopt.passes.quantize.scheme import Scheme
from fxopt.passes.quantize.weight_scales import symmetric_scales

# Steps half as wide changed nothing (MiniLM, 22.8 dB).
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
THRESHOLDS = (0.125, 0.5, 2.0, 8.0)  # times the median range of a channel
ROWS = 256
BLOCK = 2**22  # elements of a weight quantized at a time
INT8 = Scheme()
# No channel counts for less than this share of the median one: what calibration hardly saw may come at run time.
SMALLEST_SHARE = 0.01
# What scales all channels alike, but for so much, is none: it only moves ties of the rounding.
EVEN = 1.01
# No row counts for less than if its output had this share of the mean power.
SMALLEST_ROW = 1e-3


class Activations:
    """The channels of one value, `[..., channels]`: their ranges over all items, and rows of the first items."""

    def __init__(self) -> None:
        self.low = self.high = torch.zeros(())
        self.sampled: list[Tensor] = []
        self.item_ranges: list[tuple[Tensor, Tensor]] = []

    def update(self, value: Tensor, count: int) -> None:
        """Take in the value of one item, and keep so many rows of it."""
        rows = value.detach().reshape(-1, value.shape[-1]).float()
        low, high = rows.amin(0).clamp(max=0), rows.amax(0).clamp(min=0)
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        if count:
            self.sampled.append(rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()])
            self.item_ranges.append((low, high))

    def rows(self) -> Tensor:
        """Return the rows that were kept, `[rows, channels]`."""
        return torch.cat(self.sampled)

    def quantized(self, scale: Tensor, dynamic: bool) -> Tensor:
        """Return the rows divided by a scale of the channels and rounded to uint8, as floats."""
        ranges = self.item_ranges if dynamic else [(self.low, self.high)] * len(self.sampled)
        parts = []
        for rows, (low, high) in zip(self.sampled, ranges, strict=True):
            parts.append(rounded(rows / scale, float((low / scale).amin()), float((high / scale).amax())))
        return torch.cat(parts)


def rounded(x: Tensor, low: float, high: float) -> Tensor:
    """Round to the 256 values of a uint8 range that contains zero."""
    levels = INT8.levels(low)
    step, zero = levels.parameters(low, high)
    return (x / step).round_().add_(zero).clamp_(levels.quant_min, levels.quant_max).sub_(zero).mul_(step)


def watch(
    program: Program, items: Iterable[tuple[Tensor, ...]], values: Collection[fx.Node], samples: int
) -> dict[fx.Node, Activations]:
    """Run items through a Program and look at values. A value of which no item has an element is left out.

    Rows are kept of the first items that hold `samples` samples (the first dimension of the first input), at least of
    one, and of each in proportion to its samples. Raises DataError where a value is not finite.
    """
    program = program.eval()
    names = {node.name for node in values}
    seen: dict[str, Activations] = {name: Activations() for name in names}
    taken = 0
    for number, item in enumerate(items):
        size = item[0].shape[0] if item and item[0].ndim else 1
        count = -(-ROWS * size // max(samples, size)) if taken < samples or not taken else 0
        taken += size

        def look(node: fx.Node, value: Any, number: int = number, count: int = count) -> None:
            if node.name in names and value.numel():
                _check_finite(node, value, number)
                seen[node.name].update(value, count)

        run(program, item, look)
    return {node: seen[node.name] for node in values if seen[node.name].sampled}


def _check_finite(node: fx.Node, value: Tensor, item: int) -> None:
    low, high = (float(end) for end in torch.aminmax(value))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(
            f"Calibration item {item} makes {where(node)} give NaN or infinity, though its inputs are finite. Scale "
            "the inputs as in training."
        )


def best_scale(found: Sequence[tuple[Reader, Activations]], dynamic: bool, worth_it: float) -> Tensor | None:
    """Return the scale of the channels, float64, with the least error of the readers' outputs.

    None if no scale makes the error smaller than `worth_it` of that without.
    """
    activations = torch.stack([reader.gather(torch.maximum(-seen.low, seen.high)) for reader, seen in found]).amax(0)
    weights = torch.stack([reader.gather(_largest(reader.layer.weight.detach())) for reader, _ in found]).amax(0)
    scales = [smoothing_scale(activations, weights, strength) for strength in STRENGTHS]
    scales += [outlier_scale(activations, threshold) for threshold in THRESHOLDS]
    scales = [scale for scale in scales if float(scale.max() / scale.min()) > EVEN]
    if not scales:
        return None
    errors = [output_error(found, scale, dynamic) for scale in scales]
    least = min(errors)
    worth = least < worth_it * output_error(found, torch.ones_like(scales[0]), dynamic)
    return scales[errors.index(least)] if worth else None


def _largest(weight: Tensor) -> Tensor:
    """Return the largest magnitude of each input channel."""
    return torch.maximum(weight.amax(0), -weight.amin(0))


def _stored(weight: Tensor) -> Tensor:
    """Return rows of a weight as they are behind int8."""
    step = symmetric_scales(weight, INT8.weight_max, torch.zeros(len(weight), dtype=torch.float64))
    zeros = torch.zeros(len(weight), dtype=torch.int8)
    stored: Tensor = fake_quantize(weight, step, zeros, 0, -INT8.weight_max, INT8.weight_max)
    return stored


def smoothing_scale(activations: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Return activations^a / weights^(1 - a) with geometric mean 1, of the largest magnitudes `[channels]`, float64.

    1 for a channel without weights or without activations.
    """
    found = activations.double()
    if bool((found > 0).any()):
        smallest = SMALLEST_SHARE * found[found > 0].median()
        found = torch.where(found > 0, found.clamp(min=smallest), 0.0)
    return balance(found.pow(strength), weights.double().pow(1 - strength))


def outlier_scale(activations: Tensor, threshold: float) -> Tensor:
    """Return the scale, float64, that takes channels larger than a threshold down to it, and leaves the others alone.

    The threshold is in units of the median of the channels that are not always zero.
    """
    known = activations.double()
    median = known[known > 0].median() if bool((known > 0).any()) else torch.ones(())
    return (known / (threshold * median)).clamp(min=1.0)


def output_error(found: Sequence[tuple[Reader, Activations]], scale: Tensor, dynamic: bool) -> float:
    """Return the mean squared error of rows of linears with quantized inputs and weights, summed over the linears.

    Each row's is relative to its own power: what follows often normalises each, and a few rows can have most of it all.
    """
    total = 0.0
    for reader, seen in found:
        spread, rows = reader.spread(scale).float(), seen.rows()
        quantized = seen.quantized(spread, dynamic)
        error = power = torch.zeros(len(rows))
        weight = reader.layer.weight.detach()
        for part in torch.split(weight, max(1, BLOCK // max(1, weight.shape[1]))):
            exact = rows @ part.float().T
            error = error + (quantized @ _stored(part.float() * spread).T - exact).square().sum(1)
            power = power + exact.square().sum(1)
        total += float((error / (power + SMALLEST_ROW * power.mean()).clamp(min=SMALLEST_STEP)).mean())
    return total
