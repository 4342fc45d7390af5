"""EliminateCommonSubexpressions and EliminateDeadCode, case by case as their docstrings number them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, set_attribute
from fxopt.graph.verify import verify
from fxopt.passes import EliminateCommonSubexpressions, EliminateDeadCode
from tests.conftest import Golden
from tests.passes.cleanup.checks import check, ops, program_of, refuses, tensors
from tests.passes.cleanup.test_fold_batch_norm import norm

merge = EliminateCommonSubexpressions()
sweep = EliminateDeadCode()
X = torch.randn(2, 8)


def test_common_case_1_equal_calls() -> None:
    program = program_of(lambda m, x: (x.sin() + 1) * (x.sin() + 1) + x.sin(), X)
    assert ops(check(merge, program, X, bound=0)) == ["sin", "add", "mul", "add"]


def test_common_case_1_results_with_parts() -> None:
    program = program_of(lambda m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1] + x.chunk(2, 1)[0], X)
    assert ops(check(merge, program, X, bound=0)) == ["chunk", "getitem", "getitem", "mul", "add"]


def test_common_case_1_outputs() -> None:
    assert ops(check(merge, program_of(lambda m, x: (x.sin(), x.sin()), X), X, bound=0)) == ["sin"]


def test_common_case_1_sizes() -> None:
    program = program_of(lambda m, x: x.view(x.shape[0], 4, 2) + x.view(x.shape[0], 4, 2), X, dynamic="batch")
    assert ops(check(merge, program, torch.randn(5, 8), bound=0)) == ["sym_size", "view", "add"]


def test_common_case_2_one_tensor_under_two_names() -> None:
    program = program_of(lambda m, x: x * m.a + x.cos() * m.b, X, a=torch.ones(8), b=torch.ones(8))
    edit = Edit(program, by=None)
    set_attribute(edit.module, "b", edit.module.a)  # type: ignore[arg-type]
    tied = edit.finish()
    result = check(merge, tied, X, bound=0)
    assert list(tensors(result)) == ["a"]


def test_common_case_3_defaults() -> None:
    program = program_of(lambda m, x: functional.gelu(x, approximate="none") + functional.gelu(x), X)
    (first, second) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.gelu.default)
    assert first.kwargs != second.kwargs or first.args == second.args
    assert ops(check(merge, program, X, bound=0)) == ["gelu", "add"]


def test_common_case_4_random_and_uninitialised() -> None:
    refuses(merge, program_of(lambda m, x: x + torch.rand(8) - torch.rand(8), X))
    refuses(merge, program_of(lambda m, x: (x + torch.empty(8)) * torch.empty(8), X))


def test_common_case_4_training() -> None:
    image = torch.randn(2, 3, 4, 4)
    program = program_of(lambda m, x: m.bn(x) + m.bn(x), image, bn=norm(3))
    refuses(merge, program.train())
    assert ops(check(merge, program, image, bound=0)) == ["batch_norm", "add"]


def test_common_case_5_numbers_of_other_types() -> None:
    numbers = torch.arange(6)
    refuses(merge, program_of(lambda m, x: (x * 2, x * 2.0), numbers))
    refuses(merge, program_of(lambda m, x: (torch.atan2(x, x * 0.0), torch.atan2(x, x * -0.0)), X))


def test_common_case_6_equal_values() -> None:
    refuses(merge, program_of(lambda m, x: x * m.a + x.cos() * m.b, X, a=torch.ones(8), b=torch.ones(8)))


def test_golden_eliminate_common_subexpressions(golden: Golden) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        gate = torch.sigmoid(m.layer(x)) * m.layer(x)
        return torch.add(gate, torch.sigmoid(m.layer(x)))

    program = program_of(forward, X, layer=nn.Linear(8, 8), dynamic="batch")
    golden(program, merge(program))


def with_dead_code(program: Program) -> Program:
    """Return a Program with two calls and one tensor that nothing reads, as a careless pass would leave them."""
    result = Edit(program, by=None).finish()
    graph, (placeholder,) = result.module.graph, result.placeholders
    with graph.inserting_before(graph.output_node()):
        dead = graph.call_function(torch.ops.aten.sin.default, (placeholder,))
        dead.meta["val"] = placeholder.meta["val"]
        graph.call_function(torch.ops.aten.cos.default, (dead,)).meta["val"] = placeholder.meta["val"]
    set_attribute(result.module, "unused.table", torch.ones(8))
    result.module.recompile()
    return result


def test_dead_cases_1_and_2() -> None:
    program = with_dead_code(program_of(lambda m, x: x * m.scale, X, scale=torch.ones(8)))
    assert ops(program) == ["mul", "sin", "cos"]
    result = check(sweep, program, X, bound=0)
    assert ops(result) == ["mul"]
    assert dict(result.module.named_buffers()).keys() == {"scale"}
    verify(result, full=True)


def test_dead_case_3_unused_input() -> None:
    program = program_of(lambda m, x, y: x.relu(), X, torch.ones(3))
    refuses(sweep, program)
    assert len(program.placeholders) == 2


def test_golden_eliminate_dead_code(golden: Golden) -> None:
    program = with_dead_code(program_of(lambda m, x: x * m.scale, X, scale=torch.ones(8)))
    golden(program, sweep(program))
