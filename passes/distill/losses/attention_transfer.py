"""AttentionTransfer: where a student's features are large, not what they are.

map = mean_c feature_c^2, over positions,  L = weight mean (map_s / |map_s| - map_t / |map_t|)^2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fxopt.errors import PassError
from fxopt.passes.distill.losses.directions import directions
from fxopt.passes.distill.losses.entries import at_least_float32, check_positive, fits, samples_of


@dataclass(frozen=True)
class AttentionTransfer:
    """Compare maps of activation: the mean of the squared differences of maps of length 1, over all positions.

    `weight`: times the mean. Features [batch, channels, ...] of four dimensions or more, whose maps run over the rest,
    or [batch, tokens, width], whose maps run over tokens; the channels of student and teacher may differ. Tokens that
    are not valid are no part of a map. A map of zeros stays zero.

    Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", as the authors' code has it, with its weight of
    1000; equation 2 of the paper has half the sum over layers of the norms of the differences. Raises PassError for a
    weight that is not positive, and for maps of two shapes.
    """

    weight: float = 1000.0
    any_width: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(self, weight=self.weight)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted mean, a tensor of no dimensions; labels are not read."""
        dim = 2 if student.ndim == 3 else 1
        shapes = [[size for axis, size in enumerate(value.shape) if axis != dim] for value in (student, teacher)]
        if student.ndim < 3 or shapes[0] != shapes[1]:
            raise PassError(
                f"AttentionTransfer: values {list(student.shape)} and {list(teacher.shape)} have no maps of one shape. "
                "Tap [batch, channels, height, width] or [batch, tokens, width], which may differ in channels or width."
            )
        if valid is not None and valid.ndim > 1 and student.ndim != 3:
            valid = None  # a mask of tokens says nothing of pixels
        found, expected = (self._maps(value, valid, dim) for value in (student, teacher))
        masked = valid is not None and valid.ndim > 1 and fits(self, valid, student)
        positions = int(valid.sum()) if valid is not None and masked else found.numel()
        return self.weight * (found - expected).square().sum() / max(positions, 1)

    def _maps(self, value: Tensor, valid: Tensor | None, dim: int) -> Tensor:
        kept = samples_of(self, at_least_float32(self, value), valid)
        return directions(kept.square().mean(dim).flatten(1))
