"""CrossEntropy: the loss of a task with one class for each sample, token or pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from fxopt.errors import PassError
from fxopt.passes.distill.losses.entries import check_positive, class_entries, first_tensor, mean_of


@dataclass(frozen=True)
class CrossEntropy:
    """Compare logits with the numbers of the right classes: the mean of -log softmax(logits)[label].

    - `weight`: times the mean. `label_smoothing`: the share of a label that is spread over all classes, 0 to below 1.

    The logits are the first tensor of the model's result, [batch, classes, ...] or [batch, ..., classes]: classes are
    the dimension that the labels lack, the last one if both would do. The mean is over the labels that are 0 or more,
    and valid. Labels are read where they stand: for a model that predicts the next token, shift them. Raises
    PassError for an option out of its range, labels that are missing, of another shape, no integers, or no class.
    """

    weight: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, weight=self.weight)
        if not 0 <= self.label_smoothing < 1:
            raise PassError(f"CrossEntropy(label_smoothing={self.label_smoothing!r}) must be from 0 to below 1.")

    def __call__(self, result: Any, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted mean, a tensor of no dimensions."""
        (logits,), classes = class_entries(self, [first_tensor(self, result)], labels, valid)
        losses = functional.cross_entropy(logits, classes, reduction="none", label_smoothing=self.label_smoothing)
        return self.weight * mean_of(losses)
