"""Pruning: channels, heads and hidden units leave a Program for good; masks on weights set them to zero."""

from fxopt.passes.prune.data_scores import ActivationTimesWeight, HessianDiagonal, Taylor
from fxopt.passes.prune.fold_masks import FoldMasks
from fxopt.passes.prune.gradually import Gradually, cubic, linear, one_shot
from fxopt.passes.prune.group_lasso import GroupLasso, group_lasso
from fxopt.passes.prune.groups import channel_groups
from fxopt.passes.prune.mask_weights import MaskWeights
from fxopt.passes.prune.patterns import Blocks, Magnitude, NofM, Sparsity
from fxopt.passes.prune.reestimate_batch_norm import ReestimateBatchNorm
from fxopt.passes.prune.remove_channels import RemoveChannels
from fxopt.passes.prune.repair_weights import RepairWeights
from fxopt.passes.prune.scores import L1, L2, BatchNormScale, GeometricMedian, Lamp, Random
from fxopt.passes.prune.weight_statistics import WeightStatistics, weight_statistics

__all__ = [
    "L1",
    "L2",
    "ActivationTimesWeight",
    "BatchNormScale",
    "Blocks",
    "FoldMasks",
    "GeometricMedian",
    "Gradually",
    "GroupLasso",
    "HessianDiagonal",
    "Lamp",
    "Magnitude",
    "MaskWeights",
    "NofM",
    "Random",
    "ReestimateBatchNorm",
    "RemoveChannels",
    "RepairWeights",
    "Sparsity",
    "Taylor",
    "WeightStatistics",
    "channel_groups",
    "cubic",
    "group_lasso",
    "linear",
    "one_shot",
    "weight_statistics",
]
