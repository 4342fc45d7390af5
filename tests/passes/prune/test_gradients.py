"""Gradients over calibration data: against autograd by hand, and against the change of the outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.errors import DataError, PassError
from fxopt.graph.capture import capture
from fxopt.graph.program import Program
from fxopt.passes.prune.gradients import batch_gradients, mean_over_batches
from tests.passes.cleanup.checks import program_of, snapshot

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))


def network() -> Program:
    torch.manual_seed(0)
    return program_of(
        lambda m, x: m.second(torch.relu(m.norm(m.first(x)))),
        X,
        dynamic="batch",
        first=nn.Linear(5, 4),
        norm=nn.BatchNorm1d(4),
        second=nn.Linear(4, 3),
    )


def _cross_entropy(outputs: Tensor, batch: Any) -> Tensor:
    return functional.cross_entropy(outputs, batch[1])


def test_gradients_are_those_of_autograd() -> None:
    program, labels = network(), torch.tensor([0, 2, 1, 1, 0, 2])
    module = program.eval().module
    (output,) = module(X)
    functional.cross_entropy(output, labels).backward()  # type: ignore[no-untyped-call]
    expected = {name: value.grad for name, value in module.named_parameters()}
    (found,) = batch_gradients(program, [(X, labels)], _cross_entropy)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])


def test_nothing_is_left_behind() -> None:
    program = network().train()
    program.module.get_parameter("first.weight").requires_grad_(False)
    before = snapshot(program)
    with torch.no_grad():
        assert len(list(batch_gradients(program, [X[:2], X[2:]]))) == 6  # sample by sample
    text, tensors = snapshot(program)
    assert text == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in tensors.items())
    assert all(value.grad is None for value in program.parameters())
    assert [name for name, value in program.module.named_parameters() if not value.requires_grad] == ["first.weight"]


def test_the_mean_of_squares_is_the_change_of_the_outputs() -> None:
    """Without column j of W, W x changes by W[:, j] x_j. The mean of (sum w g)^2 over all signs is its square."""
    layer, x = nn.Linear(5, 3), X[:1]
    program = program_of(lambda m, x: m.layer(x), X, dynamic="batch", layer=layer)
    squares = {}
    for found in batch_gradients(program, [x] * 100):
        signs = tuple(found["layer.bias"].tolist())
        squares[signs] = (layer.weight * found["layer.weight"]).sum(0).square().detach()
    assert len(squares) == 2**3
    expected = (layer.weight * x).square().sum(0).detach()
    torch.testing.assert_close(torch.stack(list(squares.values())).mean(0), expected)


def test_the_mean_is_over_batches() -> None:
    program, items = network(), [(X[:3], torch.tensor([0, 1, 2])), (X[3:], torch.tensor([2, 2, 0]))]
    single = [g["second.weight"] for g in batch_gradients(program, items, _cross_entropy)]
    weight = program.module.get_parameter("second.weight").detach()
    mean = mean_over_batches(program, items, lambda w, g: (w * g).square(), _cross_entropy)["second.weight"]
    torch.testing.assert_close(mean, torch.stack([(weight * g).square() for g in single]).mean(0))


def test_the_seed_decides() -> None:
    first, again, other = (next(batch_gradients(network(), [X], seed=seed))["first.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_tied_tensors_have_one_gradient() -> None:
    layer = nn.Linear(5, 5, bias=False)
    program = program_of(lambda m, x: functional.linear(m.layer(x), m.layer.weight), X, layer=layer)
    (found,) = batch_gradients(program, [X], lambda outputs, batch: outputs.sum())
    (expected,) = torch.autograd.grad((X @ layer.weight.T @ layer.weight.T).sum(), [layer.weight])
    for gradient in found.values():
        torch.testing.assert_close(gradient, expected)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        output: Tensor = self.head(self.table(ids)) + 0 * attention_mask[:, :, None]
        return output


def test_padding_does_not_count() -> None:
    item = {"ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    (found,) = batch_gradients(capture(Tagger().eval(), item), [item])
    assert found["table.weight"].any(1).tolist() == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, batch: outputs, r"one number, got a tensor of shape \[6, 3\]"),
        (lambda outputs, batch: 1.0, "one number, got float"),
        (lambda outputs, batch: outputs.detach().sum(), "depends on no floating-point tensor"),
        (lambda outputs, batch: outputs.sum() / 0, "loss of calibration batch 0 is"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(PassError, match=message):
        list(batch_gradients(network(), [X], loss))


def test_outputs_of_integers_have_no_gradients() -> None:
    program = program_of(lambda m, x: m.layer(x).argmax(1), X, layer=nn.Linear(5, 3))
    with pytest.raises(PassError, match="an output must be of floating point"):
        list(batch_gradients(program, [X]))


@pytest.mark.parametrize(
    ("data", "message"),
    [([], "is empty"), ([X[:, :4]], "item 0: .*does not fit"), (X, "one Tensor"), ([X * float("nan")], "holds NaN")],
)
def test_data_that_does_not_fit_is_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(batch_gradients(network(), data))
