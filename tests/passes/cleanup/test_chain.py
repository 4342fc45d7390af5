"""CLEANUP as a whole: what the passes do for each other, and that the order matters where the table says so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.graph.pipeline import Pipeline
from fxopt.passes import CLEANUP
from tests.conftest import Golden
from tests.passes.cleanup.checks import assert_same_outputs, check, ops, program_of, tensors
from tests.passes.cleanup.test_fold_batch_norm import norm

chain = Pipeline(CLEANUP)


def image() -> Tensor:
    return torch.randn(2, 4, 6, 6)


def test_a_scale_on_either_side_of_batch_norm() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.add(m.bn(m.conv(x) * m.gamma) * 2, 1)

    gamma = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
    program = program_of(forward, image(), conv=nn.Conv2d(4, 6, 3), bn=norm(6), gamma=gamma)
    assert ops(check(chain, program, image())) == ["conv2d"]


def test_a_computed_weight_is_folded_first() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        weight = m.conv.weight / m.conv.weight.flatten(1).norm(dim=1)[:, None, None, None]
        return torch.relu(m.bn(functional.conv2d(x, weight)))

    result = check(chain, program_of(forward, image(), conv=nn.Conv2d(4, 6, 3), bn=norm(6)), image())
    assert ops(result) == ["conv2d", "relu"]
    assert set(tensors(result)) == {"conv.weight", "conv.bias"}
    assert all(isinstance(value, nn.Parameter) for value in tensors(result).values())


def test_weight_norm() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3))
    result = check(chain, program_of(lambda m, x: m.conv(x), image(), conv=conv), image())
    assert ops(result) == ["conv2d"]
    assert all(isinstance(value, nn.Parameter) for value in tensors(result).values())


def test_pad_and_batch_norm_before_a_conv() -> None:
    program = program_of(
        lambda m, x: m.conv(m.bn(functional.pad(x, [1] * 4))), image(), conv=nn.Conv2d(4, 6, 3), bn=norm(4)
    )
    assert ops(check(chain, program, image())) == ["conv2d"]


def test_flatten_around_batch_norm() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.first(x)
        return torch.relu(m.second(m.bn(y.flatten(0, 1)).reshape_as(y)))

    x = torch.randn(2, 5, 4)
    first, second = nn.Linear(4, 6), nn.Linear(6, 3)
    program = program_of(forward, x, dynamic="batch", bn=norm(6, 0), first=first, second=second)
    assert ops(check(chain, program, torch.randn(3, 5, 4))) == ["linear", "relu"]


def test_gradients_reach_the_folded_parameters() -> None:
    program = program_of(lambda m, x: m.bn(m.conv(x)).relu(), image(), conv=nn.Conv2d(4, 6, 3), bn=norm(6))
    result = chain(program)
    result.module(image())[0].sum().backward()
    assert {name for name, value in tensors(result).items() if value.grad is not None} == {"conv.weight", "conv.bias"}


def test_golden_cleanup(golden: Golden) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.bn1 = nn.Conv2d(4, 8, 1, bias=False), norm(8)
            self.depthwise, self.bn2 = nn.Conv2d(8, 8, 3, groups=8, bias=False), norm(8)
            self.project, self.bn3 = nn.Conv2d(8, 4, 1, bias=False), norm(4)
            self.scale = nn.Parameter(torch.rand(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.bn1(self.expand(x)))
            y = torch.relu(self.bn2(self.depthwise(functional.pad(y, [1] * 4))))
            return functional.dropout(self.bn3(self.project(y)) * self.scale, 0.2, self.training) + x

    program = program_of(lambda m, x: m.block(x), image(), dynamic="batch", block=Block())
    after = chain(program)
    assert_same_outputs(program, after, (image(),), 1e-5)
    golden(program, after)
