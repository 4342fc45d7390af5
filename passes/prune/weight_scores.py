"""WEIGHT_SCORES: how much each single weight matters, one row a kind of score; 0 and more, the lowest go first.

The scores are those of units (scores.py, data_scores.py) for weights by themselves; what those say of reduction and
normalization is about units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.passes.prune.data_scores import ActivationTimesWeight, HessianDiagonal, Taylor
from fxopt.passes.prune.fold_masks import FoldMasks
from fxopt.passes.prune.gradients import mean_over_batches
from fxopt.passes.prune.input_norms import input_second_moments
from fxopt.passes.prune.scores import L1, L2, Lamp, Random
from fxopt.passes.prune.weights import Weight

WeightScore = Callable[[Any, Program, Sequence[Weight]], list[Tensor]]


def weight_scores(program: Program, weights: Sequence[Weight], score: object) -> list[Tensor]:
    """Return the score of every weight, one tensor of its shape each, float32.

    Raises PassError for a score that says nothing of single weights, and for weights that it knows nothing of.
    """
    kind = WEIGHT_SCORES.get(type(score))
    if kind is None:
        known = ", ".join(row.__name__ for row in WEIGHT_SCORES)
        raise PassError(f"score={score!r} says nothing of single weights. Choose one of {known}.")
    return [found.float() for found in kind(score, program, weights)]


def _magnitudes(score: L1, program: Program, weights: Sequence[Weight]) -> list[Tensor]:
    return [weight.value.detach().float().abs() for weight in weights]


def _squares(score: L2, program: Program, weights: Sequence[Weight]) -> list[Tensor]:
    return [weight.value.detach().float().square() for weight in weights]


def _taylor(score: Taylor, program: Program, weights: Sequence[Weight]) -> list[Tensor]:
    """|w g|: to first order, how far the loss moves without the weight; the mean over batches."""
    return _mean(score, program, weights, lambda weight, gradient: (weight * gradient).abs())


def _hessian(score: HessianDiagonal, program: Program, weights: Sequence[Weight]) -> list[Tensor]:
    """w^2 E[g^2] / 2 (LeCun et al. 1989, "Optimal Brain Damage", equation 5)."""
    return _mean(score, program, weights, lambda weight, gradient: (weight * gradient).square() / 2)


def _mean(
    score: Taylor | HessianDiagonal,
    program: Program,
    weights: Sequence[Weight],
    of: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:
    found = mean_over_batches(FoldMasks()(program), score.data, of, score.loss, score.seed)
    return [found[weight.name] for weight in weights]


def _wanda(score: ActivationTimesWeight, program: Program, weights: Sequence[Weight]) -> list[Tensor]:
    """|w| ||x||: the magnitude times the norm of what it multiplies (Sun et al. 2023, equation 1)."""
    moments = input_second_moments(FoldMasks()(program), score.data)
    if missing := [weight.name for weight in weights if weight.name not in moments]:
        raise PassError(
            "ActivationTimesWeight knows linear layers, convolutions and products of matrices, not what reads "
            f"{', '.join(missing[:8])}. Choose another score, or name these in MaskWeights(keep=...)."
        )
    return [weight.value.detach().float().abs() * moments[weight.name].sqrt() for weight in weights]


def _lamp(score: Lamp, program: Program, weights: Sequence[Weight]) -> list[Tensor]:
    """w^2 over the squares of all weights of the layer that are not smaller (Lee et al. 2021, equation 4)."""
    results = []
    for weight in weights:
        squares = (weight.value.detach().double() * weight.mask).square().flatten()
        order = squares.argsort(descending=True, stable=True)
        left = squares[order].cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
        results.append(squares.scatter(0, order, squares[order] / left).reshape(weight.value.shape))
    return results


def _random(score: Random, program: Program, weights: Sequence[Weight]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(score.seed)
    return [torch.rand(weight.value.shape, generator=generator) for weight in weights]


WEIGHT_SCORES: dict[type, WeightScore] = {
    L2: _squares,
    L1: _magnitudes,
    Taylor: _taylor,
    HessianDiagonal: _hessian,
    ActivationTimesWeight: _wanda,
    Lamp: _lamp,
    Random: _random,
}
