"""The moments of the values of a Program, op by op: RULES has a row for each op that is understood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxopt.graph.program import Program
from fxopt.graph.rewrite import GETITEM, argument
from fxopt.passes.cleanup.fold_batch_norm import channel_scale
from fxopt.passes.cleanup.layers import LAYERS, grouped_weight, layer_at
from fxopt.passes.quantize.channel_paths import PATHS, Channels
from fxopt.passes.quantize.moments import Moments, normal, rectified
from fxopt.passes.quantize.rules import clip_bounds

aten = torch.ops.aten

INPUT_WIDEST = 3.0  # images are bounded: normalised, they end between 2 and 3 deviations
# Gets a call, the moments of what is known, and the module; returns the moments of the result, or None.
Known = Mapping[Any, Moments]
Rule = Callable[[fx.Node, Known, nn.Module], Moments | None]


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


def _input(node: fx.Node, mean: float, deviation: float) -> Moments | None:
    value = node.meta["val"]
    if not value.is_floating_point() or value.ndim < 2 or not isinstance(value.shape[1], int):
        return None
    means = torch.full((value.shape[1],), mean, dtype=torch.float64)
    reach = INPUT_WIDEST * deviation
    return normal(means, torch.full_like(means, deviation**2), Channels((1,))).within(means - reach, means + reach)


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
    place = node.meta["val"].ndim - LAYERS[node.target].spatial - 1
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
