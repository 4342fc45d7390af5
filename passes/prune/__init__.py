"""Structured pruning: channels, heads and hidden units leave a Program for good."""

from fxopt.passes.prune.groups import channel_groups
from fxopt.passes.prune.remove_channels import RemoveChannels

__all__ = ["RemoveChannels", "channel_groups"]
