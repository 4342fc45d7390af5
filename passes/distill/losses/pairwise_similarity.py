"""PairwiseSimilarity: samples that are alike for the teacher are alike for the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxopt.passes.distill.losses.directions import directions
from fxopt.passes.distill.losses.entries import check_positive, embeddings, mean_of


@dataclass(frozen=True)
class PairwiseSimilarity:
    """Compare the cosines between the samples of a batch: the mean of (cosine_s - cosine_t)^2 over all b^2 pairs.

    `weight`: times the mean. Embeddings [batch, ...], flattened; their widths may differ, their batch may not.
    Positions that are not valid are left out of them. After Tung and Mori 2019, "Similarity-Preserving Knowledge
    Distillation", which brings rows of inner products to length 1, where here embeddings are. Raises
    PassError for a weight that is not positive, and for two batches.
    """

    weight: float = 1.0
    any_width: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(self, weight=self.weight)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted mean, a tensor of no dimensions; labels are not read."""
        found, expected = (directions(value) for value in embeddings(self, student, teacher, valid))
        with torch.autocast(student.device.type, enabled=False):
            return self.weight * mean_of((found @ found.T - expected @ expected.T).square())
