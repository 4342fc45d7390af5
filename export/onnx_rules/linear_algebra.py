"""Products of matrices and vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxopt.export.builder import OnnxGraph, Rule
from fxopt.export.onnx_rules.elementwise import scaled, table
from fxopt.export.onnx_rules.operands import KERNEL_DTYPES, compute, operand
from fxopt.export.onnx_rules.shapes import unsqueeze

aten = torch.ops.aten

# ONNX MatMul has the meaning of torch.matmul, of which these are cases.
PRODUCTS = [
    aten.matmul.default,
    aten.linalg_matmul.default,
    aten.bmm.default,
    aten.mm.default,
    aten.mv.default,
    aten.dot.default,
    aten.vdot.default,
]


def product(_: None) -> Rule:
    """Make the rule of a product of matrices or vectors."""
    return lambda g, self, other: compute(g, "MatMul", self, other)


def addmm(g: OnnxGraph, self: fx.Node, mat1: fx.Node, mat2: fx.Node, beta: Any, alpha: Any) -> str:
    """aten::addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    if g.dtype() in KERNEL_DTYPES["Gemm"] and not isinstance(beta, fx.Node) and not isinstance(alpha, fx.Node):
        factors: dict[str, Any] = {
            name: float(factor) for name, factor in (("alpha", alpha), ("beta", beta)) if factor != 1
        }
        return g.op("Gemm", mat1, mat2, self if beta != 0 else None, **factors)
    return plus_product(g, self, mat1, mat2, beta, alpha)


def baddbmm(g: OnnxGraph, self: fx.Node, batch1: fx.Node, batch2: fx.Node, beta: Any, alpha: Any) -> str:
    """aten::baddbmm(Tensor self, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    return plus_product(g, self, batch1, batch2, beta, alpha)


def plus_product(g: OnnxGraph, addend: fx.Node, left: fx.Node, right: fx.Node, beta: Any, alpha: Any) -> str:
    """Return beta * addend + alpha * (left @ right); with beta 0 the addend does not count, not even its NaNs."""
    result: Any = scaled(g, compute(g, "MatMul", left, right), alpha)
    return result if beta == 0 else compute(g, "Add", scaled(g, addend, beta), result)


def outer(g: OnnxGraph, self: fx.Node, vec2: fx.Node) -> str:
    """aten::outer(Tensor self, Tensor vec2) -> Tensor
    aten::ger(Tensor self, Tensor vec2) -> Tensor
    """
    dtype = g.dtype()
    return compute(g, "Mul", unsqueeze(g, operand(g, self, dtype), 1), unsqueeze(g, operand(g, vec2, dtype), 0))


def einsum(g: OnnxGraph, equation: str, tensors: list[fx.Node], path: Any) -> str:
    """aten::einsum(str equation, Tensor[] tensors, *, int[]? path=None) -> Tensor"""
    return compute(g, "Einsum", *tensors, equation=equation.replace(" ", ""))


def tensordot(g: OnnxGraph, self: fx.Node, other: fx.Node, dims_self: list[int], dims_other: list[int]) -> str:
    """aten::tensordot(Tensor self, Tensor other, int[] dims_self, int[] dims_other) -> Tensor"""
    letters = [chr(ord("a") + position) for position in range(g.rank(self) + g.rank(other))]
    left, right = letters[: g.rank(self)], letters[g.rank(self) :]
    for dim_self, dim_other in zip(dims_self, dims_other, strict=True):
        right[dim_other] = left[dim_self]
    result = [letter for letter in [*left, *right] if not (letter in left and letter in right)]
    return compute(g, "Einsum", self, other, equation=f"{''.join(left)},{''.join(right)}->{''.join(result)}")


def det(g: OnnxGraph, self: fx.Node) -> str:
    """aten::det(Tensor self) -> Tensor
    aten::linalg_det(Tensor A) -> Tensor
    """
    return compute(g, "Det", self)


def linalg_cross(g: OnnxGraph, self: fx.Node, other: fx.Node, dim: int) -> str:
    """aten::linalg_cross(Tensor self, Tensor other, *, int dim=-1) -> Tensor"""
    dtype = g.dtype()

    def turned(node: fx.Node, order: list[int]) -> str:
        return g.op("Gather", operand(g, node, dtype), order, axis=dim)

    forward, backward = [1, 2, 0], [2, 0, 1]
    plus = compute(g, "Mul", turned(self, forward), turned(other, backward))
    return compute(g, "Sub", plus, compute(g, "Mul", turned(self, backward), turned(other, forward)))


RULES: dict[Any, Rule] = {
    **table(dict.fromkeys(PRODUCTS), product),
    aten.addmm.default: addmm,
    aten.baddbmm.default: baddbmm,
    aten.outer.default: outer,
    aten.ger.default: outer,
    aten.einsum.default: einsum,
    aten.tensordot.default: tensordot,
    aten.det.default: det,
    aten.linalg_det.default: det,
    aten.linalg_cross.default: linalg_cross,
}
