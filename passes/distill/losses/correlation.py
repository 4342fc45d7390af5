"""Correlation: a student keeps the teacher's relations among probabilities, not the probabilities themselves (DIST)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, softmax

from fxopt.passes.distill.losses.directions import directions, one_minus_cosine
from fxopt.passes.distill.losses.entries import check_parts, check_positive, class_rows, mean_of

ROUNDING = 16  # in units of the last place: what is left of a constant when its mean is subtracted


@dataclass(frozen=True)
class Correlation:
    """Compare logits by Pearson's correlation r of probabilities: T^2 times the mean of 1 - r (DIST).

    - `class_weight`: of the mean over samples, r among the classes of each.
    - `sample_weight`: of the mean over classes, r among the samples (and tokens) of the batch for each.
    - `temperature`: what logits are divided by, in both.

    Logits [batch, ..., classes]; [batch, classes, ...] where labels of that shape show it. What is constant correlates
    with nothing: it counts as 1/2, or 0 where both are, and gets no gradient. Huang et al. 2022, "Knowledge
    Distillation from A Stronger Teacher". Raises PassError for options out of their range, and for
    two shapes.
    """

    class_weight: float = 1.0
    sample_weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_parts(self, class_weight=self.class_weight, sample_weight=self.sample_weight)
        check_positive(self, temperature=self.temperature)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted loss, a tensor of no dimensions; labels only tell which dimension has the classes."""
        rows = class_rows(self, student, teacher, labels, valid)
        found, expected = (softmax(value / self.temperature, -1) for value in rows)
        among_classes = mean_of(_one_minus_correlation(found, expected))
        among_samples = mean_of(_one_minus_correlation(found.T, expected.T))
        return self.temperature**2 * (self.class_weight * among_classes + self.sample_weight * among_samples)


def _one_minus_correlation(left: Tensor, right: Tensor) -> Tensor:
    return one_minus_cosine(directions(_centered(left)), directions(_centered(right)))


def _centered(values: Tensor) -> Tensor:
    centered = values - values.sum(-1, keepdim=True) / max(values.shape[-1], 1)
    rounding = ROUNDING * torch.finfo(values.dtype).eps * values.abs().amax(-1, keepdim=True) if values.numel() else 0
    return centered.masked_fill((centered.abs() <= rounding).all(-1, keepdim=True), 0)
