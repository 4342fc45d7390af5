"""Operands of a rule: torch's type promotion, and the dtypes for which onnxruntime has kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxopt.export.builder import OnnxGraph

_FLOAT = {torch.float32}
_FLOATS = {torch.float32, torch.float64}
_NUMBERS = {*_FLOATS, torch.int32, torch.int64}
_BYTES = {torch.int8, torch.uint8}
HALVES = {torch.float16, torch.bfloat16}  # onnxruntime itself computes these in float32 where it has no kernel

# The dtypes that onnxruntime's CPU kernels take, for ops that do not take all numbers (1.23 to 1.31).
KERNEL_DTYPES: dict[str, set[torch.dtype]] = {
    **dict.fromkeys(["Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Erf", "Det"], _FLOAT),
    **dict.fromkeys(
        ["Exp", "Log", "Sqrt", "Reciprocal", "Sin", "Cos", "Tanh", "Floor", "Ceil", "Round", "Gemm"], _FLOATS
    ),
    **dict.fromkeys(["ReduceSum", "ReduceProd", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceLogSumExp"], _NUMBERS),
    **dict.fromkeys(["ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "Max", "Min", "Where"], _NUMBERS | _BYTES),
    **dict.fromkeys(["Pow", "CumSum", "MatMul", "Einsum", "EyeLike"], _NUMBERS),
    "Neg": {*_NUMBERS, torch.int8, torch.int16},
    "TopK": {*_NUMBERS, *_BYTES, torch.int16},
    "Trilu": {*_NUMBERS, torch.bool},
    "Range": {*_NUMBERS, torch.int16},
    "Compress": {*_NUMBERS, *_BYTES, torch.bool, torch.int16},
}
_ARITHMETIC = {*_NUMBERS, *_BYTES, torch.int16}


def kernel_dtype(op_type: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute `op_type` in: `dtype`, or a close one for which there is a kernel."""
    if dtype in HALVES or dtype in KERNEL_DTYPES.get(op_type, _ARITHMETIC):
        return dtype
    return torch.float32 if dtype.is_floating_point else torch.int32


def operand(g: OnnxGraph, value: Any, dtype: torch.dtype) -> str:
    """Return a tensor node, a number or a symbolic number as a value of `dtype`; numbers are 0-D."""
    if isinstance(value, fx.Node) and not isinstance(g.val(value), Tensor):
        return g.cast(g.scalar(value), dtype, g.dtype(value))
    return g.cast(value, dtype)


def compute(g: OnnxGraph, op_type: str, *operands: Any, dtype: torch.dtype | None = None, **attributes: Any) -> str:
    """Emit `op_type` on operands cast to `dtype` (default: the dtype of the node being emitted); the result has it too.

    Operands are nodes or numbers. A value given by name must already have `dtype`. Where onnxruntime has no kernel
    for `dtype`, a wider one is used in between.
    """
    wanted = dtype or g.dtype()
    inner = kernel_dtype(op_type, wanted)
    values = [
        g.cast(value, inner, wanted) if isinstance(value, str) else operand(g, value, inner) for value in operands
    ]
    return g.cast(g.op(op_type, *values, **attributes), wanted, inner)


def reduced(
    g: OnnxGraph, op_type: str, value: Any, dims: Sequence[int] | None, keepdim: bool, dtype: torch.dtype
) -> str:
    """Emit a reduction over `dims` (none: all) in `dtype`; a value given by name must already have it."""
    inner = kernel_dtype(op_type, dtype)
    source = g.cast(value, inner, dtype) if isinstance(value, str) else operand(g, value, inner)
    has_dims = dims and not (isinstance(value, fx.Node) and g.rank(value) == 0)
    axes = g.constant(np.array(dims, dtype=np.int64)) if has_dims else None
    return g.cast(g.op(op_type, source, axes, keepdims=int(keepdim)), dtype, inner)


def common_dtype(g: OnnxGraph, *values: Any) -> torch.dtype:
    """Return the dtype in which torch compares or combines nodes and numbers (its type promotion)."""
    fakes = [g.val(value) if isinstance(value, fx.Node) else value for value in values]
    plain = [_number(fake) for fake in fakes]
    result = torch.result_type(plain[0], plain[0])
    for fake in plain[1:]:
        result = torch.result_type(plain[0], fake) if len(plain) == 2 else torch.promote_types(result, g.dtype(fake))
    return result


def _number(fake: Any) -> Any:
    """Stand in for a symbolic number, whose value torch.result_type would ask for."""
    if isinstance(fake, Tensor):
        return fake
    if isinstance(fake, (bool, torch.SymBool)):
        return True
    return 1 if isinstance(fake, (int, torch.SymInt)) else 1.0
