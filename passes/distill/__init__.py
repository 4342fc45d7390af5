"""Distillation: a student Program learns to give what its teacher gives."""

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
from fxopt.passes.distill.stored_outputs import StoredOutputs, store_outputs

__all__ = [
    "AttentionTransfer",
    "BinaryCrossEntropy",
    "Correlation",
    "CosineSimilarity",
    "CrossEntropy",
    "DecoupledKnowledge",
    "FeatureHint",
    "KLDivergence",
    "LogitsMeanSquaredError",
    "MeanSquaredError",
    "PairwiseSimilarity",
    "Relations",
    "StoredOutputs",
    "store_outputs",
    "with_ids",
]
