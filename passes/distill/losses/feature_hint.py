"""FeatureHint: a student's features are to be the teacher's (FitNets; SquareHead)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxopt.passes.distill.losses.entries import check_positive, counted, mean_of, of_one_shape


@dataclass(frozen=True)
class FeatureHint:
    """Compare features as they are: the mean of (student - teacher)^2 over channels and all that is valid.

    - `weight`: times the mean.
    - `normalize`: divide it by the mean of teacher^2, so that layers of any range weigh alike; teachers of zeros count
      as if they had the least square that float can tell from 1. Kurtic et al. 2023, "Sparse Fine-tuning for Inference
      Acceleration of Large Language Models" (SquareHead).

    Features [batch, channels, height, width], [batch, tokens, width] or others of one shape. Romero et al. 2015,
    "FitNets: Hints for Thin Deep Nets", equation 3, which halves it. Raises PassError for a weight that is not
    positive, and for two shapes.
    """

    weight: float = 1.0
    normalize: bool = False

    def __post_init__(self) -> None:
        check_positive(self, weight=self.weight)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted mean, a tensor of no dimensions; labels are not read."""
        found, expected = (counted(self, value, valid) for value in of_one_shape(self, student, teacher))
        error = mean_of((found - expected).square())
        if self.normalize:
            error = error / mean_of(expected.square()).clamp(min=torch.finfo(expected.dtype).eps)
        return self.weight * error
