"""lower: spell quantized patterns the way a target's runtime replaces them by integer kernels.

A rewrite of the graph before emission, exact in integer arithmetic. Nodes that claim to be integer keep their names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional

from fxopt.errors import TargetError, where
from fxopt.export.lower_blocks import lower_block_linear
from fxopt.export.shift_weights import shift_weight
from fxopt.graph.blocks import dequantize_blocks
from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import (
    INTEGER_KINDS,
    is_dequantized,
    is_dequantized_weight,
    is_weight_only,
    matmul_integer_to_float,
)
from fxopt.graph.rewrite import GETITEM, Edit, argument, fake_value
from fxopt.target import Target

aten = torch.ops.aten

# Ops that become Conv, ConvTranspose or Gemm: what onnxruntime's WeightBiasQuantization looks at.
FLOAT_LAYERS = {
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.linear.default,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input,
}  # fmt: skip


def lower(program: Program, target: Target) -> Program:
    """Return the Program in the forms of a target; one without stored integers comes back as it is.

    - A linear becomes fxopt.matmul_integer_to_float (com.microsoft MatMulIntegerToFloat), or, without contrib ops and
      above two dimensions, a matrix product and a bias of the same rank: a one-dimensional bias would be merged into
      a Gemm that runs in float.
    - A convolution whose input channels the target wants padded reads its quantized input with zeros appended.
    - A convolution that the target runs faster as a matrix product has weights with a zero point.
    - A mean over height and width becomes a global average pool and a reshape.
    - A padding of integers is left to the convolution that reads it, or pads the integers themselves.
    - A float layer after a dequantize reads one along the channels, all with the same scale. Between scalar ones,
      onnxruntime would quantize the float weight itself, with one scale for all channels.
    - A linear on a weight in blocks: see lower_blocks.py.

    Raises TargetError for integer weights beyond what the target's kernels are exact for.
    """
    if not any(node.target in (dequantize, dequantize_blocks) for node in program.graph.nodes):
        return program
    edit = Edit(program, by=None)
    for node in list(edit.graph.nodes):
        if node.op == "call_function" and not node._erased and node.args:
            _lower_node(edit, node, target)
    return edit.finish()


def _lower_node(edit: Edit, node: fx.Node, target: Target) -> None:
    kind = INTEGER_KINDS.get(node.target)  # type: ignore[arg-type]
    if is_weight_only(node):
        lower_block_linear(edit, node, target)
    elif node.target in FLOAT_LAYERS and not is_dequantized_weight(node.args[1]):
        _keep_float(edit, node)
    elif not is_dequantized(node.args[0]):
        return
    elif kind == "linear":
        _check_weight(edit, node, target)
        _lower_linear(edit, node, target)
    elif kind == "conv":
        _check_weight(edit, node, target)
        _pad_input(edit, node, target)
        shift_weight(edit, node, target)
    elif node.users and all(user.target is quantize for user in node.users):
        if node.target is aten.mean.dim:
            _lower_mean(edit, node)
        elif node.target is aten.pad.default:
            _lower_pad(edit, node)


def _check_weight(edit: Edit, node: fx.Node, target: Target) -> None:
    stored = edit.constant(_node(node.args[1]).args[0])
    assert stored is not None
    if target.weight_max == torch.iinfo(stored.dtype).max or not stored.numel():
        return
    largest = max(abs(int(end)) for end in torch.aminmax(stored))
    if largest > target.weight_max:
        raise TargetError(
            f"{where(node)} has integer weights up to {largest}; kernels of target '{target.name}' are exact up to "
            f"±{target.weight_max}. Quantize with target='{target.name}' too."
        )


def _lower_linear(edit: Edit, node: fx.Node, target: Target) -> None:
    x, weight, bias = _node(node.args[0]), _node(node.args[1]), argument(node, "bias")
    if target.contrib_ops:
        q, x_scale, x_zero = x.args[:3]
        stored, scale, zero = _transposed(edit, weight), weight.args[1], weight.args[2]
        _become(edit, node, matmul_integer_to_float, q, stored, x_scale, scale, x_zero, zero, bias)
    elif node.meta["val"].ndim > 2:
        stored, (scale, zero) = _transposed(edit, weight), weight.args[1:3]
        axis = None if argument(weight, "axis") is None else 1
        transposed = edit.call(dequantize, stored, scale, zero, axis, before=node, name=f"{weight.name}_t")
        _become(edit, node, aten.matmul.default, x, transposed)
        if bias is not None:
            _add_bias(edit, node, bias)


def _transposed(edit: Edit, weight: fx.Node) -> fx.Node:
    """Return the stored integers of a weight as [inputs, outputs].

    Those of a table that an embedding reads too stay as they are in the file: onnxruntime transposes them at loading.
    """
    source = _node(weight.args[0])
    if any(user.target is aten.embedding.default for user in source.users):
        return edit.call(aten.t.default, source, before=weight, name=f"{source.name}_transposed")
    for user in source.graph.find_nodes(op="get_attr"):
        if user.target == f"{source.target}_transposed":
            return _node(user)
    values = edit.constant(source)
    assert values is not None
    return edit.add_constant(f"{source.target}_transposed", values.t(), before=source.next)


def _add_bias(edit: Edit, node: fx.Node, bias: fx.Node) -> None:
    """Add a bias behind a matrix product, with as many dimensions as the product has."""
    users, following = list(node.users), node.next
    rank, value = node.meta["val"].ndim, edit.constant(bias)
    sizes = [1] * (rank - 1) + [-1]
    if value is not None:
        full = edit.add_constant(f"{bias.target}_{rank}d", value.detach().reshape(sizes), before=following)
    else:
        full = edit.call(aten.reshape.default, bias, sizes, before=following)
    result = edit.call(aten.add.Tensor, node, full, before=following, like=node, name=f"{node.name}_biased")
    for user in users:
        user.replace_input_with(node, result)


def _pad_input(edit: Edit, node: fx.Node, target: Target) -> None:
    x, weight = _node(node.args[0]), _node(node.args[1])
    stored = edit.constant(weight.args[0])
    assert stored is not None
    extra = target.convolution.padded(stored.shape) - int(stored.shape[1])
    if extra <= 0 or argument(node, "groups") != 1 or _node(x.args[0]).target is not quantize:
        return
    q, scale, zero_node = (_node(value) for value in x.args[:3])
    zero = edit.constant(zero_node)
    assert zero is not None
    pads = [0, 0] * (stored.ndim - 2) + [0, extra]
    padded = edit.call(aten.pad.default, q, pads, "constant", float(zero), before=node, name=f"{q.name}_padded")
    wide = edit.call(dequantize, padded, scale, zero_node, None, before=node, name=f"{x.name}_padded")
    source = _node(weight.args[0])
    values = edit.add_constant(f"{source.target}_padded", functional.pad(stored, pads), before=node)
    wide_weight = edit.call(dequantize, values, *weight.args[1:], before=node, name=f"{weight.name}_padded")
    node.args = (wide, wide_weight, *node.args[2:])


def _lower_mean(edit: Edit, node: fx.Node) -> None:
    keep = bool(argument(node, "keepdim"))
    _become(edit, node, aten.adaptive_avg_pool2d.default, node.args[0], [1, 1])
    if keep:
        return
    for reader in list(node.users):
        q = edit.call(quantize, node, *reader.args[1:], before=reader, name=f"{node.name}_pooled")
        value = edit.call(dequantize, q, *reader.args[1:4], before=reader, name=f"{node.name}_dequantized")
        flat = edit.call(aten.flatten.using_ints, value, 1, before=reader, name=f"{node.name}_flat")
        reader.replace_input_with(node, flat)


def _lower_pad(edit: Edit, node: fx.Node) -> None:
    """Let one convolution read the padded float value, where onnxruntime merges the two; else pad the integers."""
    x, quantizers = _node(node.args[0]), list(node.users)
    values = [value for user in quantizers for value in user.users]
    readers = [reader for value in values for reader in value.users]
    if len(readers) == 1 and INTEGER_KINDS.get(readers[0].target) == "conv":  # type: ignore[arg-type]
        readers[0].replace_input_with(values[0], node)
        return
    q, zero = _node(x.args[0]), edit.constant(x.args[2])
    assert zero is not None
    _become(edit, node, aten.pad.default, q, node.args[1], "constant", float(zero))
    for user in quantizers:
        edit.replace(user, node)


def _moves_data(node: fx.Node) -> bool:
    return node.target is GETITEM or INTEGER_KINDS.get(node.target) == "data"  # type: ignore[arg-type]


def _keep_float(edit: Edit, node: fx.Node) -> None:
    """Let a float layer's path start from a dequantize along the channels, if it starts from a dequantize."""
    reader, x = node, _node(node.args[0])
    while x.op == "call_function" and _moves_data(x):
        reader, x = x, x.all_input_nodes[0]
    if not is_dequantized(x) or argument(x, "axis") is not None or not isinstance(x.meta["val"].shape[1], int):
        return
    full = []
    for parameter in x.args[1:3]:
        value = edit.constant(parameter)
        assert value is not None
        name = f"{_node(parameter).target}_channels"
        full.append(edit.add_constant(name, value.repeat(x.meta["val"].shape[1]), before=reader))
    channelwise = edit.call(dequantize, x.args[0], *full, 1, before=reader, name=f"{x.name}_channels")
    reader.replace_input_with(x, channelwise)


def _become(edit: Edit, node: fx.Node, op: Any, *args: Any) -> None:
    """Let a node call another op; it keeps its name and place."""
    node.target = op
    node.args, node.kwargs = args, {}
    node.meta["val"] = fake_value(node, edit.mode)


def _node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value
