"""Distillation: a student Program learns to give what its teacher gives."""

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
]
