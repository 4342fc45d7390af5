"""shift_weight: store the weights of a convolution one lower, with the zero point −1. The integers it means stay.

onnxruntime has a convolution kernel for weights whose zero point is 0, and takes all others to a matrix product. On
CPUs with AMX that product runs on tiles, the convolution kernel does not. −1 and not +1: symmetric weights lie in
[−127, 127], and of the two only −1 keeps all of them inside int8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxopt.graph.rewrite import Edit, argument
from fxopt.target import ConvolutionKernels, Target

ZERO_POINT = -1


def shift_weight(edit: Edit, node: fx.Node, target: Target) -> None:
    """Shift the weights of a quantized convolution, if the target runs it faster as a matrix product."""
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    if argument(node, "groups") != 1 or not is_matrix_product(weight.meta["val"].shape, target.convolution):
        return
    stored, zero = edit.constant(weight.args[0]), edit.constant(weight.args[2])
    assert stored is not None and zero is not None
    if bool(zero.any()) or int(stored.min()) == torch.iinfo(stored.dtype).min:
        return
    scale, axis = weight.args[1], argument(weight, "axis")
    weight.args = (
        _replaced(edit, weight.args[0], stored + ZERO_POINT),
        scale,
        _replaced(edit, weight.args[2], torch.full_like(zero, ZERO_POINT)),
        axis,
    )


def is_matrix_product(shape: Sequence[int], kernels: ConvolutionKernels) -> bool:
    """Say whether an ungrouped convolution with a weight [outputs, inputs, *kernel] is faster as a matrix product."""
    positions, channels = math.prod(shape[2:]), min(shape[:2])
    fewest = [count for least, count in sorted(kernels.matrix_product.items()) if least <= positions]
    return bool(fewest) and channels >= fewest[-1]


def _replaced(edit: Edit, source: object, value: Tensor) -> fx.Node:
    assert isinstance(source, fx.Node)
    return edit.add_constant(f"{source.target}_shifted", value, before=source.next)
