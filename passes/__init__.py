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
    Calibrate,
    Convert,
    CorrectBias,
    Gptq,
    InsertObservers,
    Quantize,
    QuantizeDynamic,
    QuantizeWeights,
    RoundGptq,
)

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
    "Gptq",
    "InsertObservers",
    "MergeLinear",
    "Quantize",
    "QuantizeDynamic",
    "QuantizeWeights",
    "RoundGptq",
]
