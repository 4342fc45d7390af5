"""DecoupledKnowledge: what a teacher says of the right class, and what it says of the others, weighted apart.

    KL = TCKD + (1 - p_y) NCKD

TCKD is the divergence of [p_y, 1 - p_y], NCKD that of the probabilities among the classes that are not the label y. In
KL, NCKD counts the less the surer the teacher is; here it keeps a weight of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxopt.errors import PassError
from fxopt.passes.distill.losses.entries import check_parts, check_positive, class_entries, mean_of, of_one_shape
from fxopt.passes.distill.losses.kl_divergence import kl_divergence


@dataclass(frozen=True)
class DecoupledKnowledge:
    """Compare logits, the target's class apart from the others: T^2 (target_weight TCKD + other_weight NCKD).

    - `target_weight`, `other_weight`: of the two parts. The paper has 1 and 8 for CIFAR-100; for ImageNet 1 and 0.5
      with temperature 1. It raises the weight of the loss from 0 in the first 20 epochs.
    - `temperature`: what logits are divided by, in both. `weight`: times the loss.

    Logits and labels are those of CrossEntropy; the mean is over the same entries. Zhao et al. 2022, "Decoupled
    Knowledge Distillation" (DKD). Raises PassError for options out of their range, two shapes, fewer than
    two classes, and labels as CrossEntropy does.
    """

    target_weight: float = 1.0
    other_weight: float = 8.0
    temperature: float = 4.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_parts(self, target_weight=self.target_weight, other_weight=self.other_weight)
        check_positive(self, temperature=self.temperature, weight=self.weight)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted loss, a tensor of no dimensions."""
        values, classes = class_entries(self, of_one_shape(self, student, teacher), labels, valid)
        if values[0].shape[-1] < 2:
            raise PassError("DecoupledKnowledge needs two classes or more; the logits have one.")
        parts = [_parts(value / self.temperature, classes.unsqueeze(-1)) for value in values]
        (student_target, student_others), (teacher_target, teacher_others) = parts
        loss = self.target_weight * kl_divergence(student_target, teacher_target)
        loss = loss + self.other_weight * kl_divergence(student_others, teacher_others)
        return self.weight * self.temperature**2 * mean_of(loss)


def _parts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits of [target, not target], and those of all classes with the target excluded."""
    others = logits.scatter(-1, target, -float("inf"))
    return torch.cat([logits.gather(-1, target), others.logsumexp(-1, keepdim=True)], -1), others
