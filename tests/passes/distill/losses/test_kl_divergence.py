"""KLDivergence: against sums by hand, its closed-form gradient, and what makes it zero."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxopt.passes.distill import KLDivergence
from tests.passes.distill.losses.cases import doubles, gradient, kl, softmax

STUDENT = [[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]]
TEACHER = [[1.0, 0.0, -2.0], [4.0, 1.0, 1.0]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_by_hand(temperature: float) -> None:
    rows = zip(STUDENT, TEACHER, strict=True)
    expected = [kl(softmax(teacher, temperature), softmax(student, temperature)) for student, teacher in rows]
    found = KLDivergence(temperature, weight=0.9)(torch.tensor(STUDENT), torch.tensor(TEACHER), None, None)
    assert found.item() == pytest.approx(0.9 * temperature**2 * sum(expected) / 2, rel=1e-5)


def test_tokens_count_like_samples() -> None:
    """The mean is over tokens too: a longer sequence does not weigh the loss up, nor do more classes weigh it down."""
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    expected = KLDivergence()(student, teacher, None, None)
    torch.testing.assert_close(KLDivergence()(student[None], teacher[None], None, None), expected)
    never = torch.full((2, 5), -1e4)
    more = [torch.cat([value, never], -1) for value in (student, teacher)]
    torch.testing.assert_close(KLDivergence()(more[0], more[1], None, None), expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_is_the_closed_form(temperature: float) -> None:
    student, teacher = doubles(5, 7), doubles(5, 7, seed=1)
    expected = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)) / 5
    torch.testing.assert_close(gradient(KLDivergence(temperature), student, teacher, None, None), expected)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(-50, 50), st.integers(0, 1000), st.floats(0.5, 8))
def test_it_is_zero_only_where_probabilities_are_equal(shift: float, seed: int, temperature: float) -> None:
    teacher, other = doubles(3, 4, seed=seed), doubles(3, 4, seed=seed + 1)
    by = KLDivergence(temperature)
    assert by(teacher + shift, teacher, None, None).item() == pytest.approx(0, abs=1e-12)
    assert by(other, teacher, None, None) > 1e-6


def test_standardized_by_hand() -> None:
    def standard(logits: list[float]) -> list[float]:
        return [(logit - statistics.fmean(logits)) / statistics.pstdev(logits) for logit in logits]

    rows = zip(STUDENT, TEACHER, strict=True)
    expected = [kl(softmax(standard(teacher), 2), softmax(standard(student), 2)) for student, teacher in rows]
    found = KLDivergence(2.0, standardize=True)(torch.tensor(STUDENT), torch.tensor(TEACHER), None, None)
    assert found.item() == pytest.approx(4 * sum(expected) / 2, rel=1e-5)


def test_standardized_logits_are_free_in_mean_and_range() -> None:
    teacher = doubles(4, 6)
    by = KLDivergence(standardize=True)
    assert by(0.01 * teacher - 3, teacher, None, None).item() == pytest.approx(0, abs=1e-6)
    assert by(-teacher, teacher, None, None) > 0.1


def test_classes_that_are_excluded() -> None:
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    teacher[:, 1] = student[:, 1] = -math.inf
    expected = KLDivergence()(student[:, [0, 2]], teacher[:, [0, 2]], None, None)
    torch.testing.assert_close(KLDivergence()(student, teacher, None, None), expected)
    assert gradient(KLDivergence(), student, teacher, None, None).isfinite().all()


def test_labels_tell_where_the_classes_are() -> None:
    student, teacher, labels = doubles(2, 5, 3, 4), doubles(2, 5, 3, 4, seed=1), torch.zeros(2, 3, 4, dtype=torch.long)
    expected = KLDivergence()(student.movedim(1, -1), teacher.movedim(1, -1), None, None)
    torch.testing.assert_close(KLDivergence()(student, teacher, labels, None), expected)
    last = KLDivergence()(student, teacher, None, None)
    torch.testing.assert_close(KLDivergence()(student, teacher, labels[:, 0, 0], None), last)
    assert last != expected
