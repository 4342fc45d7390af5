"""Vectors of length 1."""

from __future__ import annotations

import pytest
import torch

from fxopt.passes.distill.losses.directions import directions, one_minus_cosine, over


def test_lengths_are_one() -> None:
    assert directions(torch.tensor([[3.0, -4.0], [0.0, 0.0]])).tolist() == [pytest.approx([0.6, -0.8]), [0.0, 0.0]]
    assert directions(torch.tensor([0.0, -1e-15])).tolist() == [0.0, -1.0]


def test_nothing_is_divided_by_zero() -> None:
    values, lengths = torch.tensor([1.0, 6.0], requires_grad=True), torch.tensor([0.0, 2.0], requires_grad=True)
    found = over(values, lengths)
    gradients = torch.autograd.grad(found.sum(), (values, lengths))
    assert found.tolist() == [0, 3]
    assert [gradient.tolist() for gradient in gradients] == [[0, 0.5], [0, -1.5]]


def test_one_minus_cosine() -> None:
    east, north, west = torch.eye(2)[0], torch.eye(2)[1], -torch.eye(2)[0]
    assert [float(one_minus_cosine(east, other)) for other in (east, north, west)] == [0, 1, 2]
