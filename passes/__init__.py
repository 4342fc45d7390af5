"""Transformations of programs, one a file."""

from fxopt.passes.cleanup import (
    CLEANUP,
    DropInferenceNoOps,
    EliminateCommonSubexpressions,
    EliminateDeadCode,
    FoldAffine,
    FoldBatchNorm,
    FoldConstants,
    FoldPad,
    MergeLinear,
)
from fxopt.passes.quantize import Calibrate, Convert, CorrectBias, InsertObservers, Quantize, QuantizeDynamic

__all__ = [
    "CLEANUP",
    "Calibrate",
    "Convert",
    "CorrectBias",
    "DropInferenceNoOps",
    "EliminateCommonSubexpressions",
    "EliminateDeadCode",
    "FoldAffine",
    "FoldBatchNorm",
    "FoldConstants",
    "FoldPad",
    "InsertObservers",
    "MergeLinear",
    "Quantize",
    "QuantizeDynamic",
]
