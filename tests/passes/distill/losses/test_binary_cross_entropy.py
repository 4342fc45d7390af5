"""BinaryCrossEntropy: against sums by hand, for logits and for probabilities."""

from __future__ import annotations

import math

import pytest
import torch

from fxopt.errors import PassError
from fxopt.passes.distill import BinaryCrossEntropy
from tests.passes.distill.losses.cases import doubles, gradient

PROBABILITIES = (torch.tensor([[0.2, 0.7], [0.99, 0.5]]), torch.tensor([[0.3, 0.0], [1.0, 0.5]]))  # student, teacher


def test_probabilities_by_hand() -> None:
    student, teacher = PROBABILITIES
    pairs = zip(student.double().flatten().tolist(), teacher.double().flatten().tolist(), strict=True)
    expected = sum(-p * math.log(q) - (1 - p) * math.log(1 - q) for q, p in pairs) / 4
    found = BinaryCrossEntropy(2.0, logits=False)(student, teacher, None, None)
    assert found.item() == pytest.approx(2 * expected, rel=1e-5)


def test_logits_are_those_of_the_probabilities() -> None:
    student, teacher = doubles(3, 4), doubles(3, 4, seed=1)
    found = BinaryCrossEntropy()(student, teacher, None, None)
    expected = BinaryCrossEntropy(logits=False)(student.sigmoid(), teacher.sigmoid(), None, None)
    torch.testing.assert_close(found, expected)


def test_gradients_are_the_closed_forms() -> None:
    student, teacher = doubles(3, 4), doubles(3, 4, seed=1).sigmoid()
    expected = (student.sigmoid() - teacher) / 12
    torch.testing.assert_close(gradient(BinaryCrossEntropy(), student, teacher.logit(), None, None), expected)
    q = student.sigmoid()
    found = gradient(BinaryCrossEntropy(logits=False), q, teacher, None, None)
    torch.testing.assert_close(found, (q - teacher) / (q * (1 - q)) / 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_of_0_and_1(dtype: torch.dtype) -> None:
    student, teacher = (
        torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=dtype),
        torch.tensor([[0.0, 1.0, 1.0, 0.0]], dtype=dtype),
    )
    by = BinaryCrossEntropy(logits=False)
    assert by(student[:, :2], teacher[:, :2], None, None) < 1e-6
    assert 10 < by(student[:, 2:], teacher[:, 2:], None, None) < 20
    assert gradient(by, student, teacher, None, None).isfinite().all()


def test_least_is_the_entropy_of_the_teacher() -> None:
    teacher = PROBABILITIES[0]
    entropy = -(teacher * teacher.log() + (1 - teacher) * (1 - teacher).log()).mean()
    torch.testing.assert_close(BinaryCrossEntropy(logits=False)(teacher, teacher, None, None), entropy)


@pytest.mark.parametrize("wrong", [-0.5, 1.5])
def test_values_that_are_no_probabilities(wrong: float) -> None:
    student, teacher = PROBABILITIES
    for name in ("student", "teacher"):
        values = {"student": student, "teacher": teacher, name: torch.tensor([[wrong, 0.0], [1.0, 0.5]])}
        with pytest.raises(PassError, match=rf"the {name}'s values go from .*{wrong}.* no probabilities"):
            BinaryCrossEntropy(logits=False)(values["student"], values["teacher"], None, None)


def test_nan_is_no_error_but_the_loss() -> None:
    """Training says where a loss became NaN, and what to do."""
    student, teacher = PROBABILITIES
    assert BinaryCrossEntropy(logits=False)(student * math.nan, teacher, None, None).isnan()
