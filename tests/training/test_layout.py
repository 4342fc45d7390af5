"""The layout that convolutions are trained in: the fast one, but where its gradients are wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxopt
from fxopt import Program, Training
from fxopt.training.layout import training_layout
from tests.passes.cleanup.checks import program_of


def network(channels: int, kernel: int, stride: int | tuple[int, int]) -> Program:
    def forward(m: Any, x: Tensor) -> Tensor:
        result: Tensor = m.second(m.first(x)).mean((2, 3))
        return result

    torch.manual_seed(0)
    layers = {"first": nn.Conv2d(3, channels, 3, padding=1), "second": nn.Conv2d(channels, 16, kernel, stride)}
    return program_of(forward, torch.randn(2, 3, 16, 16), dynamic="batch", **layers)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "expected"),
    [
        (4, 1, 2, torch.contiguous_format),
        (15, 1, (1, 2), torch.contiguous_format),
        (16, 1, 2, torch.channels_last),
        (4, 1, 1, torch.channels_last),
        (4, 3, 2, torch.channels_last),
    ],
)
def test_one_layer_with_unsafe_gradients_decides_for_all(
    channels: int, kernel: int, stride: int | tuple[int, int], expected: torch.memory_format
) -> None:
    assert training_layout(network(channels, kernel, stride)) is expected


def test_few_channels_behind_a_stride_are_trained_as_torch_trains_them() -> None:
    program = network(4, 1, 2)
    data = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    options = Training(
        task=lambda result, labels, valid: result.square().sum(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        schedule=fxopt.schedules.Constant(),
    )
    trained = fxopt.train(program, [(x, torch.zeros(8)) for x in data], options)
    copies = {name: value.detach().clone().requires_grad_() for name, value in program.module.named_parameters()}
    optimizer = torch.optim.SGD(copies.values(), lr=1e-3)
    for x in data:
        optimizer.zero_grad()
        hidden = nn.functional.conv2d(x, copies["first.weight"], copies["first.bias"], padding=1)
        found = nn.functional.conv2d(hidden, copies["second.weight"], copies["second.bias"], 2).mean((2, 3))
        torch.autograd.backward(found.square().sum())
        optimizer.step()
    for name, value in trained.module.named_parameters():
        torch.testing.assert_close(value, copies[name], rtol=1e-4, atol=1e-6)
