"""Passes that simplify a program and keep its meaning. CLEANUP is all of them, in the order that works best."""

from fxopt.graph.pipeline import Pass
from fxopt.passes.cleanup.drop_inference_no_ops import DropInferenceNoOps
from fxopt.passes.cleanup.eliminate_common_subexpressions import EliminateCommonSubexpressions
from fxopt.passes.cleanup.eliminate_dead_code import EliminateDeadCode
from fxopt.passes.cleanup.fold_affine import FoldAffine
from fxopt.passes.cleanup.fold_batch_norm import FoldBatchNorm
from fxopt.passes.cleanup.fold_constants import FoldConstants
from fxopt.passes.cleanup.fold_pad import FoldPad
from fxopt.passes.cleanup.merge_linear import MergeLinear
from fxopt.passes.cleanup.recognize_linear import RecognizeLinear

__all__ = [
    "CLEANUP",
    "DropInferenceNoOps",
    "EliminateCommonSubexpressions",
    "EliminateDeadCode",
    "FoldAffine",
    "FoldBatchNorm",
    "FoldConstants",
    "FoldPad",
    "MergeLinear",
    "RecognizeLinear",
]

CLEANUP: tuple[Pass, ...] = (
    EliminateDeadCode(),
    DropInferenceNoOps(),  # brings layers next to their batch norm, pad or scale
    RecognizeLinear(),  # before constants are folded: a transposed weight would be copied
    FoldConstants(),  # makes computed weights and scales into tensors, which the folds below can read
    EliminateCommonSubexpressions(),
    FoldAffine(),  # before batch norm: conv -> scale -> bn and conv -> bn -> scale both end as one conv
    FoldBatchNorm(),
    DropInferenceNoOps(),  # what stood around a batch norm, such as flatten and its reverse, may now meet
    FoldPad(),  # after batch norm: bn -> conv folds only while the conv has no padding
    MergeLinear(),
)
