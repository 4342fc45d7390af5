"""ONNX_RULES: one emission rule an ATen overload, in files by family."""

from __future__ import annotations

from typing import Any

from fxopt.export.builder import Rule
from fxopt.export.onnx_rules import (
    activation,
    adaptive_pooling,
    attention,
    cast,
    comparison,
    convolution,
    creation,
    elementwise,
    indexing,
    linear_algebra,
    normalization,
    padding,
    pixels,
    pooling,
    quantized,
    quantized_recurrent,
    recurrent,
    reduction,
    resize,
    scatter,
    slicing,
    symbolic,
    view,
)

ONNX_RULES: dict[Any, Rule] = {
    **activation.RULES,
    **adaptive_pooling.RULES,
    **attention.RULES,
    **cast.RULES,
    **comparison.RULES,
    **convolution.RULES,
    **creation.RULES,
    **elementwise.RULES,
    **indexing.RULES,
    **linear_algebra.RULES,
    **normalization.RULES,
    **padding.RULES,
    **pixels.RULES,
    **pooling.RULES,
    **quantized.RULES,
    **quantized_recurrent.RULES,
    **recurrent.RULES,
    **reduction.RULES,
    **resize.RULES,
    **scatter.RULES,
    **slicing.RULES,
    **symbolic.RULES,
    **view.RULES,
}
