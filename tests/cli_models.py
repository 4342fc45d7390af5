"""Models and data that tests/test_cli.py names on the command line: `cli_models.py:NAME`."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def small() -> tuple[nn.Module, Tensor]:
    """Return a network of two convolutions whose channels have integer kernels, and a batch of one image."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(4, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
    return nn.Sequential(*layers).eval(), torch.randn(1, 4, 16, 16)


def talking() -> tuple[nn.Module, Tensor]:
    """Return the small network, and print something first."""
    print("a factory may print")
    return small()


class Branching(nn.Module):
    """Branches on the value of a tensor, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x or twice x."""
        if x.sum() > 0:
            return x
        return x * 2


def branching() -> tuple[nn.Module, Tensor]:
    """Return a model that torch.export refuses."""
    return Branching(), torch.ones(2, 3)


class Counting(nn.Module):
    """Counts values, with an op that no rule of pruning covers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return a histogram."""
        return torch.histc(self.layer(x), 3, -1.0, 1.0)


def counting() -> tuple[nn.Module, Tensor]:
    """Return a model whose channels all stay."""
    return Counting(), torch.ones(2, 4)


def wrong_example() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a model with two example inputs, of which it takes one."""
    return small()[0], (torch.ones(2, 4, 16, 16), torch.ones(2))


def wrong_shape_example() -> tuple[nn.Module, Tensor]:
    """Return a model with an example input that it cannot run on."""
    return small()[0], torch.ones(2, 5, 16, 16)


def no_example() -> nn.Module:
    """Return a model without example inputs."""
    return small()[0]


def batches() -> Iterator[Tensor]:
    """Yield eight batches of images for calibration."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        yield torch.randn(4, 4, 16, 16, generator=generator)


def no_batches() -> list[Tensor]:
    """Return no calibration data."""
    return []


def misshapen_batches() -> list[Tensor]:
    """Return a good batch and one of another width."""
    return [torch.ones(4, 4, 16, 16), torch.ones(4, 4, 16, 15)]


def undefined_batches() -> list[Tensor]:
    """Return a good batch and one with a NaN in it."""
    bad = torch.ones(4, 4, 16, 16)
    bad[3, 2, 1, 0] = float("nan")
    return [torch.ones(4, 4, 16, 16), bad]


def mean_logit(model: Callable[..., Any]) -> float:
    """Return something to be measured of a model."""
    return float(model(next(batches())).mean())
