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
from fxopt.passes.quantize import Calibrate, Convert, InsertObservers, Quantize

__all__ = [
    "CLEANUP",
    "Calibrate",
    "Convert",
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
]
