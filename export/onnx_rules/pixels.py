"""Rearranging pixels and channels, and sampling an image at given places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxopt.errors import ExportError, where
from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.delegate import delegate_one
from fxopt.export.onnx_rules.spatial import batched

aten = torch.ops.aten

# Opset 20 renamed the modes of GridSample and extended it to volumes.
GRID_SAMPLE_VOLUMES_OPSET = 20
INTERPOLATION = ("linear", "nearest", "cubic")
INTERPOLATION_BEFORE = ("bilinear", "nearest", "bicubic")
PADDING = ("zeros", "border", "reflection")


def pixel_shuffle(g: OnnxGraph, self: fx.Node, upscale_factor: int) -> str:
    """aten::pixel_shuffle(Tensor self, int upscale_factor) -> Tensor"""
    return _on_images(g, self, lambda x: g.op("DepthToSpace", x, blocksize=upscale_factor, mode="CRD"))


def pixel_unshuffle(g: OnnxGraph, self: fx.Node, downscale_factor: int) -> str:
    """aten::pixel_unshuffle(Tensor self, int downscale_factor) -> Tensor"""
    channels, area = int(g.val(self).shape[-3]), downscale_factor**2

    def emit(x: str) -> str:
        blocks = g.op("SpaceToDepth", x, blocksize=downscale_factor)
        if channels == 1:
            return blocks
        # ONNX puts the place inside a block before the channel, torch the other way round.
        order = torch.arange(area * channels).reshape(area, channels).t().reshape(-1)
        return g.op("Gather", blocks, g.constant(order), axis=1)

    return _on_images(g, self, emit)


def _on_images(g: OnnxGraph, self: fx.Node, emit: Callable[[str], str]) -> str:
    if g.rank(self) not in (3, 4):
        return delegate_one(g)
    return batched(g, self, 2, emit)


def channel_shuffle(g: OnnxGraph, self: fx.Node, groups: int) -> str:
    """aten::channel_shuffle(Tensor self, SymInt groups) -> Tensor
    aten::native_channel_shuffle(Tensor self, SymInt groups) -> Tensor
    """
    channels = int(g.val(self).shape[1])
    order = torch.arange(channels).reshape(groups, -1).t().reshape(-1)
    return g.op("Gather", self, g.constant(order), axis=1)


def grid_sampler(
    g: OnnxGraph, input: fx.Node, grid: fx.Node, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> str:
    """aten::grid_sampler(Tensor input, Tensor grid, int interpolation_mode, int padding_mode, bool align_corners) -> Tensor
    aten::grid_sampler_2d(Tensor input, Tensor grid, int interpolation_mode, int padding_mode, bool align_corners) -> Tensor
    aten::grid_sampler_3d(Tensor input, Tensor grid, int interpolation_mode, int padding_mode, bool align_corners) -> Tensor
    """  # noqa: E501
    names = INTERPOLATION if g.opset >= GRID_SAMPLE_VOLUMES_OPSET else INTERPOLATION_BEFORE
    if g.rank(input) == 5 and g.opset < GRID_SAMPLE_VOLUMES_OPSET:
        raise ExportError(f"{where(g.node)} samples a volume, which needs opset {GRID_SAMPLE_VOLUMES_OPSET} or later.")
    mode, padding = names[interpolation_mode], PADDING[padding_mode]
    return g.op("GridSample", input, grid, mode=mode, padding_mode=padding, align_corners=int(align_corners))


RULES: dict[Any, Rule] = {
    aten.pixel_shuffle.default: pixel_shuffle,
    aten.pixel_unshuffle.default: pixel_unshuffle,
    aten.channel_shuffle.default: channel_shuffle,
    aten.native_channel_shuffle.default: channel_shuffle,
    aten.grid_sampler.default: grid_sampler,
    aten.grid_sampler_2d.default: grid_sampler,
    aten.grid_sampler_3d.default: grid_sampler,
}
