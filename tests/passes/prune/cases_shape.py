"""Cases of ops that move positions: reshapes, permutations, slices, concatenations. All lie between two layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.passes.prune.checks import Case, case

aten = torch.ops.aten
ROWS = torch.randn(2, 5, 6)
IMAGE = torch.randn(2, 3, 4, 4)
INDEX = torch.tensor([7, 0, 3, 3])
COLUMNS = torch.tensor([1, 2, 4])


def between(
    function: Callable[..., Tensor], widths: Sequence[int], out: int = 8, width: int = 8, **members: Any
) -> Case:
    """A function of a value [2, 5, width] that a linear makes; another linear reads its last dimension, `out`."""
    return case(
        lambda m, x: m.second(function(m, torch.tanh(m.first(x)))),
        ROWS,
        widths=widths,
        first=nn.Linear(6, width),
        second=nn.Linear(out, 3),
        **members,
    )


def between_images(
    function: Callable[..., Tensor], widths: Sequence[int], out: int = 8, width: int = 8, **members: Any
) -> Case:
    """The same with convolutions and a value [2, width, 4, 4]."""
    return case(
        lambda m, x: m.second(function(m, torch.tanh(m.first(x)))),
        IMAGE,
        widths=widths,
        first=nn.Conv2d(3, width, 1),
        second=nn.Conv2d(out, 3, 1),
        **members,
    )


def _shuffle(x: Tensor, groups: int = 2) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2)
    return x.reshape(batch, channels, height, width)


torch.manual_seed(0)
SHAPE_CASES: dict[str, Case] = {
    "view": between(lambda m, x: x.view(10, 8).view(2, 5, 8), [8]),
    "reshape_to_heads": between(lambda m, x: x.reshape(2, 5, 2, 4).transpose(2, 3).reshape(2, 5, 8), [4, 2]),
    "unsafe_view": between(lambda m, x: aten._unsafe_view(x, [2, 5, 4, 2]).flatten(2), [4, 2]),
    "flatten": between_images(lambda m, x: x.flatten(1)[:, :, None, None], [8], 128),
    "unflatten": between(lambda m, x: x.unflatten(-1, (2, 4)).flatten(-2), [4, 2]),
    "squeeze": between(lambda m, x: x.unsqueeze(0).squeeze(), [8]),
    "squeeze_dim": between(lambda m, x: x.unsqueeze(2).squeeze(2), [8]),
    "squeeze_dims": between(lambda m, x: x[None, :, None].squeeze((0, 2)), [8]),
    "reshape_as": between(lambda m, x: x.view(10, 8).reshape_as(x), [8]),
    "view_as": between(lambda m, x: x.view(10, 8).view_as(x), [8]),
    "permute": between(lambda m, x: x.permute(2, 0, 1).permute(1, 2, 0), [8]),
    "transpose": between(lambda m, x: x.transpose(0, -1).transpose(-1, 0), [8]),
    "swapdims": between(lambda m, x: aten.swapdims(aten.swapdims(x, 0, 2), 0, 2), [8]),
    "ravel": between(lambda m, x: x + aten.ravel(x.sum((0, 1))), [8]),
    "swapaxes": between(lambda m, x: aten.swapaxes(aten.swapaxes(x, 0, 2), 0, 2), [8]),
    "movedim": between(lambda m, x: aten.movedim.int(aten.movedim.int(x, 2, 0), 0, 2), [8]),
    "movedim_list": between(lambda m, x: x.movedim((1, 2), (0, 1)).movedim((0, 1), (1, 2)), [8]),
    "t": between(lambda m, x: aten.t(aten.t(x[0])), [8]),
    "numpy_T": between(lambda m, x: aten.numpy_T(aten.numpy_T(x[0])), [8]),
    "mT": between(lambda m, x: aten.mT(aten.mT(x)), [8]),
    "expand": between(lambda m, x: x[:, :, None].expand(2, 5, 3, 8).sum(2), [8]),
    "expand_to_channels": between(lambda m, x: x + m.one.expand(1, 1, 8), [8], one=torch.ones(1, 1, 1)),
    "broadcast_to": between(lambda m, x: torch.broadcast_to(x, (3, 2, 5, 8)), [8]),
    "expand_as": between(lambda m, x: x * m.one.expand_as(x), [8], one=torch.ones(1, 1, 1)),
    "repeat": between(lambda m, x: x.repeat(1, 1, 2), [8], 16),
    "tile": between(lambda m, x: x.tile(2), [8], 16),
    "repeat_interleave": between(lambda m, x: x.repeat_interleave(2, -1), [8, 2], 16),
    "pixel_shuffle": between_images(lambda m, x: functional.pixel_shuffle(x, 2), [2], 2),
    "pixel_unshuffle": between_images(lambda m, x: functional.pixel_unshuffle(x, 2), [8], 32),
    "channel_shuffle": between_images(lambda m, x: aten.channel_shuffle(x, 2), [4, 2]),
    "channel_shuffle_by_views": between_images(lambda m, x: _shuffle(x), [4, 2]),
    "im2col": between_images(lambda m, x: functional.unfold(x, 2)[..., None], [8], 32),
    "col2im": between_images(lambda m, x: functional.fold(x.flatten(2), (5, 5), (2, 2)), [2], 2),
    "unfold": between(lambda m, x: x.unfold(1, 2, 1).flatten(2), [8], 16),
    "stack": between(lambda m, x: torch.stack([x, x * 2], 2).flatten(2), [8], 16),
    "unbind": between(lambda m, x: torch.mul(*x.unflatten(-1, (2, 4)).unbind(2)), [4], 4),
    "select": between(lambda m, x: x.unflatten(-1, (2, 4))[:, :, 1], [4], 4),
    "cat": between(lambda m, x: torch.cat([x, torch.relu(x[..., :3])], -1), [5, 3], 11),
    "cat_with_itself": between(lambda m, x: torch.cat([x, x], -1), [8], 16),
    "concat": between(lambda m, x: aten.concat([x, x], -1), [8], 16),
    "split": between(lambda m, x: x.split(3, -1)[0] + x.split(3, -1)[1], [3, 2], 3),
    "split_sizes": between(lambda m, x: aten.split.sizes(x, [3, 5], -1)[1], [5, 3], 5),
    "split_with_sizes": between(lambda m, x: x.split([3, 5], -1)[1], [5, 3], 5),
    "chunk": between(lambda m, x: torch.cat(x.chunk(3, -1)[::-1], -1), [8]),
    "tensor_split": between(lambda m, x: aten.tensor_split.sections(x, 3, -1)[0], [5, 3], 3),
    "tensor_split_at": between(lambda m, x: aten.tensor_split.indices(x, [2, 6], -1)[1], [4, 4], 4),
    "slice": between(lambda m, x: x[..., 1:-2], [5, 3], 5),
    "slice_with_step": between(lambda m, x: x[..., ::2] + x[..., 1::2], [4], 4),
    "slice_with_step_uneven": between(lambda m, x: x[..., ::2], [4, 4], 4),
    "narrow": between(lambda m, x: x.narrow(-1, -5, 3), [5, 3], 3),
    "slice_scatter": between(lambda m, x: x.slice_scatter(x[..., :3] * 2, -1, 2, 5), [3, 1, 1]),
    "select_scatter": between(lambda m, x: x.select_scatter(x[:, 0], 1, 2), [8]),
    "glu": between(lambda m, x: aten.glu(x), [4], 4),
    "gated": between(lambda m, x: torch.mul(*x.chunk(2, -1)), [4], 4),
    "index": between(lambda m, x: x[..., m.index], [5, 2, 1], 4, index=INDEX),
    "index_select": between(lambda m, x: x.index_select(-1, m.index), [5, 3], 3, index=COLUMNS),
    "index_tokens": between(lambda m, x: x[:, m.index], [8], index=torch.tensor([0, 3])),
    "index_two_dims": between(lambda m, x: x[m.rows, m.rows], [8], rows=torch.tensor([0, 1])),
    "gather": between(lambda m, x: x.gather(1, (x[:, :2] > 0).long()), [8]),
    "pad": between(lambda m, x: functional.pad(x, (1, 2)), [8], 11),
    "pad_crops": between(lambda m, x: functional.pad(x, (-2, -1)), [5, 3], 5),
    "pad_reflects": between_images(lambda m, x: functional.pad(x, (1, 1, 1, 1), mode="reflect"), [8]),
    "constant_pad_nd": between(lambda m, x: aten.constant_pad_nd(x, [0, 1, 1, 1], 2.0), [8], 9),
    "roll": between(lambda m, x: x.roll((1, 3), (1, 2)), [8]),
    "flip": between(lambda m, x: x.flip(-1), [8]),
}
