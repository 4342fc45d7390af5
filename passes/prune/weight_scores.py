"""WEIGHT_SCORES: how much each single weight matters; 0 and more, the lowest go first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.passes.prune.fold_masks import FoldMasks
from fxopt.passes.prune.gradients import Loss, mean_over_batches
from fxopt.passes.prune.input_norms import input_second_moments
from fxopt.passes.prune.weights import Weight


@dataclass(frozen=True)
class ScoreOptions:
    """What scores may need: calibration data, a loss(outputs, batch), and the seed of what is random."""

    data: Iterable[Any] | None = None
    loss: Loss | None = None
    seed: int = 0


WeightScore = Callable[[Program, Sequence[Weight], ScoreOptions], list[Tensor]]


def weight_scores(program: Program, weights: Sequence[Weight], score: str, options: ScoreOptions) -> list[Tensor]:
    """Return the score of every weight, one tensor of its shape each, float32.

    Raises PassError for a score that does not exist, for one whose data is missing, and for weights it cannot tell of.
    """
    if score not in WEIGHT_SCORES:
        raise PassError(f"There is no score '{score}' of weights. Choose one of {', '.join(WEIGHT_SCORES)}.")
    if score in WITH_DATA and options.data is None:
        raise PassError(f"The score '{score}' needs calibration data: MaskWeights(..., score='{score}', data=batches).")
    return WEIGHT_SCORES[score](program, weights, options)


def _magnitude(program: Program, weights: Sequence[Weight], options: ScoreOptions) -> list[Tensor]:
    return [weight.value.detach().float().abs() for weight in weights]


def _taylor(program: Program, weights: Sequence[Weight], options: ScoreOptions) -> list[Tensor]:
    """|w g|: to first order, how far the loss moves without the weight (Molchanov et al. 2017); mean over batches."""
    assert options.data is not None
    plain = FoldMasks()(program)
    found = mean_over_batches(plain, options.data, lambda w, g: (w * g).abs(), options.loss, options.seed)
    return [found[weight.name].float() for weight in weights]


def _wanda(program: Program, weights: Sequence[Weight], options: ScoreOptions) -> list[Tensor]:
    """|w| ||x||: the magnitude times the norm of what it multiplies (Sun et al. 2023)."""
    assert options.data is not None
    moments = input_second_moments(FoldMasks()(program), options.data)
    if missing := [weight.name for weight in weights if weight.name not in moments]:
        raise PassError(
            f"The score 'wanda' knows linear layers, convolutions and products of matrices, not what reads "
            f"{', '.join(missing[:8])}. Choose another score, or name these in MaskWeights(keep=...)."
        )
    return [weight.value.detach().float().abs() * moments[weight.name].sqrt() for weight in weights]


def _random(program: Program, weights: Sequence[Weight], options: ScoreOptions) -> list[Tensor]:
    generator = torch.Generator().manual_seed(options.seed)
    return [torch.rand(weight.value.shape, generator=generator) for weight in weights]


WEIGHT_SCORES: dict[str, WeightScore] = {
    "magnitude": _magnitude,
    "taylor": _taylor,
    "wanda": _wanda,
    "random": _random,
}
WITH_DATA = ("taylor", "wanda")
