"""Distillation: a student Program learns to give what its teacher gives."""

from fxopt.passes.distill.attach_teacher import AttachTeacher
from fxopt.passes.distill.detach_teacher import DetachTeacher
from fxopt.passes.distill.identified import with_ids
from fxopt.passes.distill.losses import (
    AttentionTransfer,
    BinaryCrossEntropy,
    Correlation,
    CosineSimilarity,
    CrossEntropy,
    DecoupledKnowledge,
    FeatureHint,
    KLDivergence,
    LogitsMeanSquaredError,
    MeanSquaredError,
    PairwiseSimilarity,
    Relations,
)
from fxopt.passes.distill.pairing import stages
from fxopt.passes.distill.stored_outputs import StoredOutputs, store_outputs

__all__ = [
    "AttachTeacher",
    "AttentionTransfer",
    "BinaryCrossEntropy",
    "Correlation",
    "CosineSimilarity",
    "CrossEntropy",
    "DecoupledKnowledge",
    "DetachTeacher",
    "FeatureHint",
    "KLDivergence",
    "LogitsMeanSquaredError",
    "MeanSquaredError",
    "PairwiseSimilarity",
    "Relations",
    "StoredOutputs",
    "stages",
    "store_outputs",
    "with_ids",
]
