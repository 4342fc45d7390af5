"""Structured pruning: channels, heads and hidden units leave a Program for good."""

from fxopt.passes.prune.data_scores import ActivationTimesWeight, HessianDiagonal, Taylor
from fxopt.passes.prune.groups import channel_groups
from fxopt.passes.prune.remove_channels import RemoveChannels
from fxopt.passes.prune.scores import L1, L2, BatchNormScale, GeometricMedian, Lamp, Random

__all__ = [
    "L1",
    "L2",
    "ActivationTimesWeight",
    "BatchNormScale",
    "GeometricMedian",
    "HessianDiagonal",
    "Lamp",
    "Random",
    "RemoveChannels",
    "Taylor",
    "channel_groups",
]
