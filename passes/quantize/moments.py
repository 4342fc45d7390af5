"""Moments: how the channels of each value are spread, from batch-norm statistics instead of data.

What a batch norm gives is taken as normal, with the mean beta and the deviation |gamma| of each channel. What follows
from it is computed op by op: a channel is a function of one standard normal variable, tabulated at POINTS of it.
(Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2; its
clipped normal is the case of relu and relu6.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import GETITEM, argument, constant
from fxopt.passes.cleanup.fold_batch_norm import channel_scale
from fxopt.passes.cleanup.layers import LAYERS, Layer, grouped_weight, layer_at
from fxopt.passes.quantize.channel_paths import PATHS, Channels
from fxopt.passes.quantize.rules import clip_bounds

aten = torch.ops.aten

WIDEST = 6.0  # deviations on either side of the mean, as in Nagel et al.
INPUT_WIDEST = 3.0  # images are bounded: normalised, they end between 2 and 3 deviations
POINTS = torch.linspace(-WIDEST, WIDEST, 61, dtype=torch.float64)
_DENSITY = torch.exp(-POINTS.square() / 2)
WEIGHTS = _DENSITY / _DENSITY.sum()
# The means of normal variables, over their deviations, among which rectified() chooses.
RATIOS = torch.linspace(-4, WIDEST, 401, dtype=torch.float64)
# A layer is taken for a scaled one if its weights agree with that up to this share of the largest.
SAME = 1e-3


@dataclass(frozen=True)
class Moments:
    """The channels of a value, each as a function of a standard normal variable.

    - `values`: float64 `[channels, points]`, at POINTS, which count as WEIGHTS.
    - `channels`: where the channels lie in the value; None if that was lost, and one row stands for all.
    - `variable`: the name of the variable: the node with which it began. Different ones are taken for independent.
    """

    values: Tensor
    channels: Channels | None
    variable: str | None = None

    @property
    def mean(self) -> Tensor:
        """The mean of each channel."""
        return self.values @ WEIGHTS

    @property
    def variance(self) -> Tensor:
        """The variance of each channel."""
        return (self.values - self.mean[:, None]).square() @ WEIGHTS

    @property
    def low(self) -> Tensor:
        """The smallest value of each channel."""
        return self.values.amin(1)

    @property
    def high(self) -> Tensor:
        """The largest value of each channel."""
        return self.values.amax(1)

    def within(self, low: Tensor, high: Tensor) -> Moments:
        """Cut each channel off at `low` and `high`, `[channels]`."""
        return Moments(self.values.clamp(low[:, None], high[:, None]), self.channels)

    def whole(self) -> Moments:
        """Return one row for all channels, with their common mean, variance and ends."""
        mean = self.mean.mean(0, keepdim=True)
        variance = (self.variance + (self.mean - mean).square()).mean(0, keepdim=True)
        return normal(mean, variance, None).within(self.low.amin(0, keepdim=True), self.high.amax(0, keepdim=True))


def normal(mean: Tensor, variance: Tensor, channels: Channels | None) -> Moments:
    """Return normal channels, cut off at WIDEST deviations. Mean and variance are `[channels]`."""
    deviation = variance.double().clamp(min=0).sqrt()
    return Moments(mean.double()[:, None] + deviation[:, None] * POINTS, channels)


# Gets a call, the moments of what is known, and the module; returns the moments of the result, or None.
Known = Mapping[Any, Moments]
Rule = Callable[[fx.Node, Known, nn.Module], Moments | None]


def rectified(mean: Tensor, variance: Tensor, channels: Channels | None) -> Moments:
    """Return the channels, of these means and variances, that are relu of a normal variable each."""
    tables = (RATIOS[:, None] + POINTS).relu()
    means = tables @ WEIGHTS
    deviations = ((tables - means[:, None]).square() @ WEIGHTS).sqrt()
    ratio = mean / variance.sqrt().clamp(min=1e-30)
    place = torch.searchsorted(means / deviations, ratio).clamp(max=len(RATIOS) - 1)
    values = tables[place] * (mean / means[place])[:, None]
    plain = normal(mean, variance, channels)
    return Moments(torch.where((ratio > WIDEST)[:, None], plain.values, values), channels)


def moments_of(
    program: Program, statistics: Mapping[str, Moments], mean: float = 0.0, deviation: float = 1.0
) -> dict[str, Moments]:
    """Return the moments of the values of a Program, by node name; values that no rule reaches are left out.

    - `statistics`: what is known already, see batch_norm_statistics() and rescaled().
    - `mean`, `deviation`: of the values of the inputs, which end INPUT_WIDEST deviations from the mean.
    """
    known: dict[fx.Node, Moments] = {}
    for node in program.graph.nodes:
        found = _input(node, mean, deviation) if node.op == "placeholder" else None
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is not None:
            found = rule(node, known, program.module)
        if node.name in statistics:
            found = _consistent(statistics[node.name], node, found)
        if found is not None:
            known[node] = found if found.variable else replace(found, variable=node.name)
    return {node.name: found for node, found in known.items()}


def _consistent(told: Moments, node: fx.Node, derived: Moments | None) -> Moments:
    """Return what a batch norm tells of a value, without what the op that makes it cannot give."""
    if node.target in LAYERS or derived is None or bool((derived.low < 0).any()):
        return told
    bounds = clip_bounds(node)
    found = rectified(told.mean, told.variance, told.channels)
    return found if bounds is None else Moments(found.values.clamp(*bounds), found.channels)


def rescaled(statistics: Mapping[str, Moments], scales: Mapping[str, Tensor]) -> dict[str, Moments]:
    """Return statistics behind EqualizeLayers: channels times the scales of their layer, see equalizing_scales()."""
    factors = {name: scales[name][:, None] if name in scales else 1.0 for name in statistics}
    return {name: Moments(found.values * factors[name], found.channels) for name, found in statistics.items()}


def _input(node: fx.Node, mean: float, deviation: float) -> Moments | None:
    value = node.meta["val"]
    if not value.is_floating_point() or value.ndim < 2 or not isinstance(value.shape[1], int):
        return None
    means = torch.full((value.shape[1],), mean, dtype=torch.float64)
    reach = INPUT_WIDEST * deviation
    return normal(means, torch.full_like(means, deviation**2), Channels((1,))).within(means - reach, means + reach)


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


def _mapped(node: fx.Node, known: Known, module: nn.Module) -> Moments | None:
    """A function of each element alone."""
    source, *rest = node.args
    if source not in known or any(isinstance(other, fx.Node) for other in (*rest, *node.kwargs.values())):
        return None
    assert callable(node.target)
    return replace(known[source], values=node.target(known[source].values, *rest, **node.kwargs))


def _moved(node: fx.Node, known: Known, module: nn.Module) -> Moments | None:
    """An op that moves values, picks among them or averages them."""
    source = node.args[0]
    if source not in known:
        return None
    assert isinstance(source, fx.Node)
    found = known[source]
    channels = None if found.channels is None else PATHS[node.target](node, source, found.channels)
    return found.whole() if channels is None else Moments(found.values, channels)


def _padded(node: fx.Node, known: Known, module: nn.Module) -> Moments | None:
    return None if argument(node, "value") else _moved(node, known, module)


def _divided(node: fx.Node, known: Known, module: nn.Module) -> Moments | None:
    """Chunk and split: those of the parts of channels, where those are divided; see _picked."""
    return known.get(node.args[0])


def _picked(node: fx.Node, known: Known, module: nn.Module) -> Moments | None:
    """One of the parts of a chunk or split."""
    divided, part = node.args
    found = known.get(divided)
    if found is None or found.channels is None:
        return found and found.whole()
    assert isinstance(divided, fx.Node)
    dim = argument(divided, "dim") % node.meta["val"].ndim
    if dim not in found.channels.dims:
        return replace(found, variable=None)
    if found.channels != Channels((dim,)):
        return found.whole()
    rest = {key: value for key, value in divided.kwargs.items() if key != "dim"}
    assert callable(divided.target)
    return Moments(divided.target(found.values, divided.args[1], **rest)[part], found.channels)


def _added(node: fx.Node, known: Known, module: nn.Module) -> Moments | None:
    """Means and variances of independent values add up."""
    pair = _pair(node, known)
    if pair is None or argument(node, "alpha") != 1:
        return _mapped(node, known, module)
    left, right = pair
    if left.variable == right.variable:
        return replace(left, values=left.values + right.values)
    found = normal(left.mean + right.mean, left.variance + right.variance, left.channels)
    return found.within(left.low + right.low, left.high + right.high)


def _multiplied(node: fx.Node, known: Known, module: nn.Module) -> Moments | None:
    """Means of independent values multiply, and so do mean squares; the shape is that of the one that varies more."""
    pair = _pair(node, known)
    if pair is None:
        return _mapped(node, known, module)
    left, right = pair
    if left.variable == right.variable:
        return replace(left, values=left.values * right.values)
    mean = left.mean * right.mean
    variance = (left.variance + left.mean.square()) * (right.variance + right.mean.square()) - mean.square()
    first = left.variance * right.mean.square() >= right.variance * left.mean.square()
    shape = torch.where(
        first[:, None], left.values * right.mean.sign()[:, None], right.values * left.mean.sign()[:, None]
    )
    moved = Moments(shape, left.channels)
    stretch = (variance / moved.variance.clamp(min=1e-30)).sqrt()
    ends = torch.stack([a * b for a in (left.low, left.high) for b in (right.low, right.high)])
    found = Moments(mean[:, None] + (shape - moved.mean[:, None]) * stretch[:, None], left.channels)
    return found.within(ends.amin(0), ends.amax(0))


def _pair(node: fx.Node, known: Known) -> tuple[Moments, Moments] | None:
    """Return both operands, with the same channels, if they are known."""
    left, right = (known.get(operand) for operand in node.args[:2])
    if left is None or right is None:
        return None
    same = left.channels == right.channels and len(left.values) == len(right.values)
    return (left, right) if same else (left.whole(), replace(right.whole(), variable=node.name))


def _concatenated(node: fx.Node, known: Known, module: nn.Module) -> Moments | None:
    parts = [known[part] for part in argument(node, "tensors") if part in known]
    if len(parts) < len(argument(node, "tensors")):
        return None
    place = Channels((argument(node, "dim") % node.meta["val"].ndim,))
    if all(part.channels == place for part in parts):
        return Moments(torch.cat([part.values for part in parts]), place)
    return Moments(torch.cat([part.values for part in parts]), None).whole()


def _layer(node: fx.Node, known: Known, module: nn.Module) -> Moments | None:
    """W x + b of independent inputs: mean W E[x] + b, variance W² Var[x]."""
    layer = layer_at(module, node)
    source = None if layer is None else known.get(layer.source)
    if layer is None or source is None or layer.kind.transposed:
        return None
    inputs = layer_inputs(node, source, layer.inputs)
    mean, variance = (value.reshape(layer.groups, 1, -1, 1) for value in inputs)
    weight, bias = grouped_weight(layer), 0.0 if layer.bias is None else layer.bias.detach().double()
    channels = Channels((layer.channel_dim,))
    return normal((weight * mean).sum((2, 3)).flatten() + bias, (weight**2 * variance).sum((2, 3)).flatten(), channels)


def layer_inputs(node: fx.Node, source: Moments, inputs: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each of the input channels of a layer that reads a value, `[inputs]`."""
    place = node.meta["val"].ndim - LAYERS[node.target].spatial - 1  # type: ignore[index]
    if source.channels is None or source.channels.dims != (place,):
        source = source.whole()
    repeat = inputs // len(source.values)
    return source.mean.repeat_interleave(repeat), source.variance.repeat_interleave(repeat)


def _normed(node: fx.Node, known: Known, module: nn.Module) -> Moments | None:
    """A batch norm that stands where it was: a scale and a shift of each channel."""
    affine, source = channel_scale(module, node), known.get(node.args[0])
    if affine is None or source is None or source.channels != Channels((1,)):
        return None
    scale, shift = affine
    return replace(source, values=source.values * scale[:, None] + shift[:, None])


MAPPED = (
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
    aten.leaky_relu.default, aten.elu.default, aten.gelu.default, aten.silu.default, aten.mish.default,
    aten.hardswish.default, aten.hardsigmoid.default, aten.sigmoid.default, aten.tanh.default, aten.neg.default,
    aten.div.Tensor, aten.sub.Tensor,
)  # fmt: skip
MOVED = (
    aten.dropout.default, aten.contiguous.default, aten.clone.default, aten.alias.default, aten.detach.default,
    aten.max_pool1d.default, aten.max_pool2d.default, aten.avg_pool1d.default, aten.avg_pool2d.default,
    aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.mean.dim, aten.amax.default,
    aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec,
    aten.select.int, aten.slice.Tensor,
    aten.permute.default, aten.transpose.int, aten.view.default, aten.reshape.default, aten.flatten.using_ints,
    aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default,
)  # fmt: skip
RULES: dict[Any, Rule] = {
    **dict.fromkeys(MAPPED, _mapped),
    **dict.fromkeys(MOVED, _moved),
    **dict.fromkeys(LAYERS, _layer),
    aten.add.Tensor: _added,
    aten.mul.Tensor: _multiplied,
    aten.cat.default: _concatenated,
    aten.pad.default: _padded,
    aten.constant_pad_nd.default: _padded,
    aten.chunk.default: _divided,
    aten.split.Tensor: _divided,
    aten.split_with_sizes.default: _divided,
    GETITEM: _picked,
    aten.batch_norm.default: _normed,
}
