"""What all losses have in common: padding, precision, gradients, empty shares of a batch, and bad input."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxopt.errors import PassError
from fxopt.graph.taps import Tap, tap_losses
from fxopt.passes.distill import CrossEntropy, KLDivergence, MeanSquaredError
from tests.passes.distill.losses.cases import LOSSES, MEANS, doubles, gradient

every = pytest.mark.parametrize("loss", LOSSES, ids=repr)
GARBAGE = (math.nan, math.inf, -1e30, 0.0)


def mask(lengths: list[int], tokens: int) -> Tensor:
    return torch.arange(tokens) < torch.tensor(lengths).unsqueeze(1)


def padded(value: Tensor, more: int, filler: float) -> Tensor:
    return torch.cat([value, value.new_full((len(value), more, *value.shape[2:]), filler)], 1)


@every
@settings(max_examples=12, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), more=st.integers(1, 3), data=st.data())
def test_padding_changes_nothing(loss: Any, lengths: list[int], more: int, data: st.DataObject) -> None:
    filler = data.draw(st.sampled_from(GARBAGE))
    shape = (len(lengths), max(lengths), 5)
    student, teacher, labels = doubles(*shape), doubles(*shape, seed=1), torch.randint(0, 5, shape[:2])
    short = mask(lengths, shape[1])
    long = padded(short, more, False)
    values = [padded(value, more, filler) for value in (student, teacher)]
    values = [value.masked_fill(~long.unsqueeze(-1), filler) for value in values]
    more_labels = padded(labels, more, 999)
    torch.testing.assert_close(loss(*values, more_labels, long), loss(student, teacher, labels, short))
    found = gradient(loss, values[0], values[1], more_labels, long)
    expected = gradient(loss, student, teacher, labels, short)
    torch.testing.assert_close(found[:, : shape[1]], expected)
    assert (found[~long] == 0).all()


@every
def test_all_valid_is_no_mask(loss: Any) -> None:
    student, teacher, labels = doubles(3, 4, 5), doubles(3, 4, 5, seed=1), torch.randint(0, 5, (3, 4))
    expected = loss(student, teacher, labels, None)
    for valid in (torch.ones(3, 4, dtype=torch.bool), torch.ones(3, dtype=torch.bool)):
        torch.testing.assert_close(loss(student, teacher, labels, valid), expected)


@every
def test_samples_that_do_not_count(loss: Any) -> None:
    student, teacher, labels = doubles(4, 3, 5), doubles(4, 3, 5, seed=1), torch.randint(0, 5, (4, 3))
    valid = torch.tensor([True, False, True, True])
    expected = loss(student[valid], teacher[valid], labels[valid], None)
    student[1], teacher[1] = math.nan, math.inf
    torch.testing.assert_close(loss(student, teacher, labels, valid), expected)


@every
@pytest.mark.parametrize("dims", [1, 2])
def test_nothing_valid_is_zero(loss: Any, dims: int) -> None:
    student, teacher, labels = doubles(3, 2, 5), doubles(3, 2, 5, seed=1), torch.zeros(3, 2, dtype=torch.long)
    valid = torch.zeros((3, 2)[:dims], dtype=torch.bool)
    assert loss(student, teacher, labels, valid) == 0
    assert (gradient(loss, student, teacher, labels, valid) == 0).all()


@pytest.mark.parametrize("loss", LOSSES[1:], ids=repr)
def test_a_mask_of_tokens_says_nothing_of_values_without(loss: Any) -> None:
    student, teacher, labels = doubles(3, 5), doubles(3, 5, seed=1), torch.tensor([0, 3, 1])
    valid = mask([1, 5, 2], 5)  # as many tokens as there are classes
    assert loss(student, teacher, labels, valid) == loss(student, teacher, labels, None)


@pytest.mark.parametrize("loss", MEANS, ids=repr)
def test_halves_of_a_batch(loss: Any) -> None:
    student, teacher, labels = doubles(6, 2, 5), doubles(6, 2, 5, seed=1), torch.randint(0, 5, (6, 2))
    halves = [loss(student[rows], teacher[rows], labels[rows], None) for rows in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, loss(student, teacher, labels, None))


@every
def test_gradients_are_those_of_finite_differences(loss: Any) -> None:
    teacher, labels, valid = doubles(3, 4, 5, seed=1), torch.randint(0, 5, (3, 4)), mask([4, 1, 3], 4)
    student = doubles(3, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: loss(value, teacher, labels, valid), (student,))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss: Any, dtype: torch.dtype) -> None:
    student, teacher = (30 * doubles(4, 3, 5, seed=seed).to(dtype) for seed in (0, 1))
    labels = torch.randint(0, 5, (4, 3))
    value = loss(student, teacher, labels, None)
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), labels, None), rtol=0, atol=0)
    assert gradient(loss, student, teacher, labels, None).isfinite().all()


@every
def test_autocast_changes_nothing(loss: Any) -> None:
    student, teacher = (doubles(4, 3, 5, seed=seed).float() for seed in (0, 1))
    labels = torch.randint(0, 5, (4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher, labels, None)
    torch.testing.assert_close(value, loss(student, teacher, labels, None), rtol=0, atol=0)


@every
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_values(loss: Any, value: float) -> None:
    """Zeros, and embeddings that are all the same, on one side or both: the loss and its gradient are finite."""
    constant, other, labels = torch.full((3, 2, 5), value), torch.randn(3, 2, 5), torch.zeros(3, 2, dtype=torch.long)
    for student, teacher in ((constant, constant), (constant, other), (other, constant)):
        assert loss(student, teacher, labels, None).isfinite()
        assert gradient(loss, student, teacher, labels, None).isfinite().all()


@every
def test_equal_values_are_the_minimum(loss: Any) -> None:
    student, labels = doubles(4, 3, 5), torch.randint(0, 5, (4, 3))
    least = loss(student, student, labels, None)
    assert gradient(loss, student, student, labels, None).abs().max() < 1e-6
    assert least < loss(student + 0.3 * doubles(4, 3, 5, seed=1), student, labels, None)
    assert least == 0 or "BinaryCrossEntropy" in repr(loss)


@every
def test_weights_scale(loss: Any) -> None:
    student, teacher, labels = doubles(4, 3, 5), doubles(4, 3, 5, seed=1), torch.randint(0, 5, (4, 3))
    name = "weight" if hasattr(loss, "weight") else "class_weight"
    alone = loss if name == "weight" else dataclasses.replace(loss, sample_weight=0.0)
    twice = dataclasses.replace(alone, **{name: 2 * getattr(loss, name)})
    torch.testing.assert_close(twice(student, teacher, labels, None), 2 * alone(student, teacher, labels, None))


def test_losses_are_what_taps_call() -> None:
    outputs, labels = (doubles(4, 5), doubles(4, 5, seed=1)), torch.tensor([0, 4, 2, 2])
    taps = [Tap(f"tap{number}", loss, 0, 1) for number, loss in enumerate(LOSSES[1:])]
    found = tap_losses(taps, outputs, labels, None, None)
    assert found == {tap.name: tap.loss(*outputs, labels, None) for tap in taps}


@pytest.mark.parametrize("loss", [*LOSSES, CrossEntropy(), MeanSquaredError()], ids=repr)
@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf])
def test_options_that_are_not_positive(loss: Any, number: float) -> None:
    for field in dataclasses.fields(loss):
        if field.name in ("weight", "temperature"):
            with pytest.raises(PassError, match=rf"{type(loss).__name__}\({field.name}="):
                dataclasses.replace(loss, **{field.name: number})


@every
def test_shapes_that_do_not_fit(loss: Any) -> None:
    labels = torch.zeros(4, 3, dtype=torch.long)
    with pytest.raises(PassError, match=rf"{type(loss).__name__}: .*\[4, 3, 5\].*\[2, 3, 5\]"):
        loss(torch.randn(4, 3, 5), torch.randn(2, 3, 5), labels, None)
    with pytest.raises(PassError, match=rf"{type(loss).__name__}: .*\[7, 3\].*first dimension is the batch"):
        loss(torch.randn(4, 3, 5), torch.randn(4, 3, 5), labels, torch.ones(7, 3, dtype=torch.bool))


@every
def test_values_that_are_no_real_numbers(loss: Any) -> None:
    integers = torch.ones(4, 3, 5, dtype=torch.long)
    with pytest.raises(PassError, match="real numbers"):
        loss(integers, integers, torch.zeros(4, 3, dtype=torch.long), None)


def test_too_few_dimensions() -> None:
    with pytest.raises(PassError, match=r"needs values \[batch, ..., classes\]"):
        KLDivergence()(torch.randn(4), torch.randn(4), None, None)
