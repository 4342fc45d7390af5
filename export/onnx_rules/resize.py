"""Resizing by nearest, linear and cubic interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from fxopt.errors import ExportError, where
from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.onnx_rules.spatial import is_static, multiply_along, spatial_rank, spatial_sizes

aten = torch.ops.aten

# torch's cubic kernels: the plain one, and that of the anti-aliased variants, which follow Pillow.
CUBIC_A, CUBIC_A_ANTIALIASED = -0.75, -0.5


def _resize(
    g: OnnxGraph, input: fx.Node, output_size: Sequence[Any] | None, factors: Sequence[Any], **mode: Any
) -> str:
    """Emit Resize to the size of the result, by the scale factors that torch computes with."""
    spatial = spatial_rank(g)
    before, after = spatial_sizes(g, input, spatial), spatial_sizes(g, g.node, spatial)
    if is_static(before) and is_static(after):
        ratios = [count / size for size, count in zip(before, after, strict=True)]
        factors = [ratio if factor is None else factor for factor, ratio in zip(factors, ratios, strict=True)]
    if all(isinstance(factor, float) for factor in factors):
        scales = [_scale(*step) for step in zip(before, after, factors, strict=True)]
        return g.op("Resize", input, None, np.array([1, 1, *scales], dtype=np.float32), **mode)
    if output_size is None:
        raise ExportError(f"{where(g.node)} has scale factors that are computed; pass numbers, or sizes.")
    outer = g.op("Shape", input, start=0, end=2)
    inner = after if is_static(after) else output_size
    return g.op("Resize", input, None, None, g.op("Concat", outer, g.sizes(inner), axis=0), **mode)


def _factors(g: OnnxGraph, scale_factors: Sequence[float] | None) -> list[float | None]:
    return [None] * spatial_rank(g) if scale_factors is None else list(scale_factors)


def _scale(size: Any, count: Any, factor: float) -> np.float32:
    """Round a factor to float32 such that size * factor still rounds down to the size of the result."""
    scale = np.float32(factor)
    while is_static([size, count]) and int(size * float(scale)) < count:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


# --- nearest --------------------------------------------------------------------------------------------------------


def upsample_nearest(g: OnnxGraph, self: fx.Node, output_size: Sequence[Any] | None, *scales: float | None) -> str:
    """aten::upsample_nearest1d(Tensor self, SymInt[1] output_size, float? scales=None) -> Tensor
    aten::upsample_nearest2d(Tensor self, SymInt[2] output_size, float? scales_h=None, float? scales_w=None) -> Tensor
    aten::upsample_nearest3d(Tensor self, SymInt[3] output_size, float? scales_d=None, float? scales_h=None, float? scales_w=None) -> Tensor
    aten::_upsample_nearest_exact1d(Tensor self, SymInt[1] output_size, float? scales=None) -> Tensor
    aten::_upsample_nearest_exact2d(Tensor self, SymInt[2] output_size, float? scales_h=None, float? scales_w=None) -> Tensor
    aten::_upsample_nearest_exact3d(Tensor self, SymInt[3] output_size, float? scales_d=None, float? scales_h=None, float? scales_w=None) -> Tensor
    """  # noqa: E501
    exact = "_exact" in str(g.node.target)
    before, after = spatial_sizes(g, self, len(scales)), spatial_sizes(g, g.node, len(scales))
    if is_static(before) and is_static(after):
        steps = list(zip(before, after, scales, strict=True))
        wanted = [_sources(exact, g.dtype(), *step) for step in steps]
        copied = [np.arange(size) for size in before]
        found = copied if before == after else [_resize_sources(exact, *step) for step in steps]
        if not all(map(np.array_equal, wanted, found)):
            value = g.value(self)
            for dim, source in enumerate(wanted, start=2):
                value = g.op("Gather", value, source, axis=dim)
            return value
    if exact:
        mode = {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}
    else:
        mode = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return _resize(g, self, output_size, scales, mode="nearest", **mode)


def _sources(exact: bool, dtype: torch.dtype, size: int, count: int, factor: float | None) -> np.ndarray[Any, Any]:
    """Return the source index of each result element, as torch rounds it for this dtype."""
    op = aten._upsample_nearest_exact1d.default if exact else aten.upsample_nearest1d.default
    indices = torch.arange(size, dtype=dtype if dtype is torch.float64 else torch.float32)
    return np.asarray(op(indices[None, None], [count], factor)[0, 0].to(torch.int64))


def _resize_sources(exact: bool, size: int, count: int, factor: float | None) -> np.ndarray[Any, Any]:
    """Return the source index of each result element, as onnxruntime's Resize rounds it."""
    scale = _scale(size, count, count / size if factor is None else factor)
    places = np.arange(count, dtype=np.float32)
    if exact:
        places = (places + np.float32(0.5)) / scale - np.float32(0.5)
        source = np.floor(places.astype(np.float64) + 0.5)
    else:
        source = np.floor(places / scale)
    clipped: np.ndarray[Any, Any] = np.clip(source.astype(np.int64), 0, size - 1)
    return clipped


def upsample_nearest_vec(
    g: OnnxGraph, input: fx.Node, output_size: Sequence[Any] | None, scale_factors: Sequence[float] | None
) -> str:
    """aten::upsample_nearest1d.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor
    aten::upsample_nearest2d.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor
    aten::upsample_nearest3d.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor
    aten::_upsample_nearest_exact1d.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor
    aten::_upsample_nearest_exact2d.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor
    aten::_upsample_nearest_exact3d.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor
    """
    return upsample_nearest(g, input, output_size, *_factors(g, scale_factors))


# --- linear and cubic -----------------------------------------------------------------------------------------------


def upsample(
    g: OnnxGraph, self: fx.Node, output_size: Sequence[Any] | None, align_corners: bool, *scales: float | None
) -> str:
    """aten::upsample_linear1d(Tensor self, SymInt[1] output_size, bool align_corners, float? scales=None) -> Tensor
    aten::upsample_bilinear2d(Tensor self, SymInt[2] output_size, bool align_corners, float? scales_h=None, float? scales_w=None) -> Tensor
    aten::upsample_trilinear3d(Tensor self, SymInt[3] output_size, bool align_corners, float? scales_d=None, float? scales_h=None, float? scales_w=None) -> Tensor
    aten::upsample_bicubic2d(Tensor self, SymInt[2] output_size, bool align_corners, float? scales_h=None, float? scales_w=None) -> Tensor
    """  # noqa: E501
    if _is_shift(g, self, scales):
        return _resize_by_matrices(g, self, align_corners, scales)
    mode: dict[str, Any] = {"mode": "linear"}
    if "bicubic" in str(g.node.target):
        mode = {"mode": "cubic", "cubic_coeff_a": CUBIC_A}
    corners = "align_corners" if align_corners else "half_pixel"
    return _resize(g, self, output_size, scales, coordinate_transformation_mode=corners, **mode)


def upsample_vec(
    g: OnnxGraph,
    input: fx.Node,
    output_size: Sequence[Any] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None,
) -> str:
    """aten::upsample_linear1d.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
    aten::upsample_bilinear2d.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
    aten::upsample_trilinear3d.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
    aten::upsample_bicubic2d.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
    """  # noqa: E501
    return upsample(g, input, output_size, align_corners, *_factors(g, scale_factors))


def upsample_antialiased(
    g: OnnxGraph, self: fx.Node, output_size: Sequence[Any] | None, align_corners: bool, *scales: float | None
) -> str:
    """aten::_upsample_bilinear2d_aa(Tensor self, SymInt[2] output_size, bool align_corners, float? scales_h=None, float? scales_w=None) -> Tensor
    aten::_upsample_bicubic2d_aa(Tensor self, SymInt[2] output_size, bool align_corners, float? scales_h=None, float? scales_w=None) -> Tensor
    """  # noqa: E501
    if align_corners or _is_shift(g, self, scales):
        return _resize_by_matrices(g, self, align_corners, scales)
    mode: dict[str, Any] = {"mode": "linear"}
    if "bicubic" in str(g.node.target):
        mode = {"mode": "cubic", "cubic_coeff_a": CUBIC_A_ANTIALIASED}
    return _resize(g, self, output_size, scales, antialias=1, exclude_outside=1, **mode)


def _is_shift(g: OnnxGraph, self: fx.Node, scales: Sequence[float | None]) -> bool:
    """Say whether a factor other than 1 leaves all sizes as they are; onnxruntime would copy then."""
    before, after = spatial_sizes(g, self, len(scales)), spatial_sizes(g, g.node, len(scales))
    return is_static(before) and before == after and any(factor not in (None, 1) for factor in scales)


def _resize_by_matrices(g: OnnxGraph, self: fx.Node, corners: bool, scales: Sequence[float | None]) -> str:
    """Resize by one matrix product a dimension, where onnxruntime's Resize computes otherwise than torch."""
    before, after = spatial_sizes(g, self, len(scales)), spatial_sizes(g, g.node, len(scales))
    if not is_static([*before, *after]):
        raise ExportError(f"{where(g.node)} needs sizes that are known; capture with a fixed image size.")
    value = g.value(self)
    for dim, size, count, factor in zip(range(-len(scales), 0), before, after, scales, strict=True):
        matrix = g.constant(_matrix(g.node, size, count, corners, factor), g.dtype())
        value = multiply_along(g, value, dim, matrix, g.rank())
    return value


def _matrix(node: fx.Node, size: int, count: int, corners: bool, factor: float | None) -> torch.Tensor:
    """Let torch resize unit vectors, which gives the matrix (size, count) of one dimension."""
    unit = torch.eye(size)
    name = str(node.target)
    if "_aa" in name or "bicubic" in name:
        assert isinstance(node.target, torch._ops.OpOverload)
        plane: torch.Tensor = node.target.overloadpacket.default(unit[None, None], [size, count], corners, None, factor)
        return plane[0, 0]
    line: torch.Tensor = aten.upsample_linear1d.default(unit[None], [count], corners, factor)
    return line[0]


def upsample_antialiased_vec(
    g: OnnxGraph,
    input: fx.Node,
    output_size: Sequence[Any] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None,
) -> str:
    """aten::_upsample_bilinear2d_aa.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
    aten::_upsample_bicubic2d_aa.vec(Tensor input, SymInt[]? output_size, bool align_corners, float[]? scale_factors) -> Tensor
    """  # noqa: E501
    return upsample_antialiased(g, input, output_size, align_corners, *_factors(g, scale_factors))


RULES: dict[Any, Rule] = {
    aten.upsample_nearest1d.default: upsample_nearest,
    aten.upsample_nearest2d.default: upsample_nearest,
    aten.upsample_nearest3d.default: upsample_nearest,
    aten._upsample_nearest_exact1d.default: upsample_nearest,
    aten._upsample_nearest_exact2d.default: upsample_nearest,
    aten._upsample_nearest_exact3d.default: upsample_nearest,
    aten.upsample_nearest1d.vec: upsample_nearest_vec,
    aten.upsample_nearest2d.vec: upsample_nearest_vec,
    aten.upsample_nearest3d.vec: upsample_nearest_vec,
    aten._upsample_nearest_exact1d.vec: upsample_nearest_vec,
    aten._upsample_nearest_exact2d.vec: upsample_nearest_vec,
    aten._upsample_nearest_exact3d.vec: upsample_nearest_vec,
    aten.upsample_linear1d.default: upsample,
    aten.upsample_bilinear2d.default: upsample,
    aten.upsample_trilinear3d.default: upsample,
    aten.upsample_bicubic2d.default: upsample,
    aten.upsample_linear1d.vec: upsample_vec,
    aten.upsample_bilinear2d.vec: upsample_vec,
    aten.upsample_trilinear3d.vec: upsample_vec,
    aten.upsample_bicubic2d.vec: upsample_vec,
    aten._upsample_bilinear2d_aa.default: upsample_antialiased,
    aten._upsample_bicubic2d_aa.default: upsample_antialiased,
    aten._upsample_bilinear2d_aa.vec: upsample_antialiased_vec,
    aten._upsample_bicubic2d_aa.vec: upsample_antialiased_vec,
}
