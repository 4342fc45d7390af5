"""MeanSquaredError and LogitsMeanSquaredError: against sums by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxopt.errors import PassError
from fxopt.passes.distill import KLDivergence, LogitsMeanSquaredError, MeanSquaredError
from tests.passes.distill.losses.cases import doubles, gradient


def test_logits_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[3.0, 2.5], [0.0, 1.0]])
    found = LogitsMeanSquaredError(weight=3.0)(student, teacher, None, None)
    assert found.item() == pytest.approx(3 * (4 + 0.25 + 0 + 4) / 4)
    expected = 3 * 2 * (student - teacher) / 4
    torch.testing.assert_close(gradient(LogitsMeanSquaredError(3.0), student, teacher, None, None), expected)


def test_kl_divergence_tends_to_half_of_it() -> None:
    student, teacher = (logits - logits.mean(-1, keepdim=True) for logits in (doubles(6, 8), doubles(6, 8, seed=1)))
    limit = KLDivergence(temperature=1e4)(student, teacher, None, None)
    torch.testing.assert_close(limit, LogitsMeanSquaredError(0.5)(student, teacher, None, None), rtol=1e-3, atol=0)


def test_numbers_by_hand() -> None:
    result, labels = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0.0, 2.5, 1.0])
    for value, numbers in ((result, labels), (result, labels.unsqueeze(-1)), (result.squeeze(-1), labels)):
        assert MeanSquaredError(2.0)((value, None), numbers, None).item() == pytest.approx(2 * (1 + 0.25 + 9) / 3)
    assert MeanSquaredError()(result, torch.tensor([1, 2, 3]), None).item() == pytest.approx(1 / 3)  # integers
    expected = 2 * (result - labels.unsqueeze(-1)) / 3
    torch.testing.assert_close(gradient(MeanSquaredError(), result, labels, None), expected)


def test_numbers_of_tokens() -> None:
    valid = torch.tensor([[True, True, False], [True, False, False]])
    result, labels = doubles(2, 3), doubles(2, 3, seed=1)
    labels[~valid] = float("nan")
    expected = (result - labels)[valid].square().mean()
    torch.testing.assert_close(MeanSquaredError()(result, labels, valid), expected)
    torch.testing.assert_close(MeanSquaredError()(result.unsqueeze(-1), labels, valid), expected)


def test_a_mask_of_tokens_says_nothing_of_numbers_of_samples() -> None:
    result, labels, valid = doubles(2, 1), doubles(2, seed=1), torch.tensor([[True, False], [True, True]])
    expected = (result.squeeze(-1) - labels).square().mean()
    torch.testing.assert_close(MeanSquaredError()(result, labels, valid), expected)


def test_no_valid_number_is_zero() -> None:
    nothing = torch.zeros(2, dtype=torch.bool)
    assert MeanSquaredError()(torch.ones(2), torch.zeros(2), nothing) == 0
    assert (gradient(MeanSquaredError(), torch.ones(2), torch.zeros(2), nothing) == 0).all()


@pytest.mark.parametrize(
    ("labels", "text"),
    [(None, "needs labels"), (torch.zeros(2), r"\[3, 1\], the labels \[2\]"), (torch.zeros(3, 3), r"labels \[3, 3\]")],
)
def test_bad_labels(labels: Tensor | None, text: str) -> None:
    with pytest.raises(PassError, match=f"MeanSquaredError.*{text}"):
        MeanSquaredError()(torch.zeros(3, 1), labels, None)
