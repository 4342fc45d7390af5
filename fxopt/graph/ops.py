"""fxopt's own ops: quantize, dequantize, dynamic_quantize, fake_quantize and observe, each with a fake kernel.

They have the arithmetic of ONNX QuantizeLinear and DequantizeLinear: q = saturate(round_half_even(x / scale) +
zero_point), x' = (q - zero_point) * scale. `scale` is the real value of one integer step. With `axis` None, scale and
zero point are 0-dimensional (per tensor); else they are 1-dimensional and run along that axis (per channel).
dynamic_quantize is ONNX DynamicQuantizeLinear: it takes uint8 steps from the range of the very tensor, zero included.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["along", "dequantize", "dynamic_quantize", "fake_quantize", "fake_quantized", "observe", "quantize"]


def along(parameter: Tensor, axis: int | None, ndim: int) -> Tensor:
    """Shape a per-channel parameter so that it broadcasts along `axis` of a tensor with `ndim` dimensions."""
    if axis is None:
        return parameter
    return parameter.reshape([-1 if dim == axis % ndim else 1 for dim in range(ndim)])


def _steps(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    # In place where nobody else has the tensor: activations are large.
    return (x / along(scale, axis, x.ndim)).round_().add_(along(zero_point, axis, x.ndim).to(x.dtype))


@torch.library.custom_op(
    "fxopt::quantize",
    mutates_args=(),
    schema="(Tensor x, Tensor scale, Tensor zero_point, int? axis, int quant_min, int quant_max, ScalarType dtype)"
    " -> Tensor",
)
def _quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    return _steps(x, scale, zero_point, axis).clamp_(quant_min, quant_max).to(dtype)


@_quantize.register_fake
def _(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


@torch.library.custom_op(
    "fxopt::dequantize", mutates_args=(), schema="(Tensor q, Tensor scale, Tensor zero_point, int? axis) -> Tensor"
)
def _dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    # float32 holds differences of 8-bit values exactly, not those of int32; in place, for weights can be large.
    wide = scale.dtype if q.dtype in (torch.uint8, torch.int8) and scale.dtype is torch.float32 else torch.int32
    difference = q.to(wide, copy=True).sub_(along(zero_point, axis, q.ndim).to(wide))
    return difference.to(scale.dtype).mul_(along(scale, axis, q.ndim))


@_dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    return torch.empty_like(q, dtype=scale.dtype)


@torch.library.custom_op(
    "fxopt::dynamic_quantize",
    mutates_args=(),
    schema="(Tensor x) -> (Tensor q, Tensor scale, Tensor zero_point)",
)
def _dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = (end.clone() for end in torch.aminmax(x)) if x.numel() else (x.new_zeros(()), x.new_zeros(()))
    low, high = low.clamp_(max=0), high.clamp_(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round(-low / scale).clamp(0, 255)
    return (torch.round(x / scale) + zero_point).clamp(0, 255).to(torch.uint8), scale, zero_point.to(torch.uint8)


@_dynamic_quantize.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.uint8), x.new_empty(()), x.new_empty((), dtype=torch.uint8)


def fake_quantized(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int
) -> Tensor:
    """Quantize and dequantize."""
    steps = _steps(x, scale, zero_point, axis).clamp_(quant_min, quant_max)
    return steps.sub_(along(zero_point, axis, x.ndim).to(x.dtype)).mul_(along(scale, axis, x.ndim))


@torch.library.custom_op(
    "fxopt::fake_quantize",
    mutates_args=(),
    schema="(Tensor x, Tensor scale, Tensor zero_point, int? axis, int quant_min, int quant_max) -> Tensor",
)
def _fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int
) -> Tensor:
    return fake_quantized(x, scale, zero_point, axis, quant_min, quant_max)


@_fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, quant_min: int, quant_max: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fxopt::observe", mutates_args=(), schema="(Tensor x, str name) -> Tensor")
def _observe(x: Tensor, name: str) -> Tensor:
    return x.clone()


@_observe.register_fake
def _(x: Tensor, name: str) -> Tensor:
    return torch.empty_like(x)


def _save_inputs(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: Tensor) -> None:
    x, scale, zero_point, axis, quant_min, quant_max = inputs
    ctx.save_for_backward(x, scale, zero_point)  # type: ignore[arg-type]
    ctx.settings = (axis, quant_min, quant_max)  # type: ignore[attr-defined]


def _straight_through(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Pass the gradient where x is inside the representable range (straight-through estimator, Bengio et al. 2013)."""
    x, scale, zero_point = ctx.saved_tensors  # type: ignore[attr-defined]
    axis, quant_min, quant_max = ctx.settings  # type: ignore[attr-defined]
    steps = _steps(x, scale, zero_point, axis)
    return gradient * ((steps >= quant_min) & (steps <= quant_max)), None, None, None, None, None


_fake_quantize.register_autograd(_straight_through, setup_context=_save_inputs)
_observe.register_autograd(lambda ctx, gradient: (gradient, None))

quantize = torch.ops.fxopt.quantize.default
dequantize = torch.ops.fxopt.dequantize.default
dynamic_quantize = torch.ops.fxopt.dynamic_quantize.default
fake_quantize = torch.ops.fxopt.fake_quantize.default
observe = torch.ops.fxopt.observe.default
