"""RecognizeLinear, case by case as its docstring numbers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.passes import CLEANUP, RecognizeLinear
from tests.conftest import Golden
from tests.passes.cleanup.checks import check, ops, program_of, refuses, tensors

turn = RecognizeLinear()
Function = Callable[[Any, Tensor], Any]


def matrix(rows: int = 4, columns: int = 6) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns))


def image(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 4)))


def of(function: Function, x: Tensor, **members: Any) -> Program:
    return program_of(function, x, dynamic="batch", **members)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda m, x: x @ m.w, (2, 3, 4)),
        (lambda m, x: torch.mm(x, m.w), (2, 4)),
        (lambda m, x: torch.matmul(x, m.w), (2, 1, 3, 4)),
    ],
)
def test_case_1_product(function: Function, shape: tuple[int, ...]) -> None:
    x, w = torch.randn(shape), matrix()
    result = check(turn, of(function, x, w=w), x)
    assert ops(result) == ["linear"]
    weight = tensors(result)["w_transposed"]
    assert isinstance(weight, nn.Parameter) and weight.data_ptr() == w.data_ptr() and weight.shape == (6, 4)


def test_case_1_one_weight_for_all_products_with_a_matrix() -> None:
    x = image()
    program = of(lambda m, x: (x @ m.w, (x + 1) @ m.w), x, w=matrix())
    assert list(tensors(check(turn, program, x))) == ["w_transposed"]


@pytest.mark.parametrize(
    "turn_back", [lambda w: w.transpose(0, 0), lambda w: w.permute(0, 1), lambda w: w.permute(-2, 1)]
)
def test_case_3_a_square_matrix_that_is_not_turned(turn_back: Callable[[Tensor], Tensor]) -> None:
    x = image()
    check(Pipeline(CLEANUP), of(lambda m, x: x @ turn_back(m.w), x, w=matrix(4, 4)), x)


def test_case_2_bias() -> None:
    x = torch.randn(3, 4)
    result = check(turn, of(lambda m, x: torch.addmm(m.b, x, m.w), x, w=matrix(), b=nn.Parameter(torch.randn(6))), x)
    assert ops(result) == ["linear"] and set(tensors(result)) == {"w_transposed", "b"}


@pytest.mark.parametrize(
    "transpose",
    [
        lambda w: w.t(),
        lambda w: w.T,
        lambda w: w.mT,
        lambda w: w.transpose(-1, -2),
        lambda w: w.transpose(0, -1),
        lambda w: w.permute(1, 0),
        lambda w: w.permute(-1, 0),
    ],
)
def test_case_3_a_tied_matrix_stays_tied(transpose: Callable[[Tensor], Tensor]) -> None:
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    program = of(lambda m, x: nn.functional.embedding(x, m.w) @ transpose(m.w), tokens, w=matrix(9, 4))
    result = check(turn, program, tokens)
    assert ops(result) == ["embedding", "linear"] and list(tensors(result)) == ["w"]
    assert ops(Pipeline(CLEANUP)(program)) == ["embedding", "linear"]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x @ x.transpose(1, 2),
        lambda m, x: x @ m.batch,
        lambda m, x: m.w.t() @ x.transpose(1, 2),
        lambda m, x: (x * 10).long() @ m.integers,
        lambda m, x: x[0, 0] @ m.w,
    ],
    ids=["computed", "several matrices", "on the left", "integers", "a vector"],
)
def test_case_4_other_products(function: Function) -> None:
    members: dict[str, Any] = {
        "w": matrix(),
        "batch": torch.randn(1, 4, 6),
        "integers": torch.ones(4, 6, dtype=torch.int64),
    }
    refuses(turn, program_of(function, image(), **members))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: torch.addmm(m.b, x, m.w, alpha=2),
        lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5),
        lambda m, x: torch.addmm(m.one, x, m.w),
        lambda m, x: torch.addmm(x[:, :1], x, m.w),
    ],
    ids=["alpha", "beta", "one number", "computed"],
)
def test_case_5_other_sums(function: Function) -> None:
    refuses(turn, program_of(function, image(3, 4), w=matrix(), b=torch.randn(6), one=torch.randn(1)))


def test_a_product_and_a_sum_become_one_layer() -> None:
    x = image()
    program = of(lambda m, x: x @ m.w + m.b, x, w=matrix(), b=nn.Parameter(torch.randn(6)))
    assert ops(Pipeline(CLEANUP)(program)) == ["linear"]


def test_golden_recognize_linear(golden: Golden) -> None:
    def net(m: Any, x: Tensor) -> Any:
        rows = torch.addmm(m.bias, x.flatten(0, 1), m.first)
        return (rows @ m.second.t()).view(x.shape)

    program = of(net, image(), first=matrix(), second=matrix(4, 6), bias=nn.Parameter(torch.randn(6)))
    golden(program, turn(program))
