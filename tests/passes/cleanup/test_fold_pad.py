"""FoldPad, case by case as its docstring numbers them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.passes import FoldPad
from tests.conftest import Golden
from tests.passes.cleanup.checks import check, ops, program_of, refuses

fold = FoldPad()
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MAX_POOLS: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}
AVG_POOLS: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}


def image(spatial: int = 2) -> Tensor:
    return torch.randn(2, 4, *[7, 8, 9][:spatial])


@pytest.mark.parametrize("padding", [0, 2, "same", "valid"])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_case_1_conv(spatial: int, padding: int | str) -> None:
    conv = CONVOLUTIONS[spatial](4, 4, 3, padding=padding, groups=2)
    amounts = [1, 1, 2, 2, 0, 0][: 2 * spatial]  # the last dimension comes first
    x = image(spatial)
    result = check(fold, program_of(lambda m, x: m.conv(functional.pad(x, amounts)), x, conv=conv), x)
    assert ops(result) == [f"conv{spatial}d"]


def test_case_1_one_dimension_only() -> None:
    x = image()
    program = program_of(lambda m, x: m.conv(functional.pad(x, [1, 1])), x, conv=nn.Conv2d(4, 4, 3))
    assert ops(check(fold, program, x)) == ["conv2d"]


def test_case_1_two_pads_in_a_row() -> None:
    x = image()
    program = program_of(
        lambda m, x: m.conv(functional.pad(functional.pad(x, [1, 1]), [1] * 4)), x, conv=nn.Conv2d(4, 4, 3)
    )
    assert ops(check(fold, program, x)) == ["conv2d"]


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_case_2_max_pool(spatial: int) -> None:
    x = image(spatial)

    def forward(m: Any, x: Tensor) -> Tensor:
        return MAX_POOLS[spatial](functional.pad(x, [1, 1] * spatial, value=-math.inf), 3, 2)

    assert ops(check(fold, program_of(forward, x), x, bound=0)) == [f"max_pool{spatial}d"]


def test_case_2_max_pool_with_dilation() -> None:
    x = image()

    def forward(m: Any, x: Tensor) -> Tensor:
        return functional.max_pool2d(functional.pad(x, [2] * 4, value=-math.inf), 4, 1, dilation=2)

    assert ops(check(fold, program_of(forward, x), x, bound=0)) == ["max_pool2d"]


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_case_3_avg_pool(spatial: int, counted: bool) -> None:
    x = image(spatial)

    def forward(m: Any, x: Tensor) -> Tensor:
        return AVG_POOLS[spatial](functional.pad(x, [1, 1] * spatial), 3, 2, count_include_pad=counted)

    assert ops(check(fold, program_of(forward, x), x)) == [f"avg_pool{spatial}d"]


def test_case_3_avg_pool_that_pads_and_counts() -> None:
    x = image()

    def forward(m: Any, x: Tensor) -> Tensor:
        return functional.avg_pool2d(functional.pad(x, [1] * 4), 5, 1, padding=1)

    assert ops(check(fold, program_of(forward, x), x)) == ["avg_pool2d"]


def test_case_4_several_readers() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        padded = functional.pad(x, [1] * 4)
        return m.first(padded), m.second(padded), padded.relu()

    x = image()
    program = program_of(forward, x, first=nn.Conv2d(4, 2, 3), second=nn.Conv2d(4, 2, 3, padding=1))
    result = check(fold, program, x)
    assert ops(result) == ["pad", "conv2d", "conv2d", "relu"]
    pads = result.graph.find_nodes(op="call_function", target=torch.ops.aten.pad.default)
    assert [user.target for user in pads[0].users] == [torch.ops.aten.relu.default]


@pytest.mark.parametrize("amounts", [[0, 1, 0, 1], [-1, -1, 1, 1], [1, 1, 1, 1, 1, 1]])
def test_case_5_other_amounts(amounts: list[int]) -> None:
    conv = nn.Conv2d(6 if len(amounts) == 6 else 4, 4, 3)
    refuses(fold, program_of(lambda m, x: m.conv(functional.pad(x, amounts)), image(), conv=conv))


@pytest.mark.parametrize(("mode", "value"), [("reflect", None), ("replicate", None), ("constant", 1.0)])
def test_case_6_other_mode_or_value(mode: str, value: float | None) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.relu(m.conv(functional.pad(x, [1] * 4, mode=mode, value=value)))

    refuses(fold, program_of(forward, image(), conv=nn.Conv2d(4, 4, 3)))


def test_case_6_zeros_before_max_pool() -> None:
    refuses(fold, program_of(lambda m, x: functional.max_pool2d(functional.pad(x, [1] * 4), 3), image()))


def test_case_6_pool_that_does_not_count_its_padding() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return functional.avg_pool2d(functional.pad(x, [1] * 4), 5, padding=1, count_include_pad=False)

    refuses(fold, program_of(forward, image()))


def test_case_7_transposed_conv() -> None:
    conv = nn.ConvTranspose2d(4, 4, 3)
    refuses(fold, program_of(lambda m, x: m.conv(functional.pad(x, [1] * 4)), image(), conv=conv))


@pytest.mark.parametrize("settings", [{"ceil_mode": True}, {"padding": 1}])
def test_case_8_pooling(settings: dict[str, Any]) -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        infinite = functional.pad(x, [1] * 4, value=-math.inf)
        zeros = functional.pad(x, [1] * 4)
        return functional.max_pool2d(infinite, 3, **settings), functional.avg_pool2d(zeros, 3, **settings)

    refuses(fold, program_of(forward, image()))


def test_golden_fold_pad(golden: Golden) -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(functional.pad(x, [3, 3, 2, 2]))
        pooled = functional.max_pool2d(functional.pad(y, [1] * 4, value=-math.inf), 3, 2)
        return pooled, functional.avg_pool2d(functional.pad(y, [0, 1, 0, 1]), 2)

    program = program_of(forward, image(), conv=nn.Conv2d(4, 6, (5, 7), stride=2))
    golden(program, fold(program))
