"""PairwiseSimilarity: against sums by hand."""

from __future__ import annotations

import pytest
import torch

from fxopt.errors import PassError
from fxopt.passes.distill import PairwiseSimilarity
from tests.passes.distill.losses.cases import doubles


def test_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])  # cosines 0, 0.6, 0.8
    teacher = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 5.0]])  # cosines 1, 0, 0
    expected = 2 * ((0 - 1) ** 2 + 0.6**2 + 0.8**2) / 9
    assert PairwiseSimilarity(3.0)(student, teacher, None, None).item() == pytest.approx(3 * expected, rel=1e-6)


def test_rotations_and_lengths_do_not_matter() -> None:
    teacher = doubles(5, 4)
    rotation, _ = torch.linalg.qr(doubles(4, 4, seed=1))
    student = (teacher @ rotation) * torch.arange(1.0, 6.0, dtype=torch.float64).unsqueeze(-1)
    assert PairwiseSimilarity()(student, teacher, None, None).item() == pytest.approx(0, abs=1e-20)


def test_features_are_flattened() -> None:
    student, teacher = doubles(3, 2, 4), doubles(3, 5, 2, 2, seed=1)
    expected = PairwiseSimilarity()(student.flatten(1), teacher.flatten(1), None, None)
    torch.testing.assert_close(PairwiseSimilarity()(student, teacher, None, None), expected)


def test_bad_input() -> None:
    with pytest.raises(PassError, match=r"PairwiseSimilarity: .*\[4\]"):
        PairwiseSimilarity()(torch.randn(4), torch.randn(4), None, None)
