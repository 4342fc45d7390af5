"""Quantized Programs: which nodes claim to be integer, and the op that a quantized linear is lowered to.

A quantized node reads dequantize nodes and, unless its kernel gives float, is read by quantize nodes only: that is
the form in which a runtime can replace it by an integer kernel. The claim is read off the graph, never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.blocks import dequantize_blocks, matmul_nbits
from fxopt.graph.dynamic_lstm import dynamic_lstm
from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.program import Program
from fxopt.graph.recurrent import RECURRENT_SHAPES

aten = torch.ops.aten

# What an op is counted as when it reads and writes integers.
INTEGER_KINDS: dict[Callable[..., Any], str] = {
    aten.conv1d.default: "conv",
    aten.conv1d.padding: "conv",
    aten.conv2d.default: "conv",
    aten.conv2d.padding: "conv",
    aten.linear.default: "linear",
    aten.add.Tensor: "add",
    aten.mul.Tensor: "mul",
    aten.cat.default: "cat",
    aten.adaptive_avg_pool2d.default: "pool",
    aten.mean.dim: "pool",
    aten.avg_pool2d.default: "pool",
    aten.sigmoid.default: "sigmoid",
    aten.leaky_relu.default: "leaky_relu",
    aten.max_pool2d.default: "data",
    aten.reshape.default: "data",
    aten.view.default: "data",
    aten.flatten.using_ints: "data",
    aten.transpose.int: "data",
    aten.permute.default: "data",
    aten.squeeze.dim: "data",
    aten.squeeze.dims: "data",
    aten.unsqueeze.default: "data",
    aten.slice.Tensor: "data",
    aten.chunk.default: "data",
    aten.split.Tensor: "data",
    aten.split_with_sizes.default: "data",
    aten.upsample_nearest2d.vec: "data",
    aten.pixel_shuffle.default: "data",
    aten.pad.default: "data",
}
WEIGHTED_KINDS = {"conv", "linear"}


@torch.library.custom_op(
    "fxopt::matmul_integer_to_float",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor x_scale, Tensor weight_scale, Tensor x_zero_point, "
    "Tensor weight_zero_point, Tensor? bias) -> Tensor",
)
def _matmul_integer_to_float(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    x_zero_point: Tensor,
    weight_zero_point: Tensor,
    bias: Tensor | None,
) -> Tensor:
    # Products of 8-bit values and their sums are exact in float64, whose matrix product is a fast one.
    left = x.double() - x_zero_point.double()
    right = weight.double() - weight_zero_point.double()
    result = (left @ right).to(x_scale.dtype) * (x_scale * weight_scale)
    return result if bias is None else result + bias


@_matmul_integer_to_float.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    x_zero_point: Tensor,
    weight_zero_point: Tensor,
    bias: Tensor | None,
) -> Tensor:
    return x.new_empty([*x.shape[:-1], weight.shape[1]], dtype=x_scale.dtype)


# x[..., K] and weight[K, N] of 8 bits -> float[..., N]: the integer product times both scales, plus a float bias.
matmul_integer_to_float = torch.ops.fxopt.matmul_integer_to_float.default

# Ops that are an integer kernel by themselves, and what they are counted as.
KERNEL_KINDS: dict[Callable[..., Any], str] = {
    matmul_integer_to_float: "linear",
    matmul_nbits: "linear",
    dynamic_lstm: "lstm",
}


def integer_nodes(program: Program) -> Mapping[str, str]:
    """Return {node name: kind} of every node that claims to run as an integer kernel.

    The kinds are conv, linear, lstm, add, mul, cat, pool, sigmoid, leaky_relu, and data for ops that only move
    integers. A Program that is not converted (float, observed, fake-quantized) claims none.
    """
    claims = {}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in KERNEL_KINDS:
            claims[node.name] = KERNEL_KINDS[node.target]
        elif is_weight_only(node):
            claims[node.name] = "linear"
        elif (kind := INTEGER_KINDS.get(node.target)) and _reads_integers(node, kind) and _writes_integers(node, kind):
            claims[node.name] = kind
    return claims


def stored_nodes(program: Program) -> frozenset[str]:
    """Return the names of recurrent nodes that read integer weights as floats: stored so, and asked for (StoreInt8).

    They have no integer kernel, so a runtime dequantizes their weights on every run.
    """
    nodes = (node for node in program.graph.nodes if node.target in RECURRENT_SHAPES)
    return frozenset(node.name for node in nodes if any(map(is_dequantized_weight, node.all_input_nodes)))


def is_dequantized(value: Any) -> bool:
    """Say whether a value is an integer activation in its float form: dequantize of anything but a constant."""
    return isinstance(value, fx.Node) and value.target is dequantize and not is_constant(value.args[0])


def is_dequantized_weight(value: Any) -> bool:
    """Say whether a value is a stored integer weight in its float form."""
    return isinstance(value, fx.Node) and value.target is dequantize and is_constant(value.args[0])


def is_weight_only(node: fx.Node) -> bool:
    """Say whether a node is a linear on a float value and a stored weight of 8, 4 or 2 bits in blocks."""
    if node.target is not aten.linear.default:
        return False
    weight = node.args[1]
    return isinstance(weight, fx.Node) and weight.target is dequantize_blocks and is_constant(weight.args[0])


def is_constant(value: Any) -> bool:
    """Say whether a value is a parameter, buffer or constant."""
    return isinstance(value, fx.Node) and value.op == "get_attr"


def results(node: fx.Node) -> list[fx.Node]:
    """List the tensors that a node makes: itself, or the getitem nodes of an op with several results."""
    return list(node.users) if isinstance(node.meta["val"], (tuple, list)) else [node]


def _reads_integers(node: fx.Node, kind: str) -> bool:
    if kind in WEIGHTED_KINDS:
        return is_dequantized(node.args[0]) and is_dequantized_weight(node.args[1])
    values = [value for value in node.all_input_nodes if isinstance(value.meta["val"], Tensor)]
    return any(map(is_dequantized, values)) and all(value.target is dequantize for value in values)


def _writes_integers(node: fx.Node, kind: str) -> bool:
    if kind == "linear":
        return True
    values = results(node)
    readers = [user for value in values for user in value.users]
    return bool(readers) and all(value.users for value in values) and all(user.target is quantize for user in readers)
