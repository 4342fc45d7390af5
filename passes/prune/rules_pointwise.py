"""Rows of ops that work position by position: operands are tied where they are not broadcast."""

from __future__ import annotations

from typing import Any

import torch

from fxopt.graph.ops import dequantize, fake_quantize, observe, quantize
from fxopt.passes.prune.rule import Call, ChannelRule, Labels, broadcast, operand

aten = torch.ops.aten


def same(call: Call) -> Labels:
    """Result and first argument have the same positions; other arguments say nothing about them."""
    return call.of(call.node.args[0])


def pointwise(call: Call) -> Labels:
    """All tensor arguments are broadcast against each other."""
    return broadcast(call, [operand(call, node) for node in call.tensors])


def _prelu(call: Call) -> Labels:
    x, weight = call.labels("self"), call.labels("weight")
    if len(weight[0]) > 1:
        call.unify(x[1], weight[0])
    else:
        call.freeze(weight[0], because="it is broadcast")
    return x


def _quantized(call: Call) -> Labels:
    """A scale and a zero point a channel belong to the channels of their axis."""
    x, axis = call.of(call.node.args[0]), call["axis"]
    for name in ("scale", "zero_point"):
        if axis is not None:
            call.unify(x[axis % len(x)], call.labels(name)[0])
    return x


def _copied(call: Call) -> Labels:
    """The second argument is broadcast to the shape of the first."""
    broadcast(call, [operand(call, call[name]) for name in ("self", "src")])
    return call.labels("self")


SAME = ChannelRule(same)
POINTWISE = ChannelRule(pointwise)

SAME_OPS = (
    aten.abs.default, aten.absolute.default, aten.acos.default, aten.alias.default, aten.asin.default,
    aten.asinh.default, aten.atan.default, aten.atanh.default, aten.bitwise_not.default, aten.ceil.default,
    aten.celu.default, aten.clamp.default, aten.clamp_max.default, aten.clamp_min.default, aten.clip.default,
    aten.clone.default, aten.contiguous.default, aten.cos.default, aten.cosh.default, aten.detach.default,
    aten.dropout.default, aten.elu.default, aten.erf.default, aten.erfc.default, aten.exp.default, aten.exp2.default,
    aten.expm1.default, aten.feature_dropout.default, aten.fill.Scalar, aten.fill.Tensor, aten.floor.default,
    aten.frac.default, aten.full_like.default, aten.gelu.default, aten.hardshrink.default, aten.hardsigmoid.default,
    aten.hardswish.default, aten.hardtanh.default, aten.isfinite.default, aten.isinf.default, aten.isnan.default,
    aten.leaky_relu.default, aten.lift_fresh_copy.default, aten.log.default, aten.log10.default, aten.log1p.default,
    aten.log2.default, aten.log_sigmoid.default, aten.logical_not.default, aten.logit.default, aten.mish.default,
    aten.nan_to_num.default, aten.neg.default, aten.negative.default, aten.ones_like.default, aten.positive.default,
    aten.reciprocal.default, aten.relu.default, aten.relu6.default, aten.round.default, aten.rsqrt.default,
    aten.selu.default, aten.sgn.default, aten.sigmoid.default, aten.sign.default, aten.silu.default, aten.sin.default,
    aten.sinc.default, aten.sinh.default, aten.softplus.default, aten.softshrink.default, aten.sqrt.default,
    aten.square.default, aten.tan.default, aten.tanh.default, aten.threshold.default, aten.to.device, aten.to.dtype,
    aten.to.dtype_layout, aten.to.other, aten._to_copy.default, aten.trunc.default, aten.type_as.default,
    aten.zeros_like.default, observe,
)  # fmt: skip
POINTWISE_OPS = (
    aten.__and__.Tensor, aten.__or__.Tensor, aten.add.Scalar, aten.add.Tensor, aten.addcdiv.default,
    aten.addcmul.default, aten.atan2.default, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor,
    aten.bitwise_xor.Tensor, aten.clamp.Tensor, aten.clamp_max.Tensor, aten.clamp_min.Tensor, aten.div.Scalar,
    aten.div.Scalar_mode, aten.div.Tensor, aten.div.Tensor_mode, aten.divide.Tensor, aten.divide.Tensor_mode,
    aten.eq.Scalar, aten.eq.Tensor, aten.floor_divide.default, aten.floor_divide.Scalar, aten.fmax.default,
    aten.fmin.default, aten.fmod.Scalar, aten.fmod.Tensor, aten.ge.Scalar, aten.ge.Tensor, aten.greater.Scalar,
    aten.greater.Tensor, aten.gt.Scalar, aten.gt.Tensor, aten.hypot.default, aten.le.Scalar, aten.le.Tensor,
    aten.lerp.Scalar, aten.lerp.Tensor, aten.less.Scalar, aten.less.Tensor, aten.logaddexp.default,
    aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default, aten.lt.Scalar, aten.lt.Tensor,
    aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.max.other, aten.maximum.default, aten.min.other,
    aten.minimum.default, aten.mul.Scalar, aten.mul.Tensor, aten.multiply.Scalar, aten.multiply.Tensor,
    aten.ne.Scalar, aten.ne.Tensor, aten.pow.Scalar, aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor,
    aten.remainder.Scalar, aten.remainder.Tensor, aten.rsub.Scalar, aten.rsub.Tensor,
    aten.sub.Scalar, aten.sub.Tensor, aten.subtract.Tensor, aten.true_divide.Tensor, aten.where.Scalar,
    aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.self, aten.xlogy.Tensor,
)  # fmt: skip

POINTWISE_RULES: dict[Any, ChannelRule] = {
    **dict.fromkeys(SAME_OPS, SAME),
    **dict.fromkeys(POINTWISE_OPS, POINTWISE),
    aten.prelu.default: ChannelRule(_prelu),
    aten.copy.default: ChannelRule(_copied),
    quantize: ChannelRule(_quantized),
    dequantize: ChannelRule(_quantized),
    fake_quantize: ChannelRule(_quantized),
}
