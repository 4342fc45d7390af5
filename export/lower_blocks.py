"""Linears on weights in blocks: com.microsoft MatMulNBits, or a matrix product behind a DequantizeLinear in blocks.

onnxruntime turns the second form into the first where it loads the model, if nothing else reads the weight: each
linear gets a copy of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import TargetError, where
from fxopt.graph.blocks import (
    KERNEL_BLOCKS,
    dequantize_blocks,
    fake_quantize_blocks,
    kernel_block,
    matmul_nbits,
    pack_bits,
)
from fxopt.graph.rewrite import Edit, argument, fake_value
from fxopt.target import Target

aten = torch.ops.aten

INT8_LEVEL = 4  # the accuracy level that rounds the input to int8


def lower_block_linear(edit: Edit, node: fx.Node, target: Target) -> None:
    """Give a linear that reads dequantize_blocks the form of a target; it keeps its name.

    Raises TargetError for 2 bits where the target has no contrib ops: such tensors are not in ONNX before opset 25.
    """
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    bits, block = int(argument(weight, "bits")), int(argument(weight, "block_size"))
    if block not in KERNEL_BLOCKS[bits]:
        block = kernel_block(bits, int(weight.meta["val"].shape[1]))
    level = 0
    if x.target is fake_quantize_blocks:
        level = INT8_LEVEL
        x = x.all_input_nodes[0]
    if target.contrib_ops:
        _lower_to_kernel(edit, node, x, weight, block, level)
    elif bits == 2:
        raise TargetError(
            f"{where(node)} has a weight of 2 bits, which target '{target.name}' cannot store. Choose 4 bits, or a "
            "target with onnxruntime's own ops (x86, arm64)."
        )
    else:
        _lower_to_product(edit, node, x, weight, block)


def _lower_to_kernel(edit: Edit, node: fx.Node, x: fx.Node, weight: fx.Node, block: int, level: int) -> None:
    """Store the weight as [outputs, blocks, bytes], each block full, and a scale for each."""
    bits = int(argument(weight, "bits"))
    q, scale, zero = _parts(edit, weight, block)
    stored = _once(edit, weight, f"packed_{block}", lambda: _packed_blocks(q, bits, block))
    scales = _once(edit, weight, f"scale_{block}", lambda: scale)
    zeros = None if zero is None else _once(edit, weight, f"zero_point_{block}", lambda: pack_bits(zero, bits))
    _become(edit, node, matmul_nbits, x, stored, scales, zeros, argument(node, "bias"), bits, block, level)


def _parts(edit: Edit, weight: fx.Node, block: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the stored values, and scales and zero points of blocks of this size; one of a row counts for all."""
    q, scale, zero = (edit.constant(argument(weight, name)) for name in ("q", "scale", "zero_point"))
    assert q is not None and scale is not None
    count = -(-q.shape[1] // block)
    zeros = None if zero is None else zero.expand(-1, count).contiguous()
    return q, scale.expand(-1, count).contiguous(), zeros


def _packed_blocks(q: Tensor, bits: int, block: int) -> Tensor:
    padded = torch.nn.functional.pad(q, (0, -q.shape[1] % block))
    return pack_bits(torch.unflatten(padded, 1, (-1, block)), bits)


def _lower_to_product(edit: Edit, node: fx.Node, x: fx.Node, weight: fx.Node, block: int) -> None:
    name, parts = argument(weight, "q").target, []
    for part, value in zip(("values", "scale", "zero_point"), _parts(edit, weight, block), strict=True):
        columns = None if value is None else value.t().contiguous()
        parts.append(None if columns is None else edit.add_constant(f"{name}_{part}_t", columns, before=node))
    product = edit.call(
        dequantize_blocks, *parts, 0, block, argument(weight, "bits"), before=node, name=f"{node.name}_weight"
    )
    bias = argument(node, "bias")
    _become(edit, node, aten.matmul.default, x, product)
    if bias is not None:
        _add_bias(edit, node, bias)


def _add_bias(edit: Edit, node: fx.Node, bias: fx.Node) -> None:
    """Add a bias behind a matrix product.

    Of a product of two matrices, a bias and a relu, onnxruntime makes one float Gemm. It does not if the negative bias
    is subtracted, which is the same to the last bit.
    """
    users, following = list(node.users), node.next
    op, value = aten.add.Tensor, edit.constant(bias)
    if node.meta["val"].ndim == 2 and value is not None and any(user.target is aten.relu.default for user in users):
        op, bias = aten.sub.Tensor, edit.add_constant(f"{bias.target}_negative", -value.detach(), before=following)
    result = edit.call(op, node, bias, before=following, like=node, name=f"{node.name}_biased")
    for user in users:
        user.replace_input_with(node, result)


def _once(edit: Edit, weight: fx.Node, part: str, make: Any) -> fx.Node:
    """Return the constant that is made of a weight for the kernel, shared by all linears that read the weight."""
    source = argument(weight, "q")
    assert isinstance(source, fx.Node)
    name = f"{source.target}_{part}"
    for known in source.graph.find_nodes(op="get_attr"):
        if known.target == name:
            assert isinstance(known, fx.Node)
            return known
    return edit.add_constant(name, make(), before=source.next)


def _become(edit: Edit, node: fx.Node, op: Any, *args: Any) -> None:
    node.target = op
    node.args, node.kwargs = args, {}
    node.meta["val"] = fake_value(node, edit.mode)
