"""Cuts and stages: where one value alone carries on what a network has computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxopt.graph.cuts import count_layers, cuts, stage_values
from fxopt.graph.program import Program
from tests.passes.cleanup.checks import program_of

X = torch.randn(2, 6)


def names(program: Program) -> list[str]:
    return [node.name for node in stage_values(program)]


def test_a_chain_has_a_stage_behind_each_layer() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.head(torch.tanh(m.second(torch.relu(m.norm(m.first(x))))))

    layers: dict[str, Any] = {
        "first": nn.Linear(6, 5),
        "norm": nn.LayerNorm(5),
        "second": nn.Linear(5, 4),
        "head": nn.Linear(4, 3),
    }
    program = program_of(forward, X, **layers)
    assert names(program) == ["relu", "tanh"], "the norm and the activation belong to the layer; the output is no stage"
    assert count_layers(program) == 3


def test_a_residual_network_has_a_stage_at_the_end_of_each_block() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        x = x + m.second(torch.relu(m.first(x)))
        x = x + m.fourth(torch.relu(m.third(x)))
        return m.head(x)

    layers: dict[str, Any] = {name: nn.Linear(6, 6) for name in ("stem", "first", "second", "third", "fourth", "head")}
    assert names(program_of(forward, X, **layers)) == ["linear", "add", "add_1"]


def test_what_is_made_of_the_inputs_alone_does_not_stand_in_the_way() -> None:
    def forward(m: Any, x: Tensor, mask: Tensor) -> Any:
        scale = mask * 2
        return m.head(torch.relu(m.second(torch.relu(m.first(x)) * scale)) * scale)

    layers: dict[str, Any] = {"first": nn.Linear(6, 6), "second": nn.Linear(6, 6), "head": nn.Linear(6, 6)}
    assert names(program_of(forward, X, torch.ones(2, 6), **layers)) == ["mul_1", "mul_2"]


def test_parallel_branches_have_no_stage_until_they_meet() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        left, right = m.a(x), m.c(x)
        return m.head(m.b(torch.relu(left)) + m.d(torch.relu(right)))

    layers: dict[str, Any] = {name: nn.Linear(6, 6) for name in ("a", "b", "c", "d", "head")}
    assert names(program_of(forward, X, **layers)) == ["add"]


def test_recurrent_layers_and_embeddings_are_layers() -> None:
    def forward(m: Any, tokens: Tensor) -> Any:
        return m.head(m.lstm(m.table(tokens))[0])

    tokens = torch.arange(6).reshape(2, 3)
    layers: dict[str, Any] = {
        "table": nn.Embedding(9, 4),
        "lstm": nn.LSTM(4, 5, batch_first=True),
        "head": nn.Linear(5, 2),
    }
    program = program_of(forward, tokens, **layers)
    assert count_layers(program) == 3
    assert names(program) == ["embedding", "getitem"]


def test_no_value_before_a_cut_is_read_behind_it_but_one() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        for layer in (m.a, m.b):
            x = torch.relu(layer(x)) + x
        return m.head(x), x.mean()

    layers: dict[str, Any] = {name: nn.Linear(6, 6) for name in ("stem", "a", "b", "head")}
    program = program_of(forward, X, **layers)
    order = list(program.graph.nodes)
    found = list(cuts(order))
    assert found
    for end, value in found:
        before = [node for node in order[:end] if node.op == "call_function"]
        read_later = {
            node for node in before if any(user in order[end:] and user.op != "output" for user in node.users)
        }
        assert read_later == ({value} if value is not None else set())
