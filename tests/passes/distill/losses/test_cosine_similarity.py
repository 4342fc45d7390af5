"""CosineSimilarity: against torch's own function."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fxopt.passes.distill import CosineSimilarity
from tests.passes.distill.losses.cases import doubles, gradient


def test_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    assert CosineSimilarity(2.0)(student, teacher, None, None).item() == pytest.approx(2 * (0.4 + 2) / 2, rel=1e-6)


def test_torch_says_the_same() -> None:
    student, teacher = doubles(2, 3, 8), doubles(2, 3, 8, seed=1)
    expected = 1 - functional.cosine_similarity(student, teacher, dim=-1)
    torch.testing.assert_close(CosineSimilarity()(student, teacher, None, None), expected.mean())
    valid = torch.tensor([[True, False, False], [True, True, False]])
    torch.testing.assert_close(CosineSimilarity()(student, teacher, None, valid), expected[valid].mean())


def test_nearly_equal_directions_are_told_apart_in_float32() -> None:
    teacher = torch.ones(1, 384)
    student = teacher + 1e-5 * torch.randn(1, 384)
    exact = 1 - functional.cosine_similarity(student.double(), teacher.double(), dim=-1)
    assert CosineSimilarity()(student, teacher, None, None).item() == pytest.approx(exact.item(), rel=0.05)


def test_zeros_have_no_direction() -> None:
    zeros, other = torch.zeros(1, 4), torch.ones(1, 4)
    assert CosineSimilarity()(zeros, other, None, None).item() == pytest.approx(0.5)
    assert CosineSimilarity()(zeros, zeros, None, None) == 0
    assert (gradient(CosineSimilarity(), zeros, other, None, None) == 0).all()
