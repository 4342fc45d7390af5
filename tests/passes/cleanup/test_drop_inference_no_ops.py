"""DropInferenceNoOps, case by case as its docstring numbers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fxopt.graph.pipeline import Pass
from fxopt.passes import DropInferenceNoOps
from tests.conftest import Golden
from tests.passes.cleanup.checks import check, ops, program_of, refuses

drop: Pass = DropInferenceNoOps()
Function = Callable[[Tensor], Tensor]


def dropped(function: Function, x: Tensor) -> list[str]:
    """Return the ops left between two marks, relu and neg."""
    program = program_of(lambda m, x: torch.neg(function(torch.relu(x))), x)
    left = ops(check(drop, program, x, bound=0))
    assert (left[0], left[-1]) == ("relu", "neg")
    return left[1:-1]


X = torch.randn(2, 3, 4)
DROPPED: dict[str, Function] = {
    "1 dropout in inference": lambda x: functional.dropout(x, 0.5, training=False),
    "1 dropout with probability 0": lambda x: functional.dropout(x, 0.0, training=True),
    "1 feature dropout": lambda x: functional.dropout1d(x, 0.5, training=False),
    "1 alpha dropout": lambda x: functional.alpha_dropout(x, 0.5, training=False),
    "2 alias": lambda x: torch.ops.aten.alias(x),
    "2 detach": lambda x: x.detach(),
    "2 clone": lambda x: x.clone(),
    "2 contiguous": lambda x: x.contiguous(),
    "3 to dtype": lambda x: x.to(torch.float32),
    "3 to device": lambda x: x.to("cpu"),
    "3 type_as": lambda x: x.type_as(x),
    "4 slice": lambda x: x[:, :, 0:100],
    "4 slice of a step": lambda x: x.sum(1, keepdim=True)[:, ::2].expand(2, 3, 4) + x,
    "4 expand": lambda x: x.expand(2, -1, 4),
    "4 expand_as": lambda x: x.expand_as(x),
    "4 repeat": lambda x: x.repeat(1, 1, 1),
    "4 pad": lambda x: functional.pad(x, [0, 0]),
    "5 view": lambda x: x.view(2, 3, 4),
    "5 reshape": lambda x: x.reshape(2, -1, 4),
    "5 flatten": lambda x: x.flatten(1, 1),
    "5 squeeze": lambda x: x.squeeze(1),
    "6 permute": lambda x: x.permute(0, 1, -1),
    "6 transpose": lambda x: x.transpose(2, -1),
    "7 add 0": lambda x: x + 0,
    "7 sub 0": lambda x: x - 0.0,
    "7 mul 1": lambda x: x * 1.0,
    "7 div 1": lambda x: x / 1,
    "7 pow 1": lambda x: x**1,
    "8 transpose twice": lambda x: x.transpose(1, 2).transpose(2, 1),
    "8 transpose and permute": lambda x: x.permute(2, 0, 1).permute(1, 2, 0),
    "8 swapaxes and mT": lambda x: x.swapaxes(1, 2).mT,
    "9 reshape there and back": lambda x: x.flatten().unsqueeze(0).view(2, 3, 4),
    "9 unsqueeze and squeeze": lambda x: x.unsqueeze(0).squeeze(0),
}


@pytest.mark.parametrize("case", DROPPED)
def test_cases_1_to_9_dropped(case: str) -> None:
    left = dropped(DROPPED[case], X)
    assert left == (["sum", "expand", "add"] if case == "4 slice of a step" else [])


def test_case_8_permutes_become_one() -> None:
    assert dropped(lambda x: x.permute(1, 2, 0).permute(2, 1, 0).transpose(0, 2), X) == ["permute"]


def test_case_8_inner_permute_with_another_use_stays() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.permute(2, 0, 1)
        return y.permute(2, 0, 1), y

    result = check(drop, program_of(forward, X), X, bound=0)
    assert ops(result) == ["permute", "permute"]
    assert all(node.args[0].op == "placeholder" for node in result.graph.nodes if node.op == "call_function")


def test_case_9_reshapes_become_one() -> None:
    assert dropped(lambda x: x.flatten(1).unsqueeze(1).view(3, 2, 4).view(4, 6), X) == ["reshape"]


def test_case_9_dynamic_sizes() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1).view(x.shape[0], 3, 4).relu()

    program = program_of(forward, X, dynamic="batch")
    assert ops(check(drop, program, torch.randn(5, 3, 4), bound=0)) == ["relu"]


def test_case_10_view_that_needs_contiguous() -> None:
    assert dropped(lambda x: x.transpose(1, 2).contiguous().view(2, 12), X) == ["transpose", "reshape"]


def test_case_10_view_as() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return x.flatten(1).neg().view_as(x.sin())

    program = program_of(forward, X, dynamic="batch")
    assert ops(check(drop, program, torch.randn(5, 3, 4), bound=0)) == ["flatten", "neg", "reshape"]


def test_case_11_dropout_in_training() -> None:
    program = program_of(lambda m, x: functional.dropout(x.relu(), 0.5, training=False), X).train()
    refuses(drop, program)


KEPT: dict[str, Function] = {
    "to another dtype": lambda x: x.to(torch.float64),
    "a slice that cuts": lambda x: x[:, 1:],
    "a slice with a step": lambda x: x[:, ::2],
    "expand that broadcasts": lambda x: x[:, :1].expand(2, 3, 4),
    "a pad that shifts": lambda x: functional.pad(x, [1, -1]),
    "permute of equal sizes": lambda x: x[:, :, :3].transpose(1, 2),
    "add 0 that broadcasts": lambda x: x[0] + torch.zeros_like(x),
    "add another number": lambda x: x + 1,
    "mul True": lambda x: x * 2,
}


@pytest.mark.parametrize("case", KEPT)
def test_case_12_kept(case: str) -> None:
    refuses(drop, program_of(lambda m, x: KEPT[case](x), X))


def test_case_12_promotion() -> None:
    numbers = torch.arange(6)
    refuses(drop, program_of(lambda m, x: (x + 0.0, x * 1.0, x / 1), numbers))
    assert ops(check(drop, program_of(lambda m, x: x.neg() + 0, numbers), numbers, bound=0)) == ["neg"]


def test_case_13_raw_strides() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.as_strided(x.transpose(1, 2).contiguous(), (2, 6), (12, 1))

    refuses(drop, program_of(forward, X))


def test_an_input_that_is_returned() -> None:
    result = check(drop, program_of(lambda m, x: (x.clone(), x.relu()), X), X, bound=0)
    assert ops(result) == ["relu"]


def test_golden_drop_inference_no_ops(golden: Golden) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = functional.dropout(x + 0, 0.1, training=False).transpose(1, 2).contiguous()
        return y.view(x.shape[0], 2, -1).view(x.shape[0], -1).clone() * 2

    program = program_of(forward, X, dynamic="batch")
    golden(program, drop(program))
