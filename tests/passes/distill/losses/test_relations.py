"""Relations: against sums over pairs and triplets by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from fxopt.errors import PassError
from fxopt.passes.distill import Relations
from tests.passes.distill.losses.cases import Rows, doubles, gradient


def smooth(error: float) -> float:
    return error**2 / 2 if abs(error) < 1 else abs(error) - 0.5


def distances(rows: Rows) -> list[float]:
    found = [math.dist(left, right) for left, right in itertools.permutations(rows, 2)]
    return [value / (sum(found) / len(found)) for value in found]


def angles(rows: Rows) -> list[float]:
    def cosine(i: Sequence[float], j: Sequence[float], k: Sequence[float]) -> float:
        products = sum((a - b) * (c - b) for a, b, c in zip(i, j, k, strict=True))
        return products / math.dist(i, j) / math.dist(k, j)

    return [cosine(*triplet) for triplet in itertools.permutations(rows, 3)]


def mean(found: list[float], expected: list[float]) -> float:
    return sum(smooth(left - right) for left, right in zip(found, expected, strict=True)) / len(found)


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_by_hand(spread: float) -> None:
    student, teacher = doubles(5, 3), doubles(5, 4, seed=1)
    student[0] *= spread  # errors on both sides of 1, where the smooth loss changes
    left, right = student.tolist(), teacher.tolist()
    near, far = mean(distances(left), distances(right)), mean(angles(left), angles(right))
    assert Relations(2.0, 0.0)(student, teacher, None, None).item() == pytest.approx(2 * near)
    assert Relations(0.0, 3.0)(student, teacher, None, None).item() == pytest.approx(3 * far)
    assert Relations(weight=0.1)(student, teacher, None, None).item() == pytest.approx(0.1 * (25 * near + 50 * far))


def test_moving_turning_and_scaling_all_samples_does_not_matter() -> None:
    teacher = doubles(6, 4)
    rotation, _ = torch.linalg.qr(doubles(4, 4, seed=1))
    student = 7 * teacher @ rotation + 3
    assert Relations()(student, teacher, None, None).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("samples", "parts"), [(1, set()), (2, set()), (3, {"distance", "angle"})])
def test_few_samples(samples: int, parts: set[str]) -> None:
    """One sample has no relation, and the distance of two is its own mean."""
    student, teacher = doubles(samples, 3), doubles(samples, 3, seed=1)
    losses = {"distance": Relations(1.0, 0.0), "angle": Relations(0.0, 1.0)}
    assert {name for name, loss in losses.items() if loss(student, teacher, None, None) > 0} == parts
    assert gradient(Relations(), student, teacher, None, None).isfinite().all()


def test_two_samples_that_are_equal_among_others() -> None:
    student, teacher = doubles(4, 3), doubles(4, 3, seed=1)
    student[1] = student[0]
    assert gradient(Relations(), student, teacher, None, None).isfinite().all()
    assert Relations()(student, teacher, None, None).isfinite()


def test_bad_input() -> None:
    with pytest.raises(PassError, match=r"Relations: .*\[4\]"):
        Relations()(torch.randn(4), torch.randn(4), None, None)
    for weights in ((0.0, 0.0), (-1.0, 50.0)):
        with pytest.raises(PassError, match="distance"):
            Relations(*weights)
