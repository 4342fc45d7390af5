"""The optimizer that is used where none is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

NamedParameters = Iterable[tuple[str, nn.Parameter]]
MakeOptimizer = Callable[[NamedParameters], Optimizer]


@dataclass(frozen=True)
class AdamW:
    """torch.optim.AdamW, with weight decay on matrices and kernels only.

    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization". Parameters of fewer than two dimensions
    (biases, scales of norms, steps of quantization) do not decay: zero is nothing special for them.
    """

    rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)

    def __call__(self, parameters: NamedParameters) -> Optimizer:
        """Return the optimizer of these parameters."""
        named = list(parameters)
        groups: list[dict[str, Any]] = [
            {"params": [pair for pair in named if pair[1].ndim >= 2]},
            {"params": [pair for pair in named if pair[1].ndim < 2], "weight_decay": 0.0},
        ]
        filled = [group for group in groups if group["params"]]
        return torch.optim.AdamW(filled, lr=self.rate, betas=self.betas, weight_decay=self.weight_decay)
