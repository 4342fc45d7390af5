"""What batch norms tell about the values of a Program, also after they were folded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument, constant
from fxopt.passes.cleanup.layers import Layer, layer_at
from fxopt.passes.quantize.channel_paths import Channels
from fxopt.passes.quantize.moments import Moments, normal

aten = torch.ops.aten
# A layer is taken for a scaled one if its weights agree with that up to this share of the largest.
SAME = 1e-3


def batch_norm_statistics(captured: Program, cleaned: Program) -> dict[str, Moments]:
    """Return what the batch norms of a captured Program say about the values of the cleaned one, by node name.

    A batch norm knows mean and variance of the value that it reads. Folding made another layer of the one before it,
    y' = s y + t; s and t of each channel are read off the two layers of one name. A layer that was changed otherwise is
    left out.

    Raises PassError if that leaves nothing.
    """
    after = {node.name: node for node in cleaned.graph.nodes}
    found = {}
    for norm in captured.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        running, source = running_statistics(captured.module, norm), norm.args[0]
        if running is None or not isinstance(source, fx.Node) or source.name not in after:
            continue
        mean, variance = running
        scale, shift = torch.ones_like(mean), torch.zeros_like(mean)
        layer = layer_at(captured.module, source)
        if layer is not None:
            change = _change(layer, layer_at(cleaned.module, after[source.name]))
            if change is None:
                continue
            scale, shift = change
        found[source.name] = normal(scale * mean + shift, scale.square() * variance, Channels((1,)))
    for norm in cleaned.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        if (running := running_statistics(cleaned.module, norm)) is not None:
            found[norm.args[0].name] = normal(*running, Channels((1,)))
    if not found:
        raise PassError(
            "No batch norm with running statistics stands in this Program, so nothing tells its ranges without data. "
            "Give calibration data, or quantize with dynamic ranges (recipe 'int8-dynamic')."
        )
    return found


def running_statistics(module: nn.Module, norm: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Return the running mean and variance of a batch norm, float64 `[channels]`; None if it has none."""
    mean, variance = (constant(module, argument(norm, name)) for name in ("running_mean", "running_var"))
    return None if mean is None or variance is None else (mean.detach().double(), variance.detach().double())


def _change(before: Layer, after: Layer | None) -> tuple[Tensor, Tensor] | None:
    """Return the scale and shift of each output channel that make a layer another one; None if they do not."""
    if after is None or before.kind.transposed or before.weight.shape != after.weight.shape:
        return None
    old, new = (layer.weight.detach().double().flatten(1) for layer in (before, after))
    power = old.square().sum(1)
    scale = torch.where(power > 0, (old * new).sum(1) / power, 1.0)
    if float((scale[:, None] * old - new).abs().max()) > SAME * float(new.abs().max()):
        return None
    shifts = [0.0 if layer.bias is None else layer.bias.detach().double() for layer in (before, after)]
    return scale, shifts[1] - scale * shifts[0]


def rescaled(statistics: Mapping[str, Moments], scales: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Return statistics behind EqualizeLayers: channels times the scales of their layer, see equalizing_scales()."""
    factors = {name: scales[name][:, None] if name in scales else 1.0 for name in statistics}
    return {name: Moments(found.values * factors[name], found.channels) for name, found in statistics.items()}
