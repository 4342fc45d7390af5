"""Mean squared errors: MeanSquaredError of a task's numbers, LogitsMeanSquaredError of a teacher's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxopt.errors import PassError
from fxopt.passes.distill.losses.entries import (
    at_least_float32,
    check_positive,
    counted,
    first_tensor,
    mean_of,
    of_one_shape,
)


@dataclass(frozen=True)
class MeanSquaredError:
    """Compare the first tensor of the model's result with labels that are numbers: the mean of (result - label)^2.

    `weight`: times the mean. The labels have the shape of the result, or lack its last dimension of size 1. A mask of
    tokens applies where the labels begin with its dimensions. Raises PassError for a weight that is not positive, and
    for labels that are missing or of another shape.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, weight=self.weight)

    def __call__(self, result: Any, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted mean, a tensor of no dimensions."""
        value = first_tensor(self, result)
        if labels is None:
            raise PassError("MeanSquaredError needs labels, and the item has none; give items (inputs..., labels).")
        if value.shape == (*labels.shape, 1):
            value = value.squeeze(-1)
        if value.shape != labels.shape:
            raise PassError(
                f"MeanSquaredError: the result is {list(value.shape)}, the labels {list(labels.shape)}; "
                "give labels of the result's shape."
            )
        numbers = labels if labels.is_floating_point() else labels.float()
        errors = value - at_least_float32(self, numbers)
        return self.weight * mean_of(counted(self, errors.unsqueeze(-1), valid).square())


@dataclass(frozen=True)
class LogitsMeanSquaredError:
    """Compare logits as they are: the mean of (student - teacher)^2 over classes and what is valid.

    `weight`: times the mean. Values [batch, ...] of one shape. For logits of mean 0, KLDivergence tends to half of it
    as its temperature grows, with weights of one number. Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?";
    Kim et al. 2021, "Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
    Distillation", which sums over the classes. Raises PassError for a weight that is not positive, and for two shapes.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, weight=self.weight)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted mean, a tensor of no dimensions; labels are not read."""
        found, expected = (counted(self, value, valid) for value in of_one_shape(self, student, teacher))
        return self.weight * mean_of((found - expected).square())
