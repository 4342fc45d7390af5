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
from fxopt.passes.quantize import (
    FIXED_POINT,
    Calibrate,
    Convert,
    CorrectBias,
    Gptq,
    InsertObservers,
    Quantize,
    QuantizeDynamic,
    QuantizeWeights,
    RoundGptq,
    Scheme,
)

__all__ = [
    "CLEANUP",
    "FIXED_POINT",
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
    "Gptq",
    "InsertObservers",
    "MergeLinear",
    "Quantize",
    "QuantizeDynamic",
    "QuantizeWeights",
    "RoundGptq",
    "Scheme",
]
