"""Correlation: against Pearson's coefficient as Python's statistics have it."""

from __future__ import annotations

from statistics import correlation

import pytest
import torch

from fxopt.errors import PassError
from fxopt.passes.distill import Correlation
from tests.passes.distill.losses.cases import doubles, gradient, softmax


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_by_hand(temperature: float) -> None:
    student, teacher = doubles(4, 3), doubles(4, 3, seed=1)
    found, expected = ([softmax(row, temperature) for row in value.tolist()] for value in (student, teacher))
    samples = [1 - correlation(*rows) for rows in zip(found, expected, strict=True)]
    columns = zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True)
    classes = [1 - correlation(*pair) for pair in columns]
    by = Correlation(2.0, 3.0, temperature)
    value = temperature**2 * (2 * sum(samples) / 4 + 3 * sum(classes) / 3)
    assert by(student, teacher, None, None).item() == pytest.approx(value, rel=1e-9)


def test_parts_can_be_left_out() -> None:
    student, teacher = doubles(4, 3), doubles(4, 3, seed=1)
    both = Correlation(2.0, 3.0)(student, teacher, None, None)
    parts = [Correlation(*weights)(student, teacher, None, None) for weights in ((2.0, 0.0), (0.0, 3.0))]
    torch.testing.assert_close(parts[0] + parts[1], both)


def test_one_sample_has_no_correlation_among_samples() -> None:
    student, teacher = doubles(1, 5), doubles(1, 5, seed=1)
    expected = Correlation(1.0, 0.0)(student, teacher, None, None)
    torch.testing.assert_close(Correlation()(student, teacher, None, None), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_is_not_its_own_rounding(dtype: torch.dtype) -> None:
    """Softmax of equal logits is 1/7 but for rounding, whose direction says nothing."""
    constant, teacher = torch.full((1, 7), 0.3, dtype=dtype), doubles(1, 7).to(dtype)
    assert Correlation(1.0, 0.0)(constant, teacher, None, None).item() == pytest.approx(0.5, abs=1e-6)
    assert Correlation(1.0, 0.0)(constant, constant + 0.1, None, None) == 0
    assert (gradient(Correlation(), constant, teacher, None, None) == 0).all()


def test_bad_input() -> None:
    for weights in ((0.0, 0.0), (1.0, -1.0)):
        with pytest.raises(PassError, match="class_weight"):
            Correlation(*weights)
