"""FoldConstants, case by case as its docstring numbers them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxopt.graph.ops import dequantize
from fxopt.graph.rewrite import Edit
from fxopt.passes import EliminateDeadCode, FoldConstants
from tests.conftest import Golden
from tests.passes.cleanup.checks import check, ops, program_of, refuses, tensors

fold = FoldConstants()
X = torch.randn(2, 8)


def test_case_1_tensors_and_numbers() -> None:
    program = program_of(lambda m, x: x + (torch.sin(m.scale) * 2 + m.scale.flip(0)), X, scale=torch.randn(8))
    result = check(fold, program, X, bound=0)
    assert ops(result) == ["add"]
    assert list(tensors(result)) == ["scale"]


def test_case_1_several_results() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = (m.table + 1).split(4)
        return torch.cat([x[:, :4] + a, x[:, 4:] * b], 1)

    result = check(fold, program_of(forward, X, table=torch.randn(8)), X, bound=0)
    assert ops(result) == ["slice", "add", "slice", "mul", "cat"]
    assert len(tensors(result)) == 2


@pytest.mark.parametrize(
    ("name", "create"),
    [
        ("arange", lambda x: torch.arange(8)),
        ("zeros", lambda x: torch.zeros(8)),
        ("full", lambda x: torch.full((2, 1), 3.0)),
        ("eye", lambda x: torch.eye(8)[:2]),
        ("ones_like", lambda x: torch.ones_like(x)),
        ("full_like", lambda x: torch.full_like(x, 3, dtype=torch.int64)),
        ("new_ones", lambda x: x.new_ones(8)),
        ("new_full", lambda x: x.new_full((1,), 2.5)),
    ],
)
def test_case_2_created(name: str, create: Any) -> None:
    result = check(fold, program_of(lambda m, x: x * create(x), X), X, bound=0)
    assert ops(result) == ["mul"]


def test_case_3_fixed_size() -> None:
    program = program_of(lambda m, x: x * 2, X)
    edit = Edit(program, by=None)
    (node,) = edit.calls(torch.ops.aten.mul.Tensor)
    size = edit.call(torch.ops.aten.sym_size.int, node.args[0], 1, before=node)
    edit.update(node, args=(node.args[0], size))
    with_size = edit.finish()
    assert ops(with_size) == ["sym_size", "mul"]
    result = check(fold, with_size, X, bound=0)
    assert ops(result) == ["mul"]
    assert torch.equal(result.module(X)[0], X * 8)


def test_case_4_parameters() -> None:
    weight = nn.Parameter(torch.randn(8, 3), requires_grad=True)
    program = program_of(lambda m, x: nn.functional.linear(x, m.weight.t() * 2), X, weight=weight)
    result = check(fold, program, X)  # another layout of the weight: the sums run in another order
    assert ops(result) == ["linear"]
    (folded,) = tensors(result).items()
    assert folded[0] == "weight"
    assert isinstance(folded[1], nn.Parameter)
    assert folded[1].requires_grad
    assert torch.equal(folded[1], weight.t() * 2)


def test_case_4_name_in_use() -> None:
    program = program_of(lambda m, x: x * m.weight + m.weight.sin(), X, weight=nn.Parameter(torch.randn(8)))
    assert list(tensors(check(fold, program, X, bound=0))) == ["weight", "weight_1"]


def test_case_4_integers_from_a_parameter_are_a_buffer() -> None:
    program = program_of(lambda m, x: x * m.weight.argsort(), X, weight=nn.Parameter(torch.randn(8)))
    assert not isinstance(tensors(check(fold, program, X, bound=0))["weight"], nn.Parameter)


def test_case_5_a_large_expansion_stays() -> None:
    x = torch.randn(600, 600)
    large = program_of(lambda m, x: x + (m.row + 1).expand(600, 600).cos(), x, row=torch.randn(600))
    result = check(fold, large, x, bound=0)
    assert ops(result) == ["expand", "cos", "add"]  # only row + 1 is computed
    assert sum(t.numel() for t in tensors(result).values()) == 600
    refuses(fold, program_of(lambda m, x: x + torch.zeros(600, 600), x))


def test_case_5_a_small_expansion_is_folded() -> None:
    result = check(fold, program_of(lambda m, x: x + m.row.expand(2, 8).cos(), X, row=torch.randn(8)), X, bound=0)
    assert ops(result) == ["add"]


def test_case_6_a_large_tensor_that_stays_in_use() -> None:
    indices = torch.arange(4)
    table = nn.Parameter(torch.randn(600, 600))

    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.matmul(nn.functional.embedding(x, m.table), m.table.t())

    refuses(fold, program_of(forward, indices, table=table))


def test_case_7_an_expanded_parameter() -> None:
    token = nn.Parameter(torch.randn(1, 4))
    refuses(fold, program_of(lambda m, x: torch.cat([x, m.token.expand(2, -1)], 1), X, token=token))


def test_case_8_random() -> None:
    refuses(fold, program_of(lambda m, x: x + torch.rand(8) + torch.randn(8), X))


def test_case_8_training_mode() -> None:
    program = program_of(lambda m, x: x + nn.functional.dropout(m.scale, 0.5, training=False), X, scale=torch.ones(8))
    refuses(fold, program.train())
    assert ops(check(fold, program, X, bound=0)) == ["add"]


def test_case_8_uninitialised() -> None:
    refuses(fold, program_of(lambda m, x: x + torch.empty(8) * 0, X))


def test_case_9_a_quantized_weight() -> None:
    quantized = torch.randint(-128, 128, (8,), dtype=torch.int8)

    def forward(m: Any, x: Tensor) -> Tensor:
        return x + torch.as_tensor(dequantize(m.q, m.scale, m.zero_point, None))

    zero_point = torch.tensor(0, dtype=torch.int8)
    refuses(fold, program_of(forward, X, q=quantized, scale=torch.tensor(0.1), zero_point=zero_point))


def test_case_10_dynamic_size() -> None:
    program = program_of(lambda m, x: x + torch.arange(x.shape[0])[:, None] + torch.zeros_like(x), X, dynamic="batch")
    refuses(fold, program)


def test_the_result_owns_its_memory() -> None:
    table = torch.randn(4, 8)
    result = fold(program_of(lambda m, x: x + m.table[1] + m.table.t()[:, 2], X, table=table))
    kept = list(tensors(result).values())
    assert all(t.is_contiguous() and t.untyped_storage().nbytes() == 8 * 4 for t in kept)


def test_a_constant_output() -> None:
    program = program_of(lambda m, x: (x.relu(), torch.arange(3) + 1), X)
    result = check(fold, program, X, bound=0)
    assert ops(result) == ["relu"]
    assert EliminateDeadCode()(result) is result


def test_golden_fold_constants(golden: Golden) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        mask = torch.ones(8, 8).tril().log()
        return nn.functional.linear(x, m.weight.t() * 0.5) + mask[: x.shape[1]].sum(0)

    program = program_of(forward, X, weight=nn.Parameter(torch.randn(8, 8)))
    golden(program, fold(program))
