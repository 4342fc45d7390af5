"""FeatureHint: against sums by hand."""

from __future__ import annotations

import pytest
import torch

from fxopt.passes.distill import FeatureHint
from tests.passes.distill.losses.cases import doubles, gradient


def test_images_by_hand() -> None:
    student, teacher = torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]]), torch.tensor([[[[2.0, 2.0]], [[4.0, 0.0]]]])
    assert FeatureHint(3.0)(student, teacher, None, None).item() == pytest.approx(3 * (1 + 0 + 16 + 9) / 4)
    normalized = FeatureHint(3.0, normalize=True)(student, teacher, None, None)
    assert normalized.item() == pytest.approx(3 * (1 + 0 + 16 + 9) / (4 + 4 + 16 + 0))
    found = gradient(FeatureHint(3.0), student, teacher, None, None)
    torch.testing.assert_close(found, 3 * 2 * (student - teacher) / 4)


def test_tokens_by_hand() -> None:
    student, teacher = doubles(2, 3, 4), doubles(2, 3, 4, seed=1)
    valid = torch.tensor([[True, False, False], [True, True, True]])
    squares = [float((student[at] - teacher[at]).square().sum()) for at in ((0, 0), (1, 0), (1, 1), (1, 2))]
    assert FeatureHint()(student, teacher, None, valid).item() == pytest.approx(sum(squares) / 16)


def test_normalized_layers_weigh_alike_in_any_range() -> None:
    student, teacher = doubles(2, 3, 4), doubles(2, 3, 4, seed=1)
    by = FeatureHint(normalize=True)
    torch.testing.assert_close(by(100 * student, 100 * teacher, None, None), by(student, teacher, None, None))
    assert by(torch.zeros_like(teacher), teacher, None, None).item() == pytest.approx(1)
