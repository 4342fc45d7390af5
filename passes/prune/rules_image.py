"""Rows of ops that trade channels for positions of an image, or shuffle channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fxopt.passes.prune.factor import merge
from fxopt.passes.prune.rule import Call, ChannelRule, Labels, Shrink
from fxopt.passes.prune.symbols import fixed

aten = torch.ops.aten


def _pixel_shuffle(call: Call) -> Labels:
    """Channel (c, i, j) becomes position (i, j) of channel c; all of them stay together."""
    x, area = call.labels("self"), call["upscale_factor"] ** 2
    channels, within = call.split(x[-3], len(x[-3]) // area, area)
    call.freeze(within, because="it becomes part of an image")
    call.freeze(*x[-2:], because="it is part of an image")
    return (*x[:-3], channels, *call.fixed_result()[-2:])


def _pixel_unshuffle(call: Call) -> Labels:
    x, area = call.labels("self"), call["downscale_factor"] ** 2
    call.freeze(*x[-2:], because="it is part of an image")
    return (*x[:-3], np.repeat(x[-3], area), *call.fixed_result()[-2:])


def _channel_shuffle(call: Call) -> Labels:
    """Channel (group, j) becomes channel (j, group)."""
    x, groups = call.labels("self"), call["groups"]
    rows, columns = call.split(x[1], groups, len(x[1]) // groups)
    return (x[0], merge(call.symbols, columns, rows), *x[2:])


def _fewer_groups(shrink: Shrink) -> None:
    x, groups = shrink.call.labels("self"), shrink.call["groups"]
    rows, _ = shrink.call.split(x[1], groups, len(x[1]) // groups)
    shrink.set(groups=shrink.count(rows))


def _im2col(call: Call) -> Labels:
    """Channel c becomes channels (c, 0), (c, 1), ..., one for each position of the kernel."""
    x, area = call.labels("self"), math.prod(call["kernel_size"])
    call.freeze(*x[-2:], because="it is part of an image")
    return (*x[:-3], np.repeat(x[-3], area), fixed(len(call.fixed_result()[-1])))


def _col2im(call: Call) -> Labels:
    x, area = call.labels("self"), math.prod(call["kernel_size"])
    channels, within = call.split(x[-2], len(x[-2]) // area, area)
    call.freeze(within, x[-1], because="it becomes part of an image")
    return (*x[:-2], channels, *call.fixed_result()[-2:])


def _unfold(call: Call) -> Labels:
    x = call.labels("self")
    dim = call.dim(len(x), "dimension")
    call.freeze(x[dim], because="windows slide along it")
    result = call.fixed_result()
    return (*x[:dim], result[dim], *x[dim + 1 :], result[-1])


IMAGE_RULES: dict[Any, ChannelRule] = {
    aten.pixel_shuffle.default: ChannelRule(_pixel_shuffle),
    aten.pixel_unshuffle.default: ChannelRule(_pixel_unshuffle),
    aten.channel_shuffle.default: ChannelRule(_channel_shuffle, _fewer_groups),
    aten.im2col.default: ChannelRule(_im2col),
    aten.col2im.default: ChannelRule(_col2im),
    aten.unfold.default: ChannelRule(_unfold),
}
