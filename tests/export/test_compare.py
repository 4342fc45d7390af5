"""Errors of outputs, against figures worked out by hand."""

import math

import pytest
import torch

from fxopt.export.compare import compare_output, compare_outputs


def test_errors_are_relative_to_the_range() -> None:
    result = compare_output("y", torch.tensor([0.0, 4.0, -1.0]), torch.tensor([0.0, 4.0, -0.5]))
    assert result.max_error == pytest.approx(0.5)
    assert result.relative == pytest.approx(0.5 / 5.0)
    assert result.sqnr == pytest.approx(10 * math.log10(17 / 0.25))


def test_equal_tensors_have_no_error() -> None:
    result = compare_output("y", torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]))
    assert (result.max_error, result.relative, result.sqnr, result.agreement) == (0.0, 0.0, math.inf, 1.0)


def test_a_constant_output_is_judged_by_its_size() -> None:
    assert compare_output("y", torch.full((3,), 2.0), torch.full((3,), 2.02)).relative == pytest.approx(0.01, rel=1e-3)
    assert compare_output("y", torch.zeros(3), torch.full((3,), 1e-9)).relative == math.inf


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2),
        torch.zeros(3, dtype=torch.float64),
        torch.tensor([0.0, math.nan, 0.0]),
        torch.tensor([0.0, math.inf, 0.0]),
    ],
)
def test_shape_dtype_and_stray_nan_or_infinity_are_infinite_errors(value: torch.Tensor) -> None:
    assert compare_output("y", torch.zeros(3), value).relative == math.inf


def test_the_same_nan_and_infinities_are_equal() -> None:
    both = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    assert compare_output("y", both, both.clone()).max_error == 0.0
    assert compare_output("y", both, torch.tensor([1.0, math.nan, -math.inf, math.inf])).relative == math.inf


def test_agreement_counts_rows_with_the_same_maximum() -> None:
    left, right = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[2.0, 1.0], [3.0, 0.0]])
    assert compare_output("y", left, right).agreement == 0.5


def test_worse_takes_the_worst_of_each_figure() -> None:
    reference = torch.tensor([0.0, 1.0])
    first, second = compare_outputs(["y", "y"], [reference] * 2, [torch.tensor([0.0, 0.9]), torch.tensor([0.3, 1.0])])
    worst = first.worse(second)
    assert worst.max_error == pytest.approx(0.3) and worst.sqnr == second.sqnr
    assert first.worse(None) is first
