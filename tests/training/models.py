"""Small models and data that the tests of training share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fxopt
from fxopt.graph.program import Program


class Network(nn.Module):
    """Convolution, batch norm, relu, dropout of `p` and a linear: x[batch, 3, 8, 8] -> [batch, 5]."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(p)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.dropout(torch.relu(self.norm(self.conv(x)))).mean((2, 3)))


def network(p: float = 0.0, **members: Any) -> tuple[nn.Module, Program]:
    """Return a model and its Program, with the same weights, in inference mode."""
    torch.manual_seed(0)
    model = Network(p)
    return model.train(), fxopt.capture(model.eval(), torch.randn(4, 3, 8, 8), dynamic="batch")


def batches(count: int = 6, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Return batches whose classes can be learned: where each image is brightest."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 3, 8, 8, generator=generator)
    labels = torch.randint(5, (count, size), generator=generator)
    images += labels[..., None, None, None].float() - 2
    return list(zip(images, labels, strict=True))
