"""KLDivergence: a teacher's probabilities of the classes, softened by a temperature.

    L = T^2 mean_i sum_c p_ic log(p_ic / q_ic),  p = softmax(teacher / T),  q = softmax(student / T)

The gradient for the student's logits is T (q - p) / count: T^2 keeps its size, about, whatever the temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, log_softmax

from fxopt.passes.distill.losses.entries import check_positive, class_rows, mean_of

LEAST_VARIANCE = 1e-8  # is added to that of logits to standardize, so that equal ones have finite gradients


@dataclass(frozen=True)
class KLDivergence:
    """Compare logits by the probabilities that they stand for: T^2 times the mean Kullback-Leibler divergence, in nats.

    - `temperature`: what logits are divided by, in both. `weight`: times the loss.
    - `standardize`: bring the logits of each sample to mean 0 and standard deviation 1 first, in both; the student is
      free in their range then. Sun et al. 2024, "Logit Standardization in Knowledge Distillation".

    Logits [batch, ..., classes]; [batch, classes, ...] where labels of that shape show it. The sum is over classes, the
    mean over all else that is valid. Hinton et al. 2015, "Distilling the Knowledge in a Neural Network". Raises
    PassError for options that are not positive, and for two shapes.
    """

    temperature: float = 1.0
    weight: float = 1.0
    standardize: bool = False

    def __post_init__(self) -> None:
        check_positive(self, temperature=self.temperature, weight=self.weight)

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the weighted loss, a tensor of no dimensions; labels only tell which dimension has the classes."""
        student, teacher = class_rows(self, student, teacher, labels, valid)
        if self.standardize:
            student, teacher = _standardized(student), _standardized(teacher)
        divergence = kl_divergence(student / self.temperature, teacher / self.temperature)
        return self.weight * self.temperature**2 * mean_of(divergence)


def kl_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(softmax(teacher) || softmax(student)) over the last dimension, in nats.

    Classes that the teacher excludes (-inf) add nothing, whatever the student says of them.
    """
    expected, found = log_softmax(teacher, -1), log_softmax(student, -1)
    difference = (expected - found).masked_fill(expected == -float("inf"), 0)
    return (expected.exp() * difference).sum(-1)


def _standardized(logits: Tensor) -> Tensor:
    centered = logits - logits.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + LEAST_VARIANCE).sqrt()
