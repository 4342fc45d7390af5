"""AttentionTransfer: against sums by hand; channels may differ, maps may not."""

from __future__ import annotations

import math

import pytest
import torch

from fxopt.errors import PassError
from fxopt.passes.distill import AttentionTransfer
from tests.passes.distill.losses.cases import doubles, gradient


def test_images_by_hand() -> None:
    student = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])  # two channels, maps of two pixels
    teacher = torch.tensor([[[[1.0, -1.0]], [[1.0, 0.0]], [[2.0, 2.0]]]])  # three channels
    maps = [[(1 + 9) / 2, (4 + 0) / 2], [(1 + 1 + 4) / 3, (1 + 0 + 4) / 3]]
    unit = [[value / math.hypot(*values) for value in values] for values in maps]
    expected = sum((found - wanted) ** 2 for found, wanted in zip(*unit, strict=True)) / 2
    assert AttentionTransfer(10.0)(student, teacher, None, None).item() == pytest.approx(10 * expected, rel=1e-5)


def test_maps_of_tokens() -> None:
    """A sequence is an image one pixel high, with its channels in the last dimension."""
    student, teacher = doubles(2, 3, 4), doubles(2, 3, 6, seed=1)
    expected = AttentionTransfer()(student.mT.unsqueeze(2), teacher.mT.unsqueeze(2), None, None)
    torch.testing.assert_close(AttentionTransfer()(student, teacher, None, None), expected)


def test_sequences_of_two_lengths() -> None:
    student, teacher, valid = (
        doubles(2, 3, 4),
        doubles(2, 3, 4, seed=1),
        torch.tensor([[True] * 3, [True, False, False]]),
    )
    parts = [
        AttentionTransfer()(student[i : i + 1, :n], teacher[i : i + 1, :n], None, None) for i, n in ((0, 3), (1, 1))
    ]
    torch.testing.assert_close(AttentionTransfer()(student, teacher, None, valid), (3 * parts[0] + parts[1]) / 4)


def test_a_mask_of_tokens_says_nothing_of_pixels() -> None:
    student, teacher, valid = doubles(2, 3, 4, 4), doubles(2, 5, 4, 4, seed=1), torch.zeros(2, 3, dtype=torch.bool)
    expected = AttentionTransfer()(student, teacher, None, None)
    assert AttentionTransfer()(student, teacher, None, valid) == expected


def test_the_range_of_features_does_not_matter() -> None:
    student, teacher = doubles(2, 3, 4, 4), doubles(2, 5, 4, 4, seed=1)
    expected = AttentionTransfer()(student, teacher, None, None)
    torch.testing.assert_close(AttentionTransfer()(9 * student, 0.1 * teacher, None, None), expected)


def test_gradients_are_those_of_finite_differences() -> None:
    student, teacher = doubles(2, 3, 2, 2).requires_grad_(), doubles(2, 5, 2, 2, seed=1)
    assert torch.autograd.gradcheck(lambda value: AttentionTransfer()(value, teacher, None, None), (student,))
    assert (gradient(AttentionTransfer(), 0 * student, teacher, None, None) == 0).all()


@pytest.mark.parametrize(
    "shapes", [((2, 3, 4, 4), (2, 3, 5, 4)), ((2, 3, 4), (2, 5, 4)), ((2, 8), (2, 8)), ((2, 3, 4), (2, 3, 4, 4))]
)
def test_maps_that_do_not_fit(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(PassError, match=r"AttentionTransfer: .*no maps of one shape"):
        AttentionTransfer()(torch.randn(shapes[0]), torch.randn(shapes[1]), None, None)
