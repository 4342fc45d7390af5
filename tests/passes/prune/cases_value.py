"""Cases of ops that compute: position by position, along dimensions, normalizations, creation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.passes.prune.rules_pointwise import POINTWISE_OPS, SAME_OPS
from tests.passes.prune.cases_shape import IMAGE, ROWS, between, between_images
from tests.passes.prune.checks import Case, case

aten = torch.ops.aten

# Arguments of ops after the first tensor, where the defaults are not enough.
ARGUMENTS: dict[Any, tuple[Any, ...]] = {
    aten.clamp.default: (0.2, 0.8),
    aten.clip.default: (0.2, 0.8),
    aten.clamp_max.default: (0.8,),
    aten.clamp_min.default: (0.2,),
    aten.dropout.default: (0.5, False),
    aten.feature_dropout.default: (0.5, False),
    aten.fill.Scalar: (2.0,),
    aten.full_like.default: (2.0,),
    aten.threshold.default: (0.5, 0.1),
    aten.to.device: ("cpu", torch.float32),
    aten.to.dtype: (torch.float32,),
}


def _of_bool(op: Any) -> bool:
    return op in (aten.bitwise_not.default, aten.logical_not.default)


def same(m: Any, x: Tensor) -> Tensor:
    """Apply every op of one tensor to values in (0, 1), and add up the results."""
    x, total = torch.sigmoid(x), x
    for op in SAME_OPS:
        if op in (aten.fill.Tensor, aten.to.other, aten.type_as.default):
            value = op(x, torch.ones(()))
        elif str(op).startswith("fxopt"):
            value = op(x, "point")
        else:
            value = op(x > 0.5 if _of_bool(op) else x, *ARGUMENTS.get(op, ()))
        total = total + value.to(torch.float32)
    return total


def pointwise(m: Any, x: Tensor) -> Tensor:
    """Apply every op of several tensors to values in (0, 1), a vector and numbers, and add up the results."""
    x, total = torch.sigmoid(x), x
    for op in POINTWISE_OPS:
        mode = {"rounding_mode": "floor"} if "mode" in str(op) else {}
        total = total + op(*_operands(op, x, torch.sigmoid(m.vector)), **mode).to(torch.float32)
    return total


def _operands(op: Any, x: Tensor, vector: Tensor) -> list[Any]:
    """Fill the required arguments of an op by their types."""
    result: list[Any] = []
    logical = "bitwise" in str(op) or "__" in str(op) or "where" in str(op)
    tensors = iter((x > 0.5, vector > 0.5) if logical and "where" not in str(op) else _values(op, x, vector))
    for parameter in op._schema.arguments:
        if parameter.kwarg_only or (parameter.has_default_value() and parameter.name != "min"):
            continue
        elif "Tensor" in str(parameter.type):
            result.append(next(tensors))
        else:
            result.append(0.5)
    return result


def _values(op: Any, x: Tensor, vector: Tensor) -> tuple[Tensor, ...]:
    if "where" in str(op):
        return (x > 0.5, x, vector) if "ScalarSelf" not in str(op) else (x > 0.5, vector)
    if "masked_fill" in str(op):
        return x, vector > 0.5, torch.ones(())
    return x, vector, vector


def _averaged(function: Callable[[Tensor], Tensor]) -> Case:
    """An average over channels, which is another one over fewer channels."""
    return case(
        lambda m, x: function(torch.tanh(m.first(x))) @ m.out,
        ROWS,
        widths=[8],
        exact=False,
        first=nn.Linear(6, 8),
        out=torch.ones(1, 8),
    )


def _norm(module: nn.Module, exact: bool, widths: list[int] | None = None) -> Case:
    images = isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm))
    make = between_images if images else between
    found = make(lambda m, x: m.norm(x), widths or [8], norm=module)
    return replace(found, exact=exact)


def _random(module: nn.Module) -> nn.Module:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return module


def _quantized(m: Any, x: Tensor) -> Tensor:
    """Quantize in both ways, with a scale a channel."""
    ops = torch.ops.fxopt
    q = ops.dequantize(ops.quantize(x, m.scale, m.zero, 2, -128, 127, torch.int8), m.scale, m.zero, 2)
    return torch.add(q, ops.fake_quantize(x, m.scale, m.zero, 2, -128, 127))


def _ranges() -> Tensor:
    return torch.arange(1, 6) + torch.arange(0, 10, 2) + torch.scalar_tensor(2)


def _matrices() -> Tensor:
    return torch.eye(5) + torch.eye(5, 5) + torch.ones(5, 5).tril() + torch.ones(5, 5).triu()


def _standardized(m: Any, x: Tensor) -> Any:
    weight = functional.batch_norm(m.v.reshape(1, 8, -1), None, None, weight=m.g, training=True).reshape_as(m.v)
    return m.second(functional.conv2d(torch.relu(m.first(x)), weight))


def _weight_normed(m: Any, x: Tensor) -> Any:
    return m.second(functional.conv2d(x, torch._weight_norm(m.v, m.g, 0)))


torch.manual_seed(0)
VALUE_CASES: dict[str, Case] = {
    "same": between(same, [8]),
    "pointwise": between(pointwise, [8], vector=nn.Parameter(torch.randn(8))),
    "prelu": between_images(lambda m, x: m.act(x), [8], act=nn.PReLU(8)),
    "prelu_shared": between_images(lambda m, x: m.act(x), [8], act=nn.PReLU()),
    "copy": between(lambda m, x: aten.copy(x, m.vector), [8], vector=nn.Parameter(torch.randn(8))),
    "batch_norm": _norm(_random(nn.BatchNorm2d(8)), True),
    "instance_norm": _norm(_random(nn.InstanceNorm2d(8, affine=True)), True),
    "layer_norm": _norm(_random(nn.LayerNorm(8)), False),
    "layer_norm_without_weights": _norm(nn.LayerNorm(8, elementwise_affine=False), False),
    "rms_norm": _norm(_random(nn.RMSNorm(8)), False),
    "group_norm": _norm(_random(nn.GroupNorm(4, 8)), False, [4, 2]),
    "standardized_weights": case(  # by batch_norm without running statistics, as normalizer-free networks do
        _standardized, IMAGE, widths=[8, 8], exact=False, first=nn.Conv2d(3, 8, 1),
        v=nn.Parameter(torch.randn(8, 8, 1, 1)), g=nn.Parameter(torch.rand(8)), second=nn.Conv2d(8, 2, 1),
    ),
    "weight_norm": case(
        _weight_normed,
        IMAGE,
        widths=[8],
        v=nn.Parameter(torch.randn(8, 3, 1, 1)),
        g=nn.Parameter(torch.rand(8, 1, 1, 1)),
        second=nn.Conv2d(8, 2, 1),
        exact=False,  # zeros in v have no direction
    ),
    "sum": between(lambda m, x: x + x.sum(), [8]),
    "sum_dim": between(lambda m, x: x + x.sum(-1, keepdim=True) + x.sum(1, keepdim=True), [8]),
    "vector_norm": between(lambda m, x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True), [8]),
    "vector_norm_infinite": replace(  # zeros are divided by zero
        between(lambda m, x: x / torch.linalg.vector_norm(x, float("inf"), 1, True), [8]), exact=False
    ),
    "mean": _averaged(lambda x: x.mean()[None, None]),
    "mean_dim": _averaged(lambda x: x.mean(-1, keepdim=True)),
    "mean_tokens": between(lambda m, x: x.mean(1), [8]),
    "var_correction": _averaged(lambda x: aten.var.correction(x, [-1], keepdim=True)),
    "var_dim": _averaged(lambda x: aten.var.dim(x, [-1], True, True)),
    "std_correction": _averaged(lambda x: aten.std.correction(x, [-1], keepdim=True)),
    "std_dim": _averaged(lambda x: aten.std.dim(x, [-1], True, True)),
    "amax": between(lambda m, x: x.amax(1), [8]),
    "amin": between(lambda m, x: x.amin(1), [8]),
    "max_dim": between(lambda m, x: x.max(1)[0], [8]),
    "min_dim": between(lambda m, x: x.min(1, keepdim=True)[0], [8]),
    "logsumexp": between(lambda m, x: x.logsumexp(1), [8]),
    "argmax": between(lambda m, x: x * x.argmax(1, True) * x.argmin(1, True), [8]),
    "any": between(lambda m, x: x * aten.any.dim(x > 0, 1, True) * aten.all.dim(x > -9, 1, True), [8]),
    "prod": between(lambda m, x: x.prod(1), [8]),
    "everything": between(
        lambda m, x: x * m.vector.max() * m.vector.min() * m.vector.any() * m.vector.all(),
        [8],
        vector=nn.Parameter(torch.rand(4)),
    ),
    "softmax": between(lambda m, x: x.softmax(1), [8]),
    "log_softmax": between(lambda m, x: x.log_softmax(1), [8]),
    "lower_softmax": between(lambda m, x: aten._softmax(x, 1, False) + aten._log_softmax(x, 1, False), [8]),
    "cumsum": between(lambda m, x: x.cumsum(1) + x.cumprod(1), [8]),
    "diff": between(lambda m, x: x.diff(dim=1, prepend=x[:, :1]), [8]),
    "topk": between(lambda m, x: x.topk(2, 1)[0], [8]),
    "sort": between(lambda m, x: x.sort(1)[0], [8]),
    "pool1d": between(lambda m, x: _pooled(x.transpose(1, 2)).transpose(1, 2), [8]),
    "pool2d": between_images(lambda m, x: _pooled_images(x), [8]),
    "pool3d": between_images(lambda m, x: _pooled_volumes(x[..., None])[..., 0], [8]),
    "resize1d": between(lambda m, x: _resized_line(x.transpose(1, 2)).transpose(1, 2), [8]),
    "resize2d": between_images(lambda m, x: _resized_image(x), [8]),
    "resize3d": between_images(lambda m, x: _resized_volume(x[..., None])[..., 0], [8]),
    "grid_sampler": between_images(
        lambda m, x: functional.grid_sample(x, m.grid.expand(2, 3, 3, 2), align_corners=False), [8],
        grid=torch.rand(1, 3, 3, 2),
    ),
    "meshgrid": between(lambda m, x: x + torch.meshgrid(torch.arange(5), torch.arange(8), indexing="ij")[0][None], []),
    "creation": between(lambda m, x: x * torch.ones(8) + torch.zeros(2, 5, 8) + torch.full((8,), 2.0), [8]),
    "creation_like": between(lambda m, x: x * x.new_ones(8) + x.new_zeros(5, 8) + x.new_full((8,), 2.0), [8]),
    "positions": between(lambda m, x: x + torch.arange(5)[:, None] + torch.linspace(0, 1, 5)[:, None], [8]),
    "ranges": between(lambda m, x: x + _ranges()[:, None], [8]),
    "grids": between(lambda m, x: x + sum(aten.meshgrid([torch.arange(5), torch.arange(1)])), [8]),
    "one_hot": between(lambda m, x: functional.one_hot(x.argmax(1), 5).float().transpose(1, 2) * x, [8]),
    "quantized": replace(  # a scale of zero is none
        between(_quantized, [8], scale=torch.rand(8) + 0.1, zero=torch.zeros(8, dtype=torch.int32)), exact=False
    ),
    "matrices": between(lambda m, x: _matrices() @ x, [8]),
}  # fmt: skip


def _pooled(x: Tensor) -> Tensor:
    y = functional.max_pool1d(x, 2) + functional.avg_pool1d(x, 2)
    y = y + functional.adaptive_avg_pool1d(x, 2)
    return torch.add(y, functional.adaptive_max_pool1d(x, 2))


def _pooled_images(x: Tensor) -> Tensor:
    y = functional.max_pool2d(x, 2) + functional.avg_pool2d(x, 2)
    y = y + functional.adaptive_avg_pool2d(x, 2) + functional.adaptive_max_pool2d(x, 2)
    return torch.add(y, aten.max_pool2d_with_indices(x, [2, 2])[0])


def _pooled_volumes(x: Tensor) -> Tensor:
    return (
        functional.max_pool3d(x, (2, 2, 1))
        + functional.avg_pool3d(x, (2, 2, 1))
        + functional.adaptive_avg_pool3d(x, (2, 2, 1))
    )


def _resized_line(x: Tensor) -> Tensor:
    return functional.interpolate(x, 7) + functional.interpolate(x, 7, mode="linear")


def _resized_image(x: Tensor) -> Tensor:
    y = functional.interpolate(x, (7, 7)) + functional.interpolate(x, (7, 7), mode="bilinear")
    y = y + functional.interpolate(x, (7, 7), mode="bicubic")
    smooth = functional.interpolate(x, (7, 7), mode="bilinear", antialias=True)
    return y + smooth + functional.interpolate(x, (7, 7), mode="bicubic", antialias=True)


def _resized_volume(x: Tensor) -> Tensor:
    return functional.interpolate(x, (5, 5, 1)) + functional.interpolate(x, (5, 5, 1), mode="trilinear")
