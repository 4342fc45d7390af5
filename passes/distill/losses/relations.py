"""Relations: the distances and angles among the samples of a batch (RKD)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fxopt.passes.distill.losses.directions import directions, over
from fxopt.passes.distill.losses.entries import check_parts, check_positive, embeddings, mean_of


@dataclass(frozen=True)
class Relations:
    """Compare distances of pairs and angles of triplets of samples, by the smooth L1 loss (Huber's, with delta 1).

    - `distance`: weight of the mean over pairs; the distances of a batch are divided by their own mean.
    - `angle`: weight of the mean over triplets (i, j, k), of the cosine of the angle at j.
    - `weight`: times both.

    Embeddings [batch, ...], flattened; their widths may differ, their batch may not. Positions that are not valid are
    left out of them. A pair is two samples, a triplet three: fewer samples give 0. It holds batch^2 width and batch^3
    numbers, and multiplies batch^3 width times. Park et al. 2019, "Relational Knowledge Distillation" (RKD), with means
    for sums. Raises PassError for options out of their range, and for two batches.
    """

    distance: float = 25.0
    angle: float = 50.0
    weight: float = 1.0
    any_width: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_parts(self, distance=self.distance, angle=self.angle)
        check_positive(self, weight=self.weight)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted sum of the two means, a tensor of no dimensions; labels are not read."""
        found, expected = embeddings(self, student, teacher, valid)
        loss = torch.zeros_like(found).sum()
        with torch.autocast(student.device.type, enabled=False):
            if self.distance:
                loss = loss + self.distance * mean_of(_errors(_distances(found), _distances(expected)))
            if self.angle:
                loss = loss + self.angle * _mean_over_triplets(_errors(_angles(found), _angles(expected)))
        return self.weight * loss


def _errors(found: Tensor, expected: Tensor) -> Tensor:
    return functional.smooth_l1_loss(found, expected, reduction="none")


def _distances(samples: Tensor) -> Tensor:
    """Return the distances of all pairs over their mean, [batch * (batch - 1)]."""
    pairs = ~torch.eye(len(samples), dtype=torch.bool, device=samples.device)
    lengths = torch.linalg.vector_norm(samples[:, None] - samples, dim=-1)[pairs]
    return over(lengths, mean_of(lengths))


def _angles(samples: Tensor) -> Tensor:
    """Return the cosines [j, i, k] of the angles at j between the ways to i and to k; 0 where two samples are equal."""
    unit = directions(samples - samples[:, None])
    return unit @ unit.mT


def _mean_over_triplets(errors: Tensor) -> Tensor:
    """Return the mean of errors [j, i, k] where the three differ; they are 0 where i or k is j."""
    count = len(errors)
    same = torch.eye(count, dtype=torch.bool, device=errors.device)
    return errors.masked_fill(same, 0).sum() / max(count * (count - 1) * (count - 2), 1)
