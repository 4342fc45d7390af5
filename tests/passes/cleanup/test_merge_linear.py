"""MergeLinear, case by case as its docstring numbers them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxopt.graph.program import Program
from fxopt.passes import MergeLinear
from tests.conftest import Golden
from tests.passes.cleanup.checks import check, ops, program_of, refuses, tensors

merge = MergeLinear()
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def chain(*modules: nn.Module, x: Tensor) -> Program:
    return program_of(lambda m, x: m.chain(x), x, chain=nn.Sequential(*modules))


def image(spatial: int = 2) -> Tensor:
    return torch.randn(2, 4, *[9, 8, 7][:spatial])


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
def test_case_1_linear(biases: tuple[bool, bool]) -> None:
    x = torch.randn(2, 3, 4)
    result = check(merge, chain(nn.Linear(4, 8, biases[0]), nn.Linear(8, 5, biases[1]), x=x), x)
    assert ops(result) == ["linear"]
    assert tensors(result)["chain.0.weight"].shape == (5, 4)
    assert ("chain.0.bias" in tensors(result)) == any(biases)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, "same"])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_case_2_kernel_1_second(spatial: int, padding: int | str, stride: int) -> None:
    conv = CONVOLUTIONS[spatial]
    first = conv(4, 8, 3, padding=padding, dilation=2, stride=1 if padding == "same" else 2)
    x = image(spatial)
    assert ops(check(merge, chain(first, conv(8, 5, 1, stride=stride), x=x), x)) == [f"conv{spatial}d"]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_case_3_kernel_1_first(spatial: int, stride: int) -> None:
    conv = CONVOLUTIONS[spatial]
    x = image(spatial)
    program = chain(conv(4, 6, 1), conv(6, 5, 3, stride=stride, dilation=2), x=x)
    assert ops(check(merge, program, x)) == [f"conv{spatial}d"]


@pytest.mark.parametrize("padding", [1, "same"])
def test_case_3_padding_without_bias(padding: int | str) -> None:
    x = image()
    program = chain(nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 5, 3, padding=padding), x=x)
    assert ops(check(merge, program, x)) == ["conv2d"]


def test_case_4_three_in_a_row() -> None:
    x = image()
    program = chain(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1), x=x)
    assert ops(check(merge, program, x)) == ["conv2d"]


def test_case_5_bottleneck() -> None:
    refuses(merge, chain(nn.Linear(4, 1), nn.Linear(1, 4), x=torch.randn(2, 4)))
    refuses(merge, chain(nn.Conv2d(4, 1, 3), nn.Conv2d(1, 8, 1), x=image()))
    refuses(merge, chain(nn.Conv2d(4, 1, 1), nn.Conv2d(1, 8, 3), x=image()))


def test_case_5_padding_that_adds_positions() -> None:
    # Merged: fewer parameters, but 9 times the work at the positions that the padding adds.
    wide = nn.Conv2d(3, 8, 3, padding=20, bias=False)
    refuses(merge, chain(nn.Conv2d(4, 3, 1, bias=False), wide, x=image()))


def test_case_6_another_use() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.first(x)
        return m.second(y), y

    refuses(merge, program_of(forward, torch.randn(2, 4), first=nn.Linear(4, 8), second=nn.Linear(8, 4)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1)),
        (nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8)),
        (nn.Conv2d(4, 8, 1, padding=1), nn.Conv2d(8, 2, 3)),
        (nn.Conv2d(4, 8, 1, stride=2), nn.Conv2d(8, 2, 3)),
        (nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 1, padding=1)),
        (nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 3)),
        (nn.ConvTranspose2d(4, 8, 3), nn.Conv2d(8, 2, 1)),
    ],
)
def test_case_7_other_forms(first: nn.Module, second: nn.Module) -> None:
    refuses(merge, chain(first, second, x=image()))


def test_case_8_padding_with_bias() -> None:
    refuses(merge, chain(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3, padding=1), x=image()))


def test_a_weight_that_both_layers_share() -> None:
    layer = nn.Linear(4, 4)
    x = torch.randn(2, 4)
    result = check(merge, chain(layer, layer, nn.ReLU(), layer, x=x), x)
    assert ops(result) == ["linear", "relu", "linear"]
    assert torch.equal(tensors(result)["chain.3.weight"], layer.weight)


def test_golden_merge_linear(golden: Golden) -> None:
    x = image()
    head = (nn.Flatten(2), nn.Linear(64, 32), nn.Linear(32, 3, bias=False))
    program = chain(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 6, 1, stride=2), nn.ReLU(), x=x)
    golden(program, merge(program))
    assert ops(merge(chain(nn.AdaptiveAvgPool2d(8), *head, x=x))) == ["adaptive_avg_pool2d", "flatten", "linear"]
