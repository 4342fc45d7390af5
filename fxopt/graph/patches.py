"""What a convolution multiplies with its weight at one position of its output, for any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def patches(
    x: Tensor,
    taken: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Tensor:
    """Return the patches of x `[n, channels, *spatial]` at some output positions, `[taken, channels, *kernel]`.

    - `taken`: int64, numbers of positions of the output, counted over `[n, *output spatial]`.
    - `padding`: zeros before and behind each spatial dimension; negative ones crop.
    """
    spatial = len(kernel)
    x = functional.pad(x, [side for pair in reversed(padding) for side in pair])
    for dim, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        x = x.unfold(dim, apart * (size - 1) + 1, step)[..., ::apart]
    positions = [x.shape[0], *x.shape[2 : 2 + spatial]]
    return x.movedim(1, spatial + 1)[torch.unravel_index(taken, positions)]


def stuffed(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Put stride - 1 zeros between neighbours of x `[n, channels, *spatial]`, as a transposed convolution reads it."""
    sizes = [(size - 1) * step + 1 if size else 0 for size, step in zip(x.shape[2:], stride, strict=True)]
    result = x.new_zeros(*x.shape[:2], *sizes)
    result[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    return result
