"""Batch norm over processes: alone it is torch's; over two processes see test_processes.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxopt.training import joint_batch_norm as module
from fxopt.training.joint_batch_norm import joint_batch_norm, with_joint_statistics
from tests.training.models import network

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum over the one process that there is."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: None)


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_alone_it_computes_what_torch_does(shape: tuple[int, ...], affine: bool) -> None:
    x = (3 * torch.randn(shape) + 100).requires_grad_()
    weight, bias = (torch.randn(3, requires_grad=True) if affine else None for _ in range(2))
    sources = [value for value in (x, weight, bias) if value is not None]
    upstream = torch.randn(shape)
    found = []
    for function in (joint_batch_norm, aten.batch_norm.default):
        mean, var = torch.zeros(3), torch.ones(3)
        y: Tensor = function(x, weight, bias, mean, var, True, 0.1, 1e-5, False)
        found.append([y, mean, var, *torch.autograd.grad((y * upstream).sum(), sources)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_without_running_statistics() -> None:
    x = torch.randn(6, 3)
    expected = torch.nn.functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(joint_batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False), expected)


def test_only_norms_in_training_mode_are_replaced() -> None:
    _, program = network()
    assert not any(node.target is joint_batch_norm for node in with_joint_statistics(program).graph.nodes)
    joint = with_joint_statistics(program.train())
    assert sum(node.target is joint_batch_norm for node in joint.graph.nodes) == 1
    x = torch.randn(4, 3, 8, 8)
    expected = program.train().module(x)[0]
    torch.testing.assert_close(joint.module(x)[0], expected, atol=1e-5, rtol=1e-4)
    assert module.joint_batch_norm is joint_batch_norm
