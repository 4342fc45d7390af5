"""Moments: how the channels of each value are spread, from batch-norm statistics instead of data.

What a batch norm gives is taken as normal, with the mean beta and the deviation |gamma| of each channel. What follows
from it is computed op by op: a channel is a function of one standard normal variable, tabulated at POINTS of it.
(Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2; its
clipped normal is the case of relu and relu6.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxopt.passes.quantize.channel_paths import Channels

WIDEST = 6.0  # deviations on either side of the mean, as in Nagel et al.
POINTS = torch.linspace(-WIDEST, WIDEST, 61, dtype=torch.float64)
_DENSITY = torch.exp(-POINTS.square() / 2)
WEIGHTS = _DENSITY / _DENSITY.sum()
# The means of normal variables, over their deviations, among which rectified() chooses.
RATIOS = torch.linspace(-4, WIDEST, 401, dtype=torch.float64)


@dataclass(frozen=True)
class Moments:
    """The channels of a value, each as a function of a standard normal variable.

    - `values`: float64 `[channels, points]`, at POINTS, which count as WEIGHTS.
    - `channels`: where the channels lie in the value; None if that was lost, and one row stands for all.
    - `variable`: the name of the variable: the node with which it began. Different ones are taken for independent.
    """

    values: Tensor
    channels: Channels | None
    variable: str | None = None

    @property
    def mean(self) -> Tensor:
        """The mean of each channel."""
        return self.values @ WEIGHTS

    @property
    def variance(self) -> Tensor:
        """The variance of each channel."""
        return (self.values - self.mean[:, None]).square() @ WEIGHTS

    @property
    def low(self) -> Tensor:
        """The smallest value of each channel."""
        return self.values.amin(1)

    @property
    def high(self) -> Tensor:
        """The largest value of each channel."""
        return self.values.amax(1)

    def within(self, low: Tensor, high: Tensor) -> Moments:
        """Cut each channel off at `low` and `high`, `[channels]`."""
        return Moments(self.values.clamp(low[:, None], high[:, None]), self.channels)

    def whole(self) -> Moments:
        """Return one row for all channels, with their common mean, variance and ends."""
        mean = self.mean.mean(0, keepdim=True)
        variance = (self.variance + (self.mean - mean).square()).mean(0, keepdim=True)
        return normal(mean, variance, None).within(self.low.amin(0, keepdim=True), self.high.amax(0, keepdim=True))


def normal(mean: Tensor, variance: Tensor, channels: Channels | None) -> Moments:
    """Return normal channels, cut off at WIDEST deviations. Mean and variance are `[channels]`."""
    deviation = variance.double().clamp(min=0).sqrt()
    return Moments(mean.double()[:, None] + deviation[:, None] * POINTS, channels)


def rectified(mean: Tensor, variance: Tensor, channels: Channels | None) -> Moments:
    """Return the channels, of these means and variances, that are relu of a normal variable each."""
    tables = (RATIOS[:, None] + POINTS).relu()
    means = tables @ WEIGHTS
    deviations = ((tables - means[:, None]).square() @ WEIGHTS).sqrt()
    ratio = mean / variance.sqrt().clamp(min=1e-30)
    place = torch.searchsorted(means / deviations, ratio).clamp(max=len(RATIOS) - 1)
    values = tables[place] * (mean / means[place])[:, None]
    plain = normal(mean, variance, channels)
    return Moments(torch.where((ratio > WIDEST)[:, None], plain.values, values), channels)
