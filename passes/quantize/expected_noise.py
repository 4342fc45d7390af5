"""expected_noise: how much noise quantization will add to the layers of a Program, estimated without data."""

from __future__ import annotations

import torch
from torch import Tensor

from fxopt.graph.program import Program
from fxopt.passes.cleanup.layers import Layer, grouped_weight, layer_at
from fxopt.passes.quantize.moment_rules import layer_inputs
from fxopt.passes.quantize.quantize_data_free import QuantizeDataFree
from fxopt.passes.quantize.weight_scales import largest_integer, symmetric_scales
from fxopt.target import find_target

ROUNDING = 1e-12  # a variance below this share of the squared mean is what float64 leaves of none


def expected_noise(program: Program, step: QuantizeDataFree) -> float:
    """Return the variance of rounding errors over that of the exact values, averaged over channels, then over layers.

    A channel counts 1 at most: beyond that all is noise, and a dead one has nothing to lose. Errors are taken for
    independent and uniform in a step d, with the variance d² / 12: those of the inputs meet the weights, those of the
    weights the mean squares of the inputs. The ratio does not change with the scale of a channel, so Programs that
    compute the same may be compared. Zero if nothing becomes integer.
    """
    placement = step.placement(program)
    steps: dict[str, float] = {}
    for names, (low, high) in step.ranges(placement).items():
        steps |= dict.fromkeys(names, (high - low) / (2**step.scheme.activation_bits - 1))
    ratios = []
    for node in program.graph.nodes:
        layer = layer_at(program.module, node) if node.name in placement.integer else None
        if layer is not None and node.name in step.moments:
            noise = _noise(layer, step, steps[layer.source.name])
            found = step.moments[node.name]
            alive = found.variance > ROUNDING * found.mean.square()
            ratios.append(float(torch.where(alive & (noise < found.variance), noise / found.variance, 1.0).mean()))
    return sum(ratios) / max(len(ratios), 1)


def _noise(layer: Layer, step: QuantizeDataFree, input_step: float) -> Tensor:
    """Return the variance of the rounding errors of each output channel, `[outputs]`."""
    mean, variance = layer_inputs(layer.node, step.moments[layer.source.name], layer.inputs)
    weight = grouped_weight(layer)
    power = (variance + mean.square()).reshape(layer.groups, -1).sum(1) * weight.shape[3]
    largest = largest_integer(step.scheme, find_target(step.target))
    weight_steps = symmetric_scales(layer.weight.detach(), largest, torch.zeros(layer.outputs), step.scheme)
    of_weights = weight_steps.double().expand(layer.outputs).square().reshape(layer.groups, -1) * power[:, None]
    return (weight.square().sum((2, 3)) * input_step**2 + of_weights).flatten() / 12
