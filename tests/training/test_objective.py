"""The parts of the loss, and how those of several items make that of all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxopt.errors import TrainingError
from fxopt.graph.program import Program
from fxopt.passes.distill import AttachTeacher, CrossEntropy, KLDivergence
from fxopt.training.items import Item, Shares, shares_of
from fxopt.training.objective import Objective, loss_names
from fxopt.training.options import Training
from tests.training.cases import tagger
from tests.training.models import batches, network

OPTIONS = Training(task=CrossEntropy(weight=0.5))


@pytest.fixture(scope="module")
def joint() -> Program:
    return AttachTeacher(tagger(3), losses=KLDivergence(weight=2.0))(tagger())


def padded(lengths: list[int]) -> Item:
    tokens = torch.randint(11, (len(lengths), 4))
    return Item((tokens, (torch.arange(4) < torch.tensor(lengths)[:, None]).long()), tokens % 4)


def test_parts_weighted_by_what_counts_are_the_whole(joint: Program) -> None:
    first, second = padded([4, 4]), padded([1, 2, 1])  # one without padding, one with
    whole = Item(
        tuple(torch.cat(pair) for pair in zip(first.inputs, second.inputs, strict=True)),
        torch.cat([first.labels, second.labels]),
    )
    objective = Objective(joint, OPTIONS)
    expected, parts = objective(whole, Shares(), True)
    shares = shares_of([first, second], [first, second], joint)
    found = [objective(item, share, True) for item, share in zip((first, second), shares, strict=True)]
    assert list(parts) == loss_names(joint, OPTIONS) == ["task", joint.taps[0].name]
    torch.testing.assert_close(found[0][0] + found[1][0], expected)
    for name, value in parts.items():
        torch.testing.assert_close(found[0][1][name] + found[1][1][name], value)
        assert value > 0 and not value.requires_grad
    assert not any(torch.isclose(found[0][1][name] * 2, value, rtol=0.01) for name, value in parts.items())


def test_penalties_count_when_asked() -> None:
    _, program = network()

    def one(now: Program) -> Tensor:
        return now.module.get_parameter("head.bias").sum() * 0 + 1.0

    objective = Objective(program, Training(task=CrossEntropy(), penalties=(one, one)))
    item = Item(batches(1)[0][:1], batches(1)[0][1])
    total, parts = objective(item, Shares(), True)
    assert list(parts) == ["task", "one", "one_2"] and total.item() == pytest.approx(float(parts["task"]) + 2)
    total, parts = objective(item, Shares(), False)
    assert list(parts) == ["task"] and torch.equal(total, parts["task"])


def test_nothing_to_minimise() -> None:
    with pytest.raises(TrainingError, match="nothing to minimise"):
        Objective(network()[1], Training())
