"""What a student's values are compared with a teacher's by, one loss a file."""

from fxopt.passes.distill.losses.attention_transfer import AttentionTransfer
from fxopt.passes.distill.losses.binary_cross_entropy import BinaryCrossEntropy
from fxopt.passes.distill.losses.correlation import Correlation
from fxopt.passes.distill.losses.cosine_similarity import CosineSimilarity
from fxopt.passes.distill.losses.cross_entropy import CrossEntropy
from fxopt.passes.distill.losses.decoupled_knowledge import DecoupledKnowledge
from fxopt.passes.distill.losses.feature_hint import FeatureHint
from fxopt.passes.distill.losses.kl_divergence import KLDivergence
from fxopt.passes.distill.losses.mean_squared_error import LogitsMeanSquaredError, MeanSquaredError
from fxopt.passes.distill.losses.pairwise_similarity import PairwiseSimilarity
from fxopt.passes.distill.losses.relations import Relations

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
