"""The layout in memory that the kernels of convolutions are trained in."""

from __future__ import annotations

import torch
from torch import fx

from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument

CONVOLUTION = torch.ops.aten.conv2d.default
BLOCK = 16  # channels that a vector holds, with AVX-512; 8 with AVX2


def training_layout(program: Program) -> torch.memory_format:
    """Return channels last, in which convolutions train a sixth faster, or the plain layout where that is not safe.

    oneDNN's gradient of a 1x1 kernel with a stride writes past its memory in channels last if there are fewer input
    channels than a vector holds (github.com/uxlfoundation/oneDNN/issues/6035): wrong gradients, or a crash. The layout
    of a layer is that of its input, so one such layer decides for all.
    """
    convolutions = program.graph.find_nodes(op="call_function", target=CONVOLUTION)
    return torch.contiguous_format if any(map(_is_unsafe, convolutions)) else torch.channels_last


def _is_unsafe(node: fx.Node) -> bool:
    _, channels, *kernel = argument(node, "weight").meta["val"].shape
    return bool(channels < BLOCK and max(kernel) == 1 and max(argument(node, "stride")) > 1)
