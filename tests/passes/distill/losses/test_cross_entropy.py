"""CrossEntropy: against sums by hand and torch's own function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_outputs import TokenClassifierOutput

from fxopt.errors import PassError
from fxopt.passes.distill import CrossEntropy
from tests.passes.distill.losses.cases import doubles, gradient, softmax

LOGITS = [[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]]


def test_by_hand() -> None:
    expected = -(math.log(softmax(LOGITS[0])[2]) + math.log(softmax(LOGITS[1])[1])) / 2
    found = CrossEntropy(weight=0.1)(torch.tensor(LOGITS), torch.tensor([2, 1]), None)
    assert found.item() == pytest.approx(0.1 * expected, rel=1e-6)


def test_label_smoothing_by_hand() -> None:
    log = [math.log(p) for p in softmax(LOGITS[0])]
    expected = -(0.7 * log[2] + 0.3 * sum(log) / 3)
    found = CrossEntropy(label_smoothing=0.3)(torch.tensor(LOGITS[:1]), torch.tensor([2]), None)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_gradient_is_the_closed_form() -> None:
    logits, labels = doubles(5, 4), torch.tensor([0, 3, -100, 1, 1])
    expected = (logits.softmax(-1) - functional.one_hot(labels.clamp(min=0), 4)) / 4
    expected[2] = 0
    torch.testing.assert_close(gradient(CrossEntropy(), logits, labels, None), expected)


def test_the_mean_is_over_what_counts() -> None:
    logits, labels = doubles(2, 3, 4), torch.tensor([[1, 2, -100], [3, 999, 0]])
    valid = torch.tensor([[True, True, True], [True, False, True]])
    rows, classes = torch.cat([logits[0, :2], logits[1, [0, 2]]]), torch.tensor([1, 2, 3, 0])
    torch.testing.assert_close(CrossEntropy()(logits, labels, valid), functional.cross_entropy(rows, classes))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_torch_ignores_the_same(label_smoothing: float) -> None:
    logits, labels = doubles(4, 5, 3, 2), torch.randint(0, 5, (4, 3, 2))
    labels[0] = -100
    expected = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    by = CrossEntropy(label_smoothing=label_smoothing)
    torch.testing.assert_close(by(logits, labels, None), expected)  # the second dimension has the classes
    torch.testing.assert_close(by(logits.movedim(1, -1), labels, None), expected)  # the last one has
    torch.testing.assert_close(by(logits, labels.int(), torch.ones(4, dtype=torch.bool)), expected)


def test_the_last_dimension_comes_first_where_both_fit() -> None:
    logits, labels = doubles(2, 3, 3), torch.tensor([[0, 1, 2], [2, 2, 0]])
    expected = functional.cross_entropy(logits.reshape(6, 3), labels.reshape(6))
    torch.testing.assert_close(CrossEntropy()(logits, labels, None), expected)


def test_a_mask_of_tokens_says_nothing_of_labels_of_samples() -> None:
    logits, labels, valid = doubles(2, 3), torch.tensor([0, 2]), torch.tensor([[True, False, False], [True] * 3])
    torch.testing.assert_close(CrossEntropy()(logits, labels, valid), functional.cross_entropy(logits, labels))


@dataclass
class Other:
    logits: Tensor


@pytest.mark.parametrize("wrap", [lambda x: (x, x + 1), lambda x: {"logits": x, "hidden": x + 1}, lambda x: [None, x]])
def test_logits_are_the_first_tensor(wrap: Any) -> None:
    logits, labels = doubles(3, 4), torch.tensor([0, 3, 1])
    torch.testing.assert_close(CrossEntropy()(wrap(logits), labels, None), functional.cross_entropy(logits, labels))


def test_logits_of_a_model_output() -> None:
    logits, labels = torch.randn(2, 5, 3), torch.randint(0, 3, (2, 5))
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    result = TokenClassifierOutput(logits=logits, hidden_states=(torch.randn(2, 5, 8),))
    torch.testing.assert_close(CrossEntropy()(result, labels, None), expected)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (None, "needs labels, and the item has none"),
        (torch.zeros(3), r"labels are torch.float32; give the numbers of classes"),
        (torch.zeros(4, dtype=torch.long), r"labels \[4\] do not fit logits \[3, 5\]"),
        (torch.zeros(3, 5, dtype=torch.long), r"labels \[3, 5\] do not fit logits \[3, 5\]"),
        (torch.tensor([0, 5, 1]), r"there is a label 5, but logits \[3, 5\] of 5 classes"),
    ],
)
def test_bad_labels(labels: Tensor | None, text: str) -> None:
    with pytest.raises(PassError, match=f"CrossEntropy.*{text}"):
        CrossEntropy()(torch.randn(3, 5), labels, None)


def test_bad_results() -> None:
    with pytest.raises(PassError, match="a Other, holds no tensor"):
        CrossEntropy()(Other(torch.randn(3, 5)), torch.zeros(3, dtype=torch.long), None)
    with pytest.raises(PassError, match=r"labels \[3\] do not fit logits \[3\]"):
        CrossEntropy()(torch.randn(3), torch.zeros(3, dtype=torch.long), None)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_bad_label_smoothing(smoothing: float) -> None:
    with pytest.raises(PassError, match="label_smoothing="):
        CrossEntropy(label_smoothing=smoothing)
