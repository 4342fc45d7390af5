"""Small models and data that the tests of training share."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

import fxopt
from fxopt.graph.program import Program
from fxopt.passes.distill import CrossEntropy
from fxopt.training.options import Training
from fxopt.training.schedules import Constant
from fxopt.training.tensors import own_copy


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


def network(p: float = 0.0) -> tuple[nn.Module, Program]:
    """Return a model in training mode, and its Program in inference mode, with weights of their own that agree."""
    torch.manual_seed(0)
    return Network(p).train(), own_copy(captured(p))


@functools.cache
def captured(p: float) -> Program:
    """Capture the model; it takes longer than most tests."""
    torch.manual_seed(0)
    return fxopt.capture(Network(p).eval(), torch.randn(4, 3, 8, 8), dynamic="batch")


def batches(count: int = 6, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Return batches whose classes can be learned: where each image is brightest."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 3, 8, 8, generator=generator)
    labels = torch.randint(5, (count, size), generator=generator)
    images += labels[..., None, None, None].float() - 2
    return list(zip(images, labels, strict=True))


def tensors(model: nn.Module | Program) -> dict[str, Tensor]:
    """Return parameters and statistics by name."""
    module = model.module if isinstance(model, Program) else model
    found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: value for name, value in found.items() if not name.endswith("num_batches_tracked")}


def same_tensors(program: Program, expected: dict[str, Tensor], exactly: bool = True) -> None:
    """Assert that a Program has these tensors: bit by bit, or but for the order of sums."""
    found = tensors(program)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if exactly:
            assert torch.equal(value, expected[name]), name
        else:
            torch.testing.assert_close(value, expected[name], atol=2e-6, rtol=2e-5)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Make an optimizer with a state."""
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def accuracy(model: Any) -> float:
    """Return the share of the samples of batches() that are told right."""
    return float(
        torch.stack([(model(images).argmax(1) == labels).float().mean() for images, labels in batches()]).mean()
    )


def plain(**options: Any) -> Training:
    """Return options without schedule or decay, and with the cross entropy of labels."""
    return Training(**{"task": CrossEntropy(), "optimizer": sgd, "schedule": Constant(), **options})
