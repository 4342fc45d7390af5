"""Scores from calibration data: how far the outputs, a loss, or the next layers move when a unit goes.

Without a loss no labels are needed: the change of the outputs counts (see gradients.py). With one, the data must hold
what it reads, as in `Taylor(data, lambda outputs, batch: cross_entropy(outputs, batch[1]))`.

A unit goes when the weights that read it become zero; so these count alone. To count those that make it as well would
be to count the same change twice, and something else where an activation or a norm lies between.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxopt.passes.prune.gradients import Loss, batch_gradients, mean_over_batches
from fxopt.passes.prune.input_norms import input_dims, input_second_moments
from fxopt.passes.prune.scores import or_else, over_others, squares
from fxopt.passes.prune.units import Floats, Normalize, Reduction, Units, check_choices


@dataclass(frozen=True)
class Taylor:
    """E[(sum w g)^2] over the weights that read a unit: the squared first-order change of a loss, or of the outputs.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8, for each batch of the data;
    without a loss for each sample, where the batch is dynamic. Units that no layer reads (positions of query and key
    heads) have the sum over all of their weights. `seed`: of the random projections of the outputs. Raises what
    batch_gradients() raises.
    """

    data: Iterable[Any] = field(repr=False)
    loss: Loss | None = field(default=None, repr=False)
    reduction: Reduction = "sum"
    normalize: Normalize = "mean"
    seed: int = 0

    def __call__(self, units: Units) -> Floats:
        """Return the score of each unit."""
        check_choices(self.reduction, self.normalize)
        total, count = np.zeros(len(units)), 0
        for gradients in batch_gradients(units.program, self.data, self.loss, self.seed):
            changes = {name: units.tensors[name].float() * gradient for name, gradient in _of(units, gradients)}
            parts = units.sums(partial(_summed, changes))
            total += np.square(np.nan_to_num(units.reduce(parts, self.reduction, weights="read")))
            count += 1
        return units.normalize(total / max(count, 1), self.normalize)


@dataclass(frozen=True)
class HessianDiagonal:
    """Sum of E[g^2] w^2 / 2 over the weights that read a unit: what a loss or the outputs change by, second order.

    LeCun et al. 1989, "Optimal Brain Damage", equation 5 (the "saliency"), with the diagonal of the Fisher or, without
    a loss, of the Gauss-Newton matrix for that of the Hessian. Otherwise as Taylor.
    """

    data: Iterable[Any] = field(repr=False)
    loss: Loss | None = field(default=None, repr=False)
    reduction: Reduction = "sum"
    normalize: Normalize = "mean"
    seed: int = 0

    def __call__(self, units: Units) -> Floats:
        """Return the score of each unit."""
        check_choices(self.reduction, self.normalize)
        squared = mean_over_batches(
            units.program,
            self.data,
            lambda weight, gradient: (weight.float() * gradient).square() / 2,
            self.loss,
            self.seed,
        )
        parts = units.sums(partial(_summed, squared))
        return units.normalize(np.nan_to_num(units.reduce(parts, self.reduction, weights="read")), self.normalize)


@dataclass(frozen=True)
class ActivationTimesWeight:
    """E[x_j^2] |W_j|^2, the power that a unit j gives to what reads it: W_j are the weights of a reader that it meets.

    After Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models" (Wanda), equation 1, with
    a unit's weights summed. Units that no linear, convolution or matrix product reads are ranked by L2 among their own.
    Raises DataError for data that is empty or does not fit.
    """

    data: Iterable[Any] = field(repr=False)
    reduction: Reduction = "sum"
    normalize: Normalize = "mean"

    def __call__(self, units: Units) -> Floats:
        """Return the score of each unit."""
        check_choices(self.reduction, self.normalize)
        moments = input_second_moments(units.program, self.data)
        power: defaultdict[tuple[str, int], Tensor] = defaultdict(lambda: torch.zeros(()))
        for name, dim in sorted(input_dims(units.program)):
            if name in moments:
                tensor = units.tensors[units.names[name]].float()
                power[units.names[name], dim] = power[units.names[name], dim] + over_others(
                    tensor.square() * moments[name], dim
                )
        found = units.reduce(units.sums(lambda name, dim: power.get((name, dim))), self.reduction)
        return units.normalize(or_else(found, squares(units, "sum", "all")), self.normalize)


def _of(units: Units, values: dict[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    return ((name, values[name]) for name in units.tensors if name in values)


def _summed(values: dict[str, Tensor], name: str, dim: int) -> Tensor | None:
    return over_others(values[name], dim) if name in values else None
