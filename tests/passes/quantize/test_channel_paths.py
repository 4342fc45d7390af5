"""PATHS, row by row: scaling the channels before an op is scaling them, where the row says, behind it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from fxopt.passes.quantize.channel_paths import PATHS, Channels, balance

aten = torch.ops.aten
X = object()  # stands for the scaled operand
IMAGE, TOKENS, HEADS = (2, 3, 4, 4), (2, 5, 6), (2, 3, 5, 4)
ROW, LAST, HEAD = Channels((1,)), Channels((2,)), Channels((1, 3))


def other(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


# The op, the shape of X, its channels, the arguments.
CASES: list[tuple[Any, tuple[int, ...], Channels, tuple[Any, ...]]] = [
    (aten.relu.default, IMAGE, ROW, (X,)),
    (aten.leaky_relu.default, IMAGE, ROW, (X, 0.2)),
    (aten.prelu.default, IMAGE, ROW, (X, other(3))),
    (aten.clamp.default, TOKENS, LAST, (X, 0)),
    (aten.clamp_min.default, TOKENS, LAST, (X, 0.0)),
    (aten.dropout.default, IMAGE, ROW, (X, 0.5, False)),
    (aten.feature_dropout.default, IMAGE, ROW, (X, 0.5, False)),
    (aten.contiguous.default, IMAGE, ROW, (X,)),
    (aten.clone.default, IMAGE, ROW, (X,)),
    (aten.alias.default, IMAGE, ROW, (X,)),
    (aten.detach.default, IMAGE, ROW, (X,)),
    (aten.neg.default, IMAGE, ROW, (X,)),
    (aten.abs.default, IMAGE, ROW, (X,)),
    (aten.max_pool1d.default, (2, 3, 8), ROW, (X, [2])),
    (aten.max_pool2d.default, IMAGE, ROW, (X, [3, 3], [2, 2], [1, 1])),
    (aten.max_pool3d.default, (2, 3, 4, 4, 4), ROW, (X, [2, 2, 2])),
    (aten.avg_pool1d.default, (2, 3, 8), ROW, (X, [2])),
    (aten.avg_pool2d.default, IMAGE, ROW, (X, [3, 3], [2, 2], [1, 1])),
    (aten.avg_pool3d.default, (2, 3, 4, 4, 4), ROW, (X, [2, 2, 2])),
    (aten.adaptive_avg_pool1d.default, (2, 3, 8), ROW, (X, [1])),
    (aten.adaptive_avg_pool2d.default, IMAGE, ROW, (X, [1, 2])),
    (aten.adaptive_avg_pool3d.default, (2, 3, 4, 4, 4), ROW, (X, [1, 1, 1])),
    (aten.upsample_nearest1d.vec, (2, 3, 4), ROW, (X, [8], None)),
    (aten.upsample_nearest2d.vec, IMAGE, ROW, (X, [8, 8], None)),
    (aten.upsample_nearest3d.vec, (2, 3, 2, 2, 2), ROW, (X, [4, 4, 4], None)),
    (aten.upsample_bilinear2d.vec, IMAGE, ROW, (X, [7, 7], False, None)),
    (aten.upsample_bicubic2d.vec, IMAGE, ROW, (X, [7, 7], False, None)),
    (aten.pad.default, IMAGE, ROW, (X, [1, 2, 1, 0])),
    (aten.pad.default, IMAGE, ROW, (X, [1, 2, 1, 0], "reflect")),
    (aten.constant_pad_nd.default, IMAGE, ROW, (X, [1, 2, 1, 0])),
    (aten.mean.dim, IMAGE, ROW, (X, [2, 3])),
    (aten.mean.dim, IMAGE, ROW, (X, [-1, 0], True)),
    (aten.sum.dim_IntList, TOKENS, LAST, (X, [1])),
    (aten.amax.default, IMAGE, ROW, (X, [-1])),
    (aten.select.int, TOKENS, LAST, (X, 1, 0)),
    (aten.slice.Tensor, TOKENS, LAST, (X, 1, 1, 4)),
    (aten.roll.default, TOKENS, LAST, (X, [2], [1])),
    (aten.flip.default, TOKENS, LAST, (X, [0, 1])),
    (aten.permute.default, HEADS, HEAD, (X, [0, 2, 1, 3])),
    (aten.permute.default, IMAGE, ROW, (X, [3, -3, 0, 2])),
    (aten.transpose.int, HEADS, HEAD, (X, 1, -2)),
    (aten.view.default, TOKENS, LAST, (X, [2, 5, 3, 2])),
    (aten.view.default, (2, 5, 3, 2), Channels((2, 3)), (X, [10, 6])),
    (aten.reshape.default, IMAGE, ROW, (X, [2, 3, 16])),
    (aten.flatten.using_ints, IMAGE, ROW, (X, 1)),
    (aten.unflatten.int, (2, 12), Channels((1,), 4), (X, 1, [3, 2, 2])),
    (aten.squeeze.default, (2, 3, 1, 1), ROW, (X,)),
    (aten.squeeze.dim, (2, 3, 1, 1), ROW, (X, 3)),
    (aten.squeeze.dims, (2, 3, 1, 1), ROW, (X, [2, 3])),
    (aten.unsqueeze.default, (2, 3), ROW, (X, 1)),
    (aten.expand.default, (3, 1), Channels((0,)), (X, [2, 3, 4])),
    (aten.mul.Tensor, IMAGE, ROW, (X, other(2, 3, 1, 1))),
    (aten.mul.Tensor, (2, 3, 1, 1), ROW, (other(2, 3, 4, 4), X)),
    (aten.mul.Tensor, IMAGE, ROW, (X, -2.0)),
    (aten.mul.Scalar, IMAGE, ROW, (X, 0.125)),
    (aten.div.Tensor, TOKENS, LAST, (X, other(6))),
    (aten.div.Scalar, TOKENS, LAST, (X, 3.0)),
    (aten.scaled_dot_product_attention.default, HEADS, HEAD, (other(2, 3, 7, 4), other(2, 3, 5, 4), X)),
    (aten.matmul.default, HEADS, HEAD, (other(2, 3, 7, 5), X)),
    (aten.bmm.default, TOKENS, LAST, (other(2, 7, 5), X)),
]
# Calls whose result is not the input's scaled channel by channel.
REFUSED: list[tuple[Any, tuple[int, ...], Channels, tuple[Any, ...]]] = [
    (aten.clamp.default, TOKENS, LAST, (X, 0, 6)),
    (aten.clamp_min.default, TOKENS, LAST, (X, 0.1)),
    (aten.max_pool1d.default, (2, 5, 6), LAST, (X, [2])),
    (aten.upsample_nearest1d.vec, (2, 5, 6), LAST, (X, [8], None)),
    (aten.pad.default, IMAGE, ROW, (X, [1, 1, 1, 1], "constant", 1.0)),
    (aten.pad.default, IMAGE, ROW, (X, [0, 0, 0, 0, 1, 1])),
    (aten.mean.dim, IMAGE, ROW, (X, [1])),
    (aten.mean.dim, IMAGE, ROW, (X, None)),
    (aten.select.int, TOKENS, LAST, (X, -1, 0)),
    (aten.slice.Tensor, TOKENS, LAST, (X, 2, 1, 4)),
    (aten.roll.default, TOKENS, LAST, (X, [2])),
    (aten.view.default, IMAGE, ROW, (X, [6, 4, 4])),
    (aten.view.default, TOKENS, LAST, (X, [2, 30])),
    (aten.view.default, HEADS, HEAD, (X, [2, 15, 4])),
    (aten.expand.default, (2, 1, 4), ROW, (X, [2, 3, 4])),
    (aten.mul.Tensor, (2, 1, 4), ROW, (X, other(2, 3, 4))),
    (aten.mul.Tensor, TOKENS, LAST, (X, X)),
    (aten.div.Tensor, TOKENS, LAST, (other(6), X)),
    (aten.scaled_dot_product_attention.default, HEADS, HEAD, (X, other(2, 3, 5, 4), other(2, 3, 5, 4))),
    (aten.scaled_dot_product_attention.default, HEADS, HEAD, (X, other(2, 3, 5, 4), X)),
    (aten.matmul.default, HEADS, Channels((1, 2)), (other(2, 3, 7, 5), X)),
    (aten.matmul.default, HEADS, HEAD, (X, other(2, 3, 4, 5))),
]


def along(shape: torch.Size, channels: Channels, scale: Tensor) -> Tensor:
    """Spell out a scale of the channels for every element."""
    position = torch.zeros([1] * len(shape), dtype=torch.long)
    for dim in channels.dims:
        index = torch.arange(shape[dim]).reshape([-1 if d == dim else 1 for d in range(len(shape))])
        position = position * shape[dim] + index
    return scale[position // channels.repeat]


def path_of(op: Any, x: Tensor, channels: Channels, args: tuple[Any, ...]) -> Channels | None:
    graph = fx.Graph()
    source = graph.placeholder("x")
    source.meta["val"] = x
    node = graph.call_function(op, tuple(source if arg is X else arg for arg in args))
    node.meta["val"] = op(*[x if arg is X else arg for arg in args])
    return PATHS[op](node, source, channels)


def check(op: Any, shape: tuple[int, ...], channels: Channels, args: tuple[Any, ...], after: Channels) -> None:
    x = other(*shape).double()
    args = tuple(arg.double() if isinstance(arg, Tensor) else arg for arg in args)
    count = math.prod(shape[dim] for dim in channels.dims) // channels.repeat
    scale = torch.rand(count, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.1
    scaled = x * along(x.shape, channels, scale)
    plain, found = (op(*[value if arg is X else arg for arg in args]) for value in (x, scaled))
    torch.testing.assert_close(found, plain * along(plain.shape, after, scale))


@pytest.mark.parametrize(("op", "shape", "channels", "args"), CASES)
def test_the_channels_are_scaled_where_the_row_says(
    op: Any, shape: tuple[int, ...], channels: Channels, args: tuple[Any, ...]
) -> None:
    after = path_of(op, other(*shape), channels, args)
    assert after is not None
    check(op, shape, channels, args, after)


def test_every_row_has_a_case() -> None:
    assert {case[0] for case in CASES} == set(PATHS)


@pytest.mark.parametrize(("op", "shape", "channels", "args"), REFUSED)
def test_what_mixes_channels_or_bends_the_scale_is_refused(
    op: Any, shape: tuple[int, ...], channels: Channels, args: tuple[Any, ...]
) -> None:
    assert path_of(op, other(*shape), channels, args) is None


FACTORS = st.lists(st.sampled_from((1, 2, 3)), min_size=3, max_size=6)


@given(FACTORS, st.sets(st.integers(1, 5)), st.sets(st.integers(1, 5)), st.data())
@settings(max_examples=300, deadline=None)
def test_reshapes(factors: list[int], before: set[int], after: set[int], data: st.DataObject) -> None:
    """Cut the same factors into dimensions in two ways; whatever path is found is a right one."""
    shapes = []
    for cuts in (before, after):
        ends = sorted(cut for cut in cuts if cut < len(factors))
        shapes.append([math.prod(factors[a:b]) for a, b in zip([0, *ends], [*ends, len(factors)], strict=True)])
    first = data.draw(st.integers(0, len(shapes[0]) - 1))
    last = data.draw(st.integers(first, len(shapes[0]) - 1))
    channels, args = Channels(tuple(range(first, last + 1))), (X, shapes[1])
    found = path_of(aten.reshape.default, other(*shapes[0]), channels, args)
    if found is not None:
        check(aten.reshape.default, tuple(shapes[0]), channels, args, found)


def test_balance_has_geometric_mean_one_and_leaves_dead_channels() -> None:
    scale = balance(torch.tensor([8.0, 0.0, 2.0, 1.0]).double(), torch.tensor([1.0, 1.0, 1.0, 0.0]).double())
    torch.testing.assert_close(scale, torch.tensor([2.0, 1.0, 0.5, 1.0]).double())
    assert torch.equal(balance(torch.zeros(2), torch.zeros(2)), torch.ones(2))
