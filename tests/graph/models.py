"""Small models that the tests of fxopt/graph share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Function(nn.Module):
    """A model around one function, which gets the module and the inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.linspace(-1, 1, 8))
        self.register_buffer("total", torch.zeros(8))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


class ConvNet(nn.Module):
    """Convolution, batch norm, relu, dropout and a linear: x[N, 3, 8, 8] -> [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        result: Tensor = self.classifier(self.dropout(x).mean((2, 3)))
        return result
