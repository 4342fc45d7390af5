"""Normalizations, in the whole-op forms that onnxruntime has kernels for."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.onnx_rules.spatial import is_static, per_channel, restore_shape

aten = torch.ops.aten

RMS_NORM_OPSET = 23


def batch_norm(
    g: OnnxGraph,
    input: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    running_mean: fx.Node | None,
    running_var: fx.Node | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> str:
    """aten::batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool training, float momentum, float eps, bool cudnn_enabled) -> Tensor"""  # noqa: E501
    if running_mean is None or running_var is None:
        axes = [0, *range(2, g.rank(input))]
        return _affine(g, _standardize(g, input, axes, eps), weight, bias, g.rank(input))
    affine = _scale_and_shift(g, weight, bias, int(g.val(running_mean).shape[0]))
    return g.op("BatchNormalization", input, *affine, running_mean, running_var, epsilon=eps)


def instance_norm(
    g: OnnxGraph,
    input: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    running_mean: fx.Node | None,
    running_var: fx.Node | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> str:
    """aten::instance_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool use_input_stats, float momentum, float eps, bool cudnn_enabled) -> Tensor"""  # noqa: E501
    if not use_input_stats and running_mean is not None:
        return batch_norm(g, input, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled)
    channels = int(g.val(input).shape[1])
    return g.op("InstanceNormalization", input, *_scale_and_shift(g, weight, bias, channels), epsilon=eps)


def group_norm(
    g: OnnxGraph,
    input: fx.Node,
    num_groups: int,
    weight: fx.Node | None,
    bias: fx.Node | None,
    eps: float,
    cudnn_enabled: bool,
) -> str:
    """aten::group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1.0000000000000001e-05, bool cudnn_enabled=True) -> Tensor"""  # noqa: E501
    rank, channels = g.rank(input), int(g.val(input).shape[1])
    if num_groups == channels and rank > 2:
        return g.op("InstanceNormalization", input, *_scale_and_shift(g, weight, bias, channels), epsilon=eps)
    # A group is one channel of an instance norm; onnxruntime runs that faster than GroupNormalization.
    groups = g.op("Reshape", input, [0, num_groups, -1])
    normed = g.op("InstanceNormalization", groups, *_scale_and_shift(g, None, None, num_groups), epsilon=eps)
    return _affine(g, restore_shape(g, normed, input), weight, bias, rank)


def layer_norm(
    g: OnnxGraph,
    input: fx.Node,
    normalized_shape: list[Any],
    weight: fx.Node | None,
    bias: fx.Node | None,
    eps: float,
    cudnn_enable: bool,
) -> str:
    """aten::layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1.0000000000000001e-05, bool cudnn_enable=True) -> Tensor"""  # noqa: E501
    count = len(normalized_shape)
    if is_static(normalized_shape):
        scale = weight if weight is not None else g.constant(torch.ones(normalized_shape), g.dtype())
        return g.op("LayerNormalization", input, scale, bias, axis=-count, epsilon=eps)
    normed = _standardize(g, input, list(range(-count, 0)), eps)
    if weight is not None:
        normed = g.op("Mul", normed, weight)
    return normed if bias is None else g.op("Add", normed, bias)


def rms_norm(
    g: OnnxGraph, input: fx.Node, normalized_shape: list[Any], weight: fx.Node | None, eps: float | None
) -> str:
    """aten::rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None) -> Tensor"""
    epsilon = torch.finfo(g.dtype(input)).eps if eps is None else eps
    count = len(normalized_shape)
    if g.opset >= RMS_NORM_OPSET and is_static(normalized_shape):
        scale = weight if weight is not None else g.constant(torch.ones(normalized_shape), g.dtype())
        return g.op("RMSNormalization", input, scale, axis=-count, epsilon=epsilon)
    # onnxruntime fuses exactly this chain into SimplifiedLayerNormalization.
    square = g.op("Pow", input, g.constant(2.0, g.dtype()))
    mean = g.op("ReduceMean", square, list(range(-count, 0)), keepdims=1)
    normed = g.op("Div", input, g.op("Sqrt", g.op("Add", mean, g.constant(epsilon, g.dtype()))))
    return normed if weight is None else g.op("Mul", normed, weight)


def weight_norm(g: OnnxGraph, v: fx.Node, g_: fx.Node, dim: int) -> str:
    """aten::_weight_norm(Tensor v, Tensor g, int dim=0) -> Tensor"""
    direction, length = g.tensor(v), g.tensor(g_)
    if direction is not None and length is not None:
        return g.constant(torch._weight_norm(direction, length, dim))
    axes = [axis for axis in range(g.rank(v)) if axis != dim]
    return g.op("Mul", v, g.op("Div", g_, g.op("ReduceL2", v, axes, keepdims=1)))


def _scale_and_shift(g: OnnxGraph, weight: fx.Node | None, bias: fx.Node | None, channels: int) -> tuple[str, str]:
    scale = g.value(weight) if weight is not None else g.constant(torch.ones(channels), g.dtype())
    return scale, g.value(bias) if bias is not None else g.constant(torch.zeros(channels), g.dtype())


def _affine(g: OnnxGraph, value: str, weight: fx.Node | None, bias: fx.Node | None, rank: int) -> str:
    """Multiply and shift channels (dimension 1)."""
    if weight is not None:
        value = g.op("Mul", value, per_channel(g, weight, rank))
    return value if bias is None else g.op("Add", value, per_channel(g, bias, rank))


def _standardize(g: OnnxGraph, input: fx.Node, axes: list[int], eps: float) -> str:
    """Subtract the mean over `axes` and divide by the (biased) standard deviation."""
    centered = g.op("Sub", input, g.op("ReduceMean", input, axes, keepdims=1))
    variance = g.op("ReduceMean", g.op("Mul", centered, centered), axes, keepdims=1)
    return g.op("Div", centered, g.op("Sqrt", g.op("Add", variance, g.constant(eps, g.dtype()))))


RULES: dict[Any, Rule] = {
    aten.batch_norm.default: batch_norm,
    aten.instance_norm.default: instance_norm,
    aten.group_norm.default: group_norm,
    aten.layer_norm.default: layer_norm,
    aten.rms_norm.default: rms_norm,
    aten._weight_norm.default: weight_norm,
}
