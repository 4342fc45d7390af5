"""DecoupledKnowledge: against sums by hand, and the identity that the loss was derived from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxopt.errors import PassError
from fxopt.passes.distill import DecoupledKnowledge, KLDivergence
from tests.passes.distill.losses.cases import doubles, gradient, kl, softmax

STUDENT = [[2.0, -1.0, 0.5], [0.0, 1.0, 3.0]]
TEACHER = [[1.0, 0.0, -2.0], [4.0, 1.0, 1.0]]
LABELS = [0, 2]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_by_hand(temperature: float) -> None:
    target = others = 0.0
    for student, teacher, label in zip(STUDENT, TEACHER, LABELS, strict=True):
        found, expected = softmax(student, temperature), softmax(teacher, temperature)
        target += kl([expected[label], 1 - expected[label]], [found[label], 1 - found[label]])
        rest = [[logit for at, logit in enumerate(row) if at != label] for row in (teacher, student)]
        others += kl(softmax(rest[0], temperature), softmax(rest[1], temperature))
    by = DecoupledKnowledge(target_weight=2.0, other_weight=5.0, temperature=temperature, weight=0.5)
    value = by(torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(LABELS), None)
    assert value.item() == pytest.approx(0.5 * temperature**2 * (2 * target + 5 * others) / 2, rel=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.5, 8), st.integers(2, 6))
def test_kl_is_tckd_and_nckd_times_what_is_not_the_target(seed: int, temperature: float, classes: int) -> None:
    for number in range(3):  # the weight of NCKD differs by sample
        student, teacher = 3 * doubles(1, classes, seed=seed + number), 3 * doubles(1, classes, seed=seed + 99)
        labels = torch.tensor([number % classes])
        rest = 1 - float((teacher / temperature).softmax(-1)[0, labels])
        decoupled = DecoupledKnowledge(1.0, rest, temperature)(student, teacher, labels, None)
        torch.testing.assert_close(decoupled, KLDivergence(temperature)(student, teacher, None, None))


def test_parts_can_be_left_out() -> None:
    student, teacher, labels = doubles(3, 4), doubles(3, 4, seed=1), torch.tensor([1, 0, 3])
    both = DecoupledKnowledge(2.0, 3.0)(student, teacher, labels, None)
    parts = [DecoupledKnowledge(*weights)(student, teacher, labels, None) for weights in ((2.0, 0.0), (0.0, 3.0))]
    torch.testing.assert_close(parts[0] + parts[1], both)


def test_samples_without_a_class_do_not_count() -> None:
    student, teacher, labels = doubles(4, 3), doubles(4, 3, seed=1), torch.tensor([1, -100, 0, 2])
    keep = labels >= 0
    expected = DecoupledKnowledge()(student[keep], teacher[keep], labels[keep], None)
    torch.testing.assert_close(DecoupledKnowledge()(student, teacher, labels, None), expected)
    assert (gradient(DecoupledKnowledge(), student, teacher, labels, None)[1] == 0).all()


def test_classes_in_the_second_dimension() -> None:
    student, teacher, labels = doubles(2, 5, 3), doubles(2, 5, 3, seed=1), torch.randint(0, 5, (2, 3))
    expected = DecoupledKnowledge()(student.mT, teacher.mT, labels, None)
    torch.testing.assert_close(DecoupledKnowledge()(student, teacher, labels, None), expected)


def test_a_teacher_that_is_sure() -> None:
    """Where 1 - p_y is below what float32 resolves, and logits are as large as float16 has them."""
    student, teacher, labels = torch.zeros(1, 3), torch.tensor([[6e4, -6e4, 0.0]]), torch.tensor([0])
    for left, right in ((student, teacher), (teacher, student)):
        value = DecoupledKnowledge(temperature=1.0)(left.half(), right.half(), labels, None)
        assert value.isfinite()
        assert gradient(DecoupledKnowledge(temperature=1.0), left.half(), right.half(), labels, None).isfinite().all()


def test_bad_input() -> None:
    logits, labels = torch.randn(2, 3), torch.tensor([0, 1])
    with pytest.raises(PassError, match="DecoupledKnowledge needs labels"):
        DecoupledKnowledge()(logits, logits, None, None)
    with pytest.raises(PassError, match="two classes or more"):
        DecoupledKnowledge()(logits[:, :1], logits[:, :1], torch.tensor([0, 0]), None)
    with pytest.raises(PassError, match="a label 3"):
        DecoupledKnowledge()(logits, logits, labels + 2, None)
    for weights in ((0.0, 0.0), (-1.0, 8.0)):
        with pytest.raises(PassError, match="target_weight"):
            DecoupledKnowledge(*weights)
