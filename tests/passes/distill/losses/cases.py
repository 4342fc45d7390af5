"""Each loss of distillation with values to try it on, and sums in plain Python to hold it against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxopt.passes.distill import (
    AttentionTransfer,
    BinaryCrossEntropy,
    Correlation,
    CosineSimilarity,
    DecoupledKnowledge,
    FeatureHint,
    KLDivergence,
    LogitsMeanSquaredError,
    PairwiseSimilarity,
    Relations,
)

Rows = Sequence[Sequence[float]]

# Every loss that compares [batch, tokens, width]; all but the first also [batch, width].
LOSSES: tuple[Any, ...] = (
    AttentionTransfer(),
    BinaryCrossEntropy(),
    Correlation(temperature=2.0),
    CosineSimilarity(),
    DecoupledKnowledge(),
    FeatureHint(),
    FeatureHint(normalize=True),
    KLDivergence(temperature=3.0),
    KLDivergence(standardize=True),
    LogitsMeanSquaredError(),
    PairwiseSimilarity(),
    Relations(),
)
# Those that are means over samples, so that two halves of a batch give the mean of their losses.
MEANS: tuple[Any, ...] = tuple(
    loss
    for loss in LOSSES
    if not isinstance(loss, Correlation | PairwiseSimilarity | Relations) and not getattr(loss, "normalize", False)
)


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    exponentials = [math.exp(logit / temperature) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def kl(expected: Sequence[float], found: Sequence[float]) -> float:
    """Return the divergence of two lists of probabilities."""
    return sum(p * math.log(p / q) for p, q in zip(expected, found, strict=True))


def gradient(loss: Any, student: Tensor, *rest: Any) -> Tensor:
    """Return the gradient of a loss for its student."""
    student = student.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(student, *rest), student)
    return found


def doubles(*shape: int, seed: int = 0) -> Tensor:
    """Return normal random numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
