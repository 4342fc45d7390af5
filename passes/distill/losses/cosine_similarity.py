"""CosineSimilarity: embeddings point where the teacher's do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxopt.passes.distill.losses.directions import directions, one_minus_cosine
from fxopt.passes.distill.losses.entries import check_positive, counted, mean_of, of_one_shape


@dataclass(frozen=True)
class CosineSimilarity:
    """Compare directions: the mean of 1 - cosine along the last dimension, over all that is valid.

    `weight`: times the mean. Values [batch, ..., width] of one shape. A vector of zeros has no direction: it counts as
    1/2, or 0 where both are zero, and gets no gradient. Raises PassError for a weight that is not positive, and for
    two shapes.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, weight=self.weight)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted mean, a tensor of no dimensions; labels are not read."""
        values = of_one_shape(self, student, teacher)
        found, expected = (directions(counted(self, value, valid)) for value in values)
        return self.weight * mean_of(one_minus_cosine(found, expected))
