"""The cases of the rules for arithmetic, comparisons, reductions, products, new tensors: at least one for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.export.op_cases import Case, Input, SizeOf, Weight, case, integers, mask, positive

aten = torch.ops.aten


def unit(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(list(shape), generator=generator) * 1.8 - 0.9


def above_one(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(list(shape), generator=generator) * 3 + 1.1


def tiny(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(list(shape), generator=generator) * 1e-6


def halves(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(-7, 8, list(shape), generator=generator) / 2


def odd(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(-4, 4, list(shape), generator=generator) * 2 + 1


def bytes_(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 255, list(shape), generator=generator, dtype=torch.uint8)


def small(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(-9, 9, list(shape), generator=generator, dtype=torch.int8)


def short(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(-9, 9, list(shape), generator=generator, dtype=torch.int16)


def double(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(list(shape), generator=generator, dtype=torch.float64)


def special(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    values = torch.tensor([0.0, 1.5, -2.0, torch.inf, -torch.inf, torch.nan])
    return values[torch.randint(0, 6, list(shape), generator=generator)]


def distinct(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw numbers no two of which are equal, so that sorting them has one result."""
    count = int(torch.tensor(list(shape)).prod())
    return torch.randperm(count, generator=generator).reshape(list(shape)).float()


X, Y, ROW, ONE = Input(("B", 3, 4)), Input(("B", 3, 4)), Input((3, 1)), Input(())
N, M, ODD = Input(("B", 3, 4), integers), Input(("B", 3, 4), integers), Input(("B", 3, 4), odd)
P, Q = Input(("B", 3, 4), positive), Input((4,), positive)
U = Input(("B", 3, 4), unit)
BOOL, FLAG = Input(("B", 3, 4), mask), Input((4,), mask)
BYTES, SMALL, SHORT, DOUBLE = (Input(("B", 5), draw) for draw in (bytes_, small, short, double))
HALVES = Input(("B", 9), halves)
SPECIAL = Input(("B", 30), special)
ORDER = Input(("B", 5, "T"), distinct)


def each(ops: Sequence[Any], *args: Any, **options: Any) -> list[Case]:
    return [Case(op, args, **options) for op in ops]


ELEMENTWISE = [
    *each([aten.exp.default, aten.sin.default, aten.cos.default, aten.tan.default, aten.sinh.default], U),
    *each([aten.cosh.default, aten.asinh.default, aten.erf.default, aten.erfc.default, aten.exp2.default], U),
    *each([aten.asin.default, aten.arcsin.default, aten.acos.default, aten.arccos.default, aten.atanh.default], U),
    *each([aten.atan.default, aten.arctan.default, aten.neg.default, aten.negative.default, aten.frac.default], X),
    *each([aten.abs.default, aten.absolute.default, aten.sign.default, aten.sgn.default, aten.square.default], X),
    *each([aten.log.default, aten.log2.default, aten.log10.default, aten.sqrt.default, aten.rsqrt.default], P),
    *each([aten.reciprocal.default, aten.log1p.default, aten.expm1.default], P),
    *each([aten.log1p.default, aten.expm1.default], Input(("B", 4), tiny)),
    *each([aten.floor.default, aten.ceil.default, aten.round.default, aten.trunc.default, aten.fix.default], HALVES),
    *each([aten.floor.default, aten.trunc.default, aten.exp.default, aten.sqrt.default], BYTES),
    *each([aten.exp.default, aten.erf.default, aten.trunc.default], DOUBLE, tolerance=1e-6),
    *each([aten.neg.default, aten.square.default], BYTES),
    *each([aten.neg.default, aten.abs.default, aten.sign.default, aten.square.default], SHORT),
    case(aten.acosh.default, Input(("B", 4), above_one)),
    case(aten.round.decimals, X, kwargs={"decimals": 2}),
    case(aten.round.decimals, X, kwargs={"decimals": -1}),
    case(aten.nan_to_num.default, SPECIAL),
    case(aten.nan_to_num.default, SPECIAL, 1.0, 2.0, -3.0),
    case(aten.nan_to_num.default, N),
    *each([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.subtract.Tensor, aten.multiply.Tensor], X, ROW),
    *each([aten.div.Tensor, aten.divide.Tensor, aten.true_divide.Tensor], X, ODD),
    *each([aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.subtract.Scalar, aten.rsub.Scalar], N, 1.5),
    *each([aten.multiply.Scalar, aten.div.Scalar, aten.divide.Scalar, aten.true_divide.Scalar], N, 3),
    *each([aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default], BOOL, FLAG),
    *each([aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.sub.Tensor], BYTES, SMALL),
    *each([aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor], N, SizeOf(0)),
    *each([aten.mul.Tensor, aten.div.Tensor], ONE, 2.0),
    *each([aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor], X, N, kwargs={"alpha": 2}),
    case(aten.rsub.Scalar, N, 3, 2),
    *each([aten.pow.Tensor_Tensor, aten.float_power.Tensor_Tensor], P, Q),
    *each([aten.pow.Scalar, aten.float_power.Scalar], 2.0, X),
    *[
        case(op, P, n)
        for op in (aten.pow.Tensor_Scalar, aten.float_power.Tensor_Scalar)
        for n in (2, 3, 0.5, -0.5, -1, 1)
    ],
    *each([aten.pow.Tensor_Scalar], N, 2),
    *[
        case(op, X, ROW, kwargs={"rounding_mode": mode})
        for op in (aten.div.Tensor_mode, aten.divide.Tensor_mode)
        for mode in ("floor", "trunc", None)
    ],
    *[
        case(op, N, -3, kwargs={"rounding_mode": mode})
        for op in (aten.div.Scalar_mode, aten.divide.Scalar_mode)
        for mode in ("floor", "trunc")
    ],
    *each([aten.floor_divide.default, aten.remainder.Tensor, aten.fmod.Tensor], N, ODD),
    *each([aten.floor_divide.default, aten.remainder.Tensor, aten.fmod.Tensor], X, ROW),
    *each([aten.floor_divide.Scalar, aten.remainder.Scalar, aten.fmod.Scalar], N, -3),
    *each([aten.floor_divide.Scalar, aten.remainder.Scalar, aten.fmod.Scalar], HALVES, 1.5),
    case(aten.remainder.Scalar_Tensor, 7, ODD),
    *each([aten.maximum.default, aten.max.other, aten.minimum.default, aten.min.other], X, ROW),
    *each([aten.max.other, aten.min.other], SHORT, SHORT),
    *each([aten.addcmul.default, aten.addcdiv.default], X, Y, P),
    *each([aten.addcmul.default, aten.addcdiv.default], X, ROW, P, kwargs={"value": 0.5}),
    case(aten.lerp.Scalar, X, Y, 0.3),
    case(aten.lerp.Tensor, X, Y, P),
    case(aten.where.self, BOOL, X, ROW),
    case(aten.where.self, BOOL, N, X),
    case(aten.where.self, BOOL, FLAG, BOOL),
    case(aten.where.ScalarOther, BOOL, X, 0.0),
    case(aten.where.ScalarSelf, BOOL, -1, N),
    case(aten.where.Scalar, BOOL, 1, 0),
    case(aten.masked_fill.Scalar, X, FLAG, float("-inf")),
    case(aten.masked_fill.Tensor, X, BOOL, ONE),
]

COMPARISON_OPS = [getattr(aten, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")] + [
    getattr(aten, name) for name in ("not_equal", "less", "less_equal", "greater", "greater_equal")
]
COMPARISON = [
    *each([op.Tensor for op in COMPARISON_OPS], N, M),
    *each([op.Scalar for op in COMPARISON_OPS], X, 0.5),
    *each([aten.lt.Tensor, aten.eq.Tensor], N, X),
    *each([aten.lt.Tensor, aten.eq.Tensor], BOOL, FLAG),
    *each([aten.ge.Scalar, aten.eq.Scalar], N, 0.5),
    *each([aten.lt.Scalar, aten.eq.Scalar], N, SizeOf(0)),
    *each([aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default], N, BOOL),
    *[
        case(getattr(packet, overload), left, right)
        for packet in (aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor)
        for overload, left, right in (
            ("Tensor", N, M),
            ("Tensor", BOOL, FLAG),
            ("Scalar", N, 3),
            ("Scalar_Tensor", 3, N),
        )
    ],
    *[
        case(getattr(packet, overload), left, right)
        for packet in (aten.__and__, aten.__or__, aten.__xor__)
        for overload, left, right in (("Tensor", BOOL, FLAG), ("Tensor", SMALL, SHORT), ("Scalar", N, 3))
    ],
    *each([aten.logical_not.default, aten.bitwise_not.default], BOOL),
    *each([aten.logical_not.default, aten.bitwise_not.default], N),
    *each([aten.isnan.default, aten.isinf.default, aten.isfinite.default], SPECIAL),
    *each([aten.isnan.default, aten.isinf.default, aten.isfinite.default], N),
    case(aten.isin.Tensor_Tensor, N, Input((2, 2), integers)),
]

REDUCTION = [
    *each([aten.sum.default, aten.max.default, aten.min.default], X),
    *each([aten.any.default, aten.all.default, aten.max.default], ODD),
    *each([aten.prod.default], Input((3, 4), odd)),
    *each([aten.sum.default, aten.max.default], SHORT),
    *each([aten.sum.dim_IntList, aten.amax.default, aten.amin.default], X, [0, -1]),
    *each([aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.any.dims, aten.all.dims], BOOL, [1], True),
    *each([aten.sum.dim_IntList, aten.any.dims], N, None),
    case(aten.sum.dim_IntList, N, [1], kwargs={"dtype": torch.float32}),
    case(aten.sum.dim_IntList, ONE, [0]),
    *each([aten.prod.dim_int, aten.any.dim, aten.all.dim], ODD, 1),
    *each([aten.any.dim, aten.all.dim], BYTES, -1, True),
    *each([aten.argmax.default, aten.argmin.default], X),
    *each([aten.argmax.default, aten.argmin.default], X, 1, True),
    *each([aten.argmax.default, aten.argmin.default], SHORT, -1),
    case(aten.argmax.default, X, None, True),
    *each([aten.max.dim, aten.min.dim], ORDER, 2),
    *each([aten.max.dim, aten.min.dim], BYTES, 1, True),
    case(aten.max.dim, ONE, 0),
    case(aten.count_nonzero.default, N),
    case(aten.count_nonzero.dim_IntList, HALVES, [1]),
    *each([aten.var.default, aten.std.default, aten.var_mean.default, aten.std_mean.default], X, False),
    *each([aten.var.dim, aten.std.dim, aten.var_mean.dim, aten.std_mean.dim], X, [0, 2], True, True),
    *[
        case(op, ORDER, [-1], kwargs={"correction": correction, "keepdim": keepdim})
        for op in (aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction)
        for correction, keepdim in ((None, False), (0, True), (2, False))
    ],
    case(aten.logsumexp.default, X, [1], True),
    *[case(aten.linalg_vector_norm.default, X, order, [1]) for order in (2, 1, 0, 3.5, float("inf"), float("-inf"))],
    case(aten.linalg_vector_norm.default, X),
    case(aten.linalg_norm.default, X, kwargs={"dim": [1]}),
    case(aten.linalg_norm.default, X, 1, [-1], True),
    case(aten.linalg_norm.default, X),
    case(aten.norm.Scalar, X),
    case(aten.norm.ScalarOpt_dim, X, None, [1, 2], True),
    case(aten.norm.ScalarOpt_dtype, X, 1, kwargs={"dtype": torch.float64}),
    case(aten.norm.ScalarOpt_dim_dtype, X, 2, [0], False, kwargs={"dtype": torch.float64}),
    *each([aten.cumsum.default, aten.cumprod.default], X, 1),
    *each([aten.cumsum.default, aten.cumprod.default], ODD, -1),
    *each([aten.cumsum.default, aten.cumprod.default], ONE, 0),
    case(aten.cumsum.default, BOOL, 0),
    case(aten.cumprod.default, P, 0, kwargs={"dtype": torch.float64}),
    case(aten.diff.default, ORDER),
    case(aten.diff.default, N, 2, 1),
    case(aten.diff.default, BOOL, 1, -1, Input(("B", 3, 1), mask), Input(("B", 3, 1), mask)),
    case(aten.topk.default, ORDER, 3),
    case(aten.topk.default, ORDER, 2, 1, False),
    case(aten.topk.default, ORDER, SizeOf(0), -1),
    *each([aten.sort.default, aten.argsort.default], ORDER),
    *each([aten.sort.default, aten.argsort.default], ORDER, 1, True),
    *each([aten.sort.stable, aten.argsort.stable], N, kwargs={"stable": True, "dim": 1}),
    *each([aten.sort.stable, aten.argsort.stable], N, kwargs={"stable": True, "descending": True}),
    case(aten.sort.default, ONE),
]

A, C, V = Input(("B", 4, 5)), Input(("B", 5, 3)), Input((5,))
LINEAR_ALGEBRA = [
    *each([aten.matmul.default, aten.linalg_matmul.default, aten.bmm.default], A, C),
    *each([aten.matmul.default, aten.bmm.default], N, Input(("B", 4, 2), integers)),
    *each([aten.matmul.default], A, V),
    case(aten.mm.default, Input(("B", 5)), Weight((5, 3)), emits=("MatMul",)),
    case(aten.mv.default, Input(("B", 5)), V),
    *each([aten.dot.default, aten.vdot.default], V, V),
    *each([aten.outer.default, aten.ger.default], Input(("B",)), V),
    case(aten.addmm.default, Weight((3,)), Input(("B", 5)), Weight((5, 3)), emits=("Gemm",)),
    case(aten.addmm.default, Input((1, 1)), Input(("B", 5)), Weight((5, 3)), kwargs={"beta": 0.5, "alpha": 2}),
    case(aten.addmm.default, Input((2,), integers), Input(("B", 4), integers), Input((4, 2), integers)),
    case(aten.baddbmm.default, Input(("B", 1, 3)), A, C, kwargs={"beta": 0, "alpha": 0.25}),
    case(aten.baddbmm.default, Input(("B", 4, 3)), A, C, kwargs={"beta": 2}),
    case(aten.einsum.default, "b i j, b j k -> b k i", [A, C]),
    case(aten.einsum.default, "...ij,j", [A, V]),
    case(aten.tensordot.default, A, Input((5, 4, 3)), [2, 1], [0, 1]),
    *each([aten.det.default, aten.linalg_det.default], Input(("B", 3, 3))),
    case(aten.linalg_cross.default, X, Input((1, 3, 1)), kwargs={"dim": 1}),
]

B = SizeOf(0)
CREATION = [
    *each([aten.zeros.default, aten.ones.default], [2, 3]),
    *each([aten.zeros.default, aten.ones.default], [20, 30], kwargs={"dtype": torch.int64}),
    *[case(op, X, [2, B]) for op in (aten.new_zeros.default, aten.new_ones.default)],
    case(aten.new_ones.default, N, [2, 3], kwargs={"dtype": torch.bool}),
    case(aten.new_full.default, N, [B, 2], 7),
    case(aten.new_full.default, X, [3], 0.5, kwargs={"dtype": torch.float64}),
    *each([aten.zeros_like.default, aten.ones_like.default], X),
    *each([aten.zeros_like.default, aten.ones_like.default], ROW, kwargs={"dtype": torch.int32}),
    case(aten.full_like.default, N, 3),
    case(aten.full_like.default, X, B),
    case(aten.fill.Scalar, X, 0.5),
    case(aten.fill.Tensor, X, ONE),
    case(aten.full.default, [2, 3], 1.5),
    case(aten.full.default, [2, 3], True),
    case(aten.scalar_tensor.default, 3.5),
    case(aten.arange.default, 7),
    case(aten.arange.start, 2, 7.5),
    case(aten.arange.start_step, 7, 1, -2),
    case(aten.linspace.default, -1.0, 1.0, 7),
    case(aten.eye.default, 3),
    case(aten.eye.m, 3, 4, kwargs={"dtype": torch.bool}),
]
CAST = [
    case(aten.to.dtype, HALVES, torch.int64),
    case(aten.to.dtype, HALVES, torch.bool),
    case(aten.to.dtype, N, torch.int8),
    case(aten.to.dtype, BOOL, torch.float32),
    case(aten.to.dtype, X, torch.float64),
    case(aten.to.device, N, "cpu", torch.float32),
    case(aten.to.dtype_layout, N, kwargs={"dtype": torch.float32, "layout": torch.strided}),
    case(aten.to.other, N, X),
    case(aten.type_as.default, N, X),
    case(aten._to_copy.default, X, kwargs={"dtype": torch.int32}),
    case(aten.copy.default, N, Input((4,))),
    case(aten.copy.default, X, Y),
]
