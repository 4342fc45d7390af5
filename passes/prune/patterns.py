"""Patterns of masks: which weights go, given a score for each. What a mask has taken before goes first.

All but Magnitude work on any scores of 0 and more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fxopt.errors import PassError
from fxopt.passes.prune.weights import Weight

GONE = -1.0  # below every score

# From weights and scores of their shapes to masks of what stays.
Pattern = Callable[[Sequence[Weight], Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Magnitude:
    """Weights with |w| < `threshold` go (see weight_statistics() for how many those are)."""

    threshold: float

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise PassError(f"Magnitude(threshold={self.threshold}) must be 0 or more.")

    def __call__(self, weights: Sequence[Weight], scores: Sequence[Tensor]) -> list[Tensor]:
        """Return masks of what stays."""
        return [weight.value.detach().abs() >= self.threshold for weight in weights]


@dataclass(frozen=True)
class Sparsity:
    """The `share` of weights with the lowest scores goes, in [0, 1).

    `across`: of each weight tensor ("layer"), of all together ("model"), or of what each output of a layer sums over
    ("output", as in Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models").
    """

    share: float
    across: Literal["output", "layer", "model"] = "layer"

    def __post_init__(self) -> None:
        _check_share("Sparsity", self.share)
        if self.across not in ("output", "layer", "model"):
            raise PassError(f"Sparsity(across='{self.across}') must be 'output', 'layer' or 'model'.")

    def __call__(self, weights: Sequence[Weight], scores: Sequence[Tensor]) -> list[Tensor]:
        """Return masks of what stays."""
        ranked = [_ranked(*pair) for pair in zip(weights, scores, strict=True)]
        if self.across == "output":
            return [self._by_output(*pair) for pair in zip(weights, ranked, strict=True)]
        if self.across == "layer":
            return [_without_lowest(score.flatten(), self.share).reshape(score.shape) for score in ranked]
        stays = _without_lowest(torch.cat([score.flatten() for score in ranked]), self.share)
        parts = torch.split(stays, [score.numel() for score in ranked])
        return [part.reshape(score.shape) for part, score in zip(parts, ranked, strict=True)]

    def _by_output(self, weight: Weight, score: Tensor) -> Tensor:
        rows = weight.layout.rows(score)
        lowest = rows.topk(round(self.share * rows.shape[1]), largest=False).indices
        return weight.layout.restore_rows(torch.ones_like(rows, dtype=torch.bool).scatter(1, lowest, False), score)


@dataclass(frozen=True)
class NofM:
    """Of every `m` neighbours along the inputs, the `n` of the highest scores stay: NofM(2, 4) for sparse tensor cores.

    Neighbours in a convolution are input channels at one position of the kernel, as they lie in memory with channels
    last, [output, *kernel, input]; for a linear layer [output, input]. Inputs beyond the last whole `m` all stay.
    (Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks".)
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise PassError(f"NofM({self.n}, {self.m}): n of every m weights stay, 0 < n < m.")

    def __call__(self, weights: Sequence[Weight], scores: Sequence[Tensor]) -> list[Tensor]:
        """Return masks of what stays."""
        return [self._mask(*pair) for pair in zip(weights, scores, strict=True)]

    def _mask(self, weight: Weight, score: Tensor) -> Tensor:
        matrices = weight.layout.matrices(_ranked(weight, score))
        inputs = matrices.shape[2] // self.m * self.m
        groups = matrices[:, :, :inputs].reshape(*matrices.shape[:2], -1, self.m)
        lowest = groups.topk(self.m - self.n, largest=False).indices
        stays = torch.ones_like(matrices, dtype=torch.bool)
        parts = torch.ones_like(groups, dtype=torch.bool).scatter(3, lowest, False)
        stays[:, :, :inputs] = parts.reshape(*matrices.shape[:2], inputs)
        return weight.layout.restore(stays, score)


@dataclass(frozen=True)
class Blocks:
    """Of each weight's blocks of (outputs, inputs), the `sparsity` with the lowest sums of scores goes, in [0, 1).

    In a convolution a block lies at one position of the kernel. What does not fill a block at the last outputs and
    inputs stays.
    """

    shape: tuple[int, int]
    sparsity: float

    def __post_init__(self) -> None:
        _check_share("Blocks", self.sparsity)
        if min(self.shape) < 1:
            raise PassError(f"Blocks({self.shape}): a block has (outputs, inputs), both 1 or more.")

    def __call__(self, weights: Sequence[Weight], scores: Sequence[Tensor]) -> list[Tensor]:
        """Return masks of what stays."""
        return [self._mask(*pair) for pair in zip(weights, scores, strict=True)]

    def _mask(self, weight: Weight, score: Tensor) -> Tensor:
        matrices = weight.layout.matrices(_ranked(weight, score))
        height, width = self.shape
        rows, columns = matrices.shape[1] // height * height, matrices.shape[2] // width * width
        blocks = matrices[:, :rows, :columns].reshape(len(matrices), rows // height, height, columns // width, width)
        sums = blocks.clamp(min=0).sum((2, 4))  # what is gone adds nothing
        sums = sums.masked_fill((blocks == GONE).all(4).all(2), GONE)
        block_stays = _without_lowest(sums.flatten(), self.sparsity).reshape(sums.shape)
        stays = torch.ones_like(matrices, dtype=torch.bool)
        stays[:, :rows, :columns] = block_stays.repeat_interleave(height, 1).repeat_interleave(width, 2)
        return weight.layout.restore(stays, score)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share < 1:
        raise PassError(f"{name}: {share} is the share to set to zero, from 0 to less than 1.")


def _ranked(weight: Weight, score: Tensor) -> Tensor:
    return score.masked_fill(~weight.mask, GONE)


def _without_lowest(scores: Tensor, share: float) -> Tensor:
    """Return the mask of a vector without the given share of its elements, the lowest ones."""
    count = round(share * scores.numel())
    stays = torch.ones_like(scores, dtype=torch.bool)
    if count:
        stays[torch.from_numpy(np.argpartition(scores.numpy(), count - 1)[:count])] = False
    return stays
