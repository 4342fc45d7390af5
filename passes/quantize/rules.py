"""QUANTIZE_RULES: how each op takes part in quantization, one row an op.

An op without a row is float and claims nothing. A row's check gets the call and the target and returns why this call
cannot be integer, or None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.rewrite import argument
from fxopt.target import Target

aten = torch.ops.aten

Check = Callable[[fx.Node, Target], str | None]
Bounds = tuple[float, float]


class Role(Enum):
    """What an op does with integer values.

    - CONVOLUTION: integer input and weight, integer result.
    - LINEAR: integer input and weight, float result.
    - JOIN: integer inputs with a scale each, integer result with its own scale.
    - CONCATENATE: as JOIN, and better with one scale for all.
    - SHARE: moves values or picks among them; input and results must have one scale.
    - CLIP: limits the range; after a CONVOLUTION or JOIN the saturation of the result's quantization does it.
    """

    CONVOLUTION = "convolution"
    LINEAR = "linear"
    JOIN = "join"
    CONCATENATE = "concatenate"
    SHARE = "share"
    CLIP = "clip"


def _always(node: fx.Node, target: Target) -> str | None:
    return None


@dataclass(frozen=True)
class QuantizeRule:
    """One row: the role of an op, a check of the single call, and for a CLIP the bounds of its result."""

    role: Role
    check: Check = _always
    bounds: Callable[[fx.Node], Bounds] | None = None


def convolution_problem(node: fx.Node, target: Target) -> str | None:
    """Say why a target does not run a convolution faster in integers, or return None."""
    kernels, groups = target.convolution, argument(node, "groups")
    weight = argument(node, "weight").meta["val"]
    outputs, width = int(weight.shape[0]), int(weight.shape[1])
    if is_single_position(node):
        return None
    if groups > 1:
        if is_depthwise(node):
            multiple = kernels.depthwise_multiple
            return None if outputs % multiple == 0 else f"depthwise with {outputs} channels, no multiple of {multiple}"
        fewest = kernels.chain_group_width
        return None if width >= fewest else f"{width} channels a group, fewer than {fewest}"
    width = kernels.pad_input.get(width, width)
    if width < kernels.input_minimum or width % kernels.input_multiple:
        return f"{width} input channels; the target takes multiples of {kernels.input_multiple}"
    if outputs < kernels.output_minimum or outputs % kernels.output_multiple:
        return f"{outputs} output channels; the target takes {kernels.output_minimum}+, in {kernels.output_multiple}s"
    return None


def is_depthwise(node: fx.Node) -> bool:
    """Say whether a convolution has one input and one output channel a group."""
    weight, groups = argument(node, "weight").meta["val"], argument(node, "groups")
    return bool(groups > 1 and weight.shape[0] == groups and weight.shape[1] == 1)


def is_single_position(node: fx.Node) -> bool:
    """Say whether a convolution makes one position only, as in squeeze-and-excitation: its time is all overhead."""
    value = node.meta["val"]
    return value.ndim > 2 and all(isinstance(size, int) and size == 1 for size in value.shape[2:])


def needs_chain(node: fx.Node, target: Target) -> bool:
    """Say whether a convolution gains only between integer ops."""
    width = argument(node, "weight").meta["val"].shape[1]
    narrow = argument(node, "groups") > 1 and int(width) < target.convolution.group_width
    return narrow or is_single_position(node)


def linear_problem(node: fx.Node, target: Target | None = None) -> str | None:
    """Say why a linear cannot be integer, or return None."""
    return None if node.meta["val"].ndim >= 2 else "its input is a vector"


def _tensors(node: fx.Node, target: Target) -> str | None:
    """Both operands of an arithmetic op must be computed tensors, and nothing scales the second."""
    for value in node.args[:2]:
        if not isinstance(value, fx.Node) or not isinstance(value.meta["val"], Tensor):
            return "one operand is a number"
        if value.op == "get_attr":
            return "one operand is a constant"
    return "alpha is not 1" if node.kwargs.get("alpha", 1) != 1 else None


def _global_pool(node: fx.Node, target: Target) -> str | None:
    size = argument(node, "output_size")
    return None if list(size) in ([1], [1, 1]) else f"it pools to {list(size)}, not to one value a channel"


def _spatial_mean(node: fx.Node, target: Target) -> str | None:
    rank = argument(node, "self").meta["val"].ndim
    dims = argument(node, "dim")
    if rank == 4 and dims is not None and sorted(dim % rank for dim in dims) == [2, 3]:
        return None
    return "a mean over other dimensions than height and width"


def _zero_pad(node: fx.Node, target: Target) -> str | None:
    if argument(node, "mode") != "constant" or argument(node, "value") or min(argument(node, "pad")) < 0:
        return "it does not pad with zeros"
    return None


def _several(node: fx.Node, target: Target) -> str | None:
    return None if len(argument(node, "tensors")) > 1 else "it has one input"


def _relu(node: fx.Node) -> Bounds:
    return 0.0, math.inf


def _relu6(node: fx.Node) -> Bounds:
    return 0.0, 6.0


def _hardtanh(node: fx.Node) -> Bounds:
    return float(argument(node, "min_val")), float(argument(node, "max_val"))


def _clamp(node: fx.Node) -> Bounds:
    low, high = argument(node, "min"), argument(node, "max")
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def _clamp_min(node: fx.Node) -> Bounds:
    return float(argument(node, "min")), math.inf


SHARE = QuantizeRule(Role.SHARE)
CONVOLUTION = QuantizeRule(Role.CONVOLUTION, convolution_problem)

QUANTIZE_RULES: dict[Any, QuantizeRule] = {
    aten.conv1d.default: CONVOLUTION,
    aten.conv1d.padding: CONVOLUTION,
    aten.conv2d.default: CONVOLUTION,
    aten.conv2d.padding: CONVOLUTION,
    aten.linear.default: QuantizeRule(Role.LINEAR, linear_problem),
    aten.add.Tensor: QuantizeRule(Role.JOIN, _tensors),
    aten.mul.Tensor: QuantizeRule(Role.JOIN, _tensors),
    aten.sigmoid.default: QuantizeRule(Role.JOIN),
    aten.leaky_relu.default: QuantizeRule(Role.JOIN),
    aten.silu.default: QuantizeRule(Role.JOIN),
    aten.hardswish.default: QuantizeRule(Role.JOIN),
    aten.hardsigmoid.default: QuantizeRule(Role.JOIN),
    aten.adaptive_avg_pool2d.default: QuantizeRule(Role.JOIN, _global_pool),
    aten.mean.dim: QuantizeRule(Role.JOIN, _spatial_mean),
    aten.avg_pool2d.default: QuantizeRule(Role.JOIN),
    aten.cat.default: QuantizeRule(Role.CONCATENATE, _several),
    aten.max_pool2d.default: SHARE,
    aten.reshape.default: SHARE,
    aten.view.default: SHARE,
    aten.flatten.using_ints: SHARE,
    aten.transpose.int: SHARE,
    aten.permute.default: SHARE,
    aten.squeeze.dim: SHARE,
    aten.squeeze.dims: SHARE,
    aten.unsqueeze.default: SHARE,
    aten.slice.Tensor: SHARE,
    aten.chunk.default: SHARE,
    aten.split.Tensor: SHARE,
    aten.split_with_sizes.default: SHARE,
    aten.upsample_nearest2d.vec: SHARE,
    aten.pixel_shuffle.default: SHARE,
    aten.pad.default: QuantizeRule(Role.SHARE, _zero_pad),
    aten.contiguous.default: SHARE,
    aten.dropout.default: SHARE,
    aten.relu.default: QuantizeRule(Role.CLIP, bounds=_relu),
    aten.relu6.default: QuantizeRule(Role.CLIP, bounds=_relu6),
    aten.hardtanh.default: QuantizeRule(Role.CLIP, bounds=_hardtanh),
    aten.clamp.default: QuantizeRule(Role.CLIP, bounds=_clamp),
    aten.clamp_min.default: QuantizeRule(Role.CLIP, bounds=_clamp_min),
}


def clip_bounds(node: fx.Node) -> Bounds | None:
    """Return the bounds of a CLIP's result, or None for any other node."""
    rule = QUANTIZE_RULES.get(node.target) if node.op == "call_function" else None
    return rule.bounds(node) if rule is not None and rule.bounds is not None else None
