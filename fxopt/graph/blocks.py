"""Weights of 8, 4 or 2 bits with one scale a block, and the linear that a runtime runs on them.

A block is `block_size` neighbours along one axis; the last one may be shorter. Stored values and zero points lie in
[0, 2^bits − 1], one a uint8, and are packed only in a file. Without zero points the middle, 2^(bits−1), stands for 0.
onnxruntime's MatMulNBits may round its input to int8 too, in the same blocks: fake_quantize_blocks is that rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["KERNEL_BLOCKS", "dequantize_blocks", "fake_quantize_blocks", "matmul_nbits", "pack_bits"]

INT8_MAX = 127
# Bits -> the block sizes for which onnxruntime has kernels on int8 values.
KERNEL_BLOCKS: dict[int, tuple[int, ...]] = {8: (128, 64, 32, 16), 4: (128, 64, 32, 16), 2: (128, 64, 32)}


def middle(bits: int) -> int:
    """Return the stored value that stands for zero where there are no zero points."""
    return 1 << (bits - 1)


@torch.library.custom_op(
    "fxopt::dequantize_blocks",
    mutates_args=(),
    schema="(Tensor q, Tensor scale, Tensor? zero_point, int axis, int block_size, int bits) -> Tensor",
)
def _dequantize_blocks(
    q: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block_size: int, bits: int
) -> Tensor:
    result = q.to(scale.dtype, copy=True)
    size = q.shape[axis]
    whole = size // block_size * block_size
    for start, length, block in ((0, whole, block_size), (whole, size - whole, size - whole)):
        if length:
            count = length // block
            part = torch.unflatten(result.narrow(axis, start, length), axis, (count, block))
            first, inner = start // block_size, axis % q.ndim + 1
            if zero_point is None:
                part.sub_(middle(bits))
            else:
                part.sub_(zero_point.narrow(axis, first, count).unsqueeze(inner).to(scale.dtype))
            part.mul_(scale.narrow(axis, first, count).unsqueeze(inner))
    return result


@_dequantize_blocks.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int, block_size: int, bits: int) -> Tensor:
    return torch.empty_like(q, dtype=scale.dtype)


@torch.library.custom_op("fxopt::fake_quantize_blocks", mutates_args=(), schema="(Tensor x, int block_size) -> Tensor")
def _fake_quantize_blocks(x: Tensor, block_size: int) -> Tensor:
    size = x.shape[-1]
    blocks = torch.unflatten(functional.pad(x, (0, -size % block_size)), -1, (-1, block_size))
    largest = blocks.abs().amax(-1, keepdim=True)
    scale = largest / INT8_MAX
    # The kernel multiplies by the reciprocal; a division would round some values to the other side.
    reciprocal = (INT8_MAX / largest).clamp_(max=torch.finfo(x.dtype).max)
    steps = torch.round(blocks * reciprocal)
    return steps.mul_(scale).flatten(-2)[..., :size].contiguous()


@_fake_quantize_blocks.register_fake
def _(x: Tensor, block_size: int) -> Tensor:
    return x.new_empty(x.shape)


_fake_quantize_blocks.register_autograd(lambda ctx, gradient: (gradient, None))


@torch.library.custom_op(
    "fxopt::matmul_nbits",
    mutates_args=(),
    schema="(Tensor x, Tensor packed, Tensor scale, Tensor? zero_point, Tensor? bias, int bits, int block_size, "
    "int accuracy_level) -> Tensor",
)
def _matmul_nbits(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    bits: int,
    block_size: int,
    accuracy_level: int,
) -> Tensor:
    q = unpack_bits(packed, bits).flatten(1)[:, : x.shape[-1]]
    zeros = None if zero_point is None else unpack_bits(zero_point, bits)[:, : scale.shape[1]]
    weight = _dequantize_blocks(q, scale, zeros, 1, block_size, bits)
    return functional.linear(x if accuracy_level == 0 else _fake_quantize_blocks(x, block_size), weight, bias)


@_matmul_nbits.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    bits: int,
    block_size: int,
    accuracy_level: int,
) -> Tensor:
    return x.new_empty([*x.shape[:-1], packed.shape[0]])


def kernel_block(bits: int, size: int) -> int:
    """Return the block size, of those with a kernel, in which a row of `size` values takes the fewest bytes."""
    return min(KERNEL_BLOCKS[bits], key=lambda block: row_bytes(bits, size, block))


def row_bytes(bits: int, size: int, block: int) -> int:
    """Count the bytes of `size` values in full blocks, each with a float32 scale."""
    return -(-size // block) * (block * bits // 8 + 4)


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned values of `bits` bits along the last axis into bytes, the first in the lowest bits; 0 fills up."""
    count = 8 // bits
    full = functional.pad(values, (0, -values.shape[-1] % count))
    parts = torch.unflatten(full, -1, (-1, count)).unbind(-1)
    packed = parts[0].clone()
    for position, part in enumerate(parts[1:], start=1):
        packed |= part << (bits * position)
    return packed


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """Return what pack_bits packed, with the values that filled it up."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return torch.flatten((packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1), -2)


# q of uint8 in blocks along `axis`; scale and zero point have the shape of q with one value a block there.
dequantize_blocks = torch.ops.fxopt.dequantize_blocks.default
# x rounded to int8 in blocks of its last axis, each with the scale max|x| / 127, and back in float.
fake_quantize_blocks = torch.ops.fxopt.fake_quantize_blocks.default
# x[..., K] and packed weights [N, blocks, bytes] -> float[..., N]; accuracy level 4 rounds x by blocks, 0 does not.
matmul_nbits = torch.ops.fxopt.matmul_nbits.default
