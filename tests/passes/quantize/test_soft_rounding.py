"""Learned rounding on tasks whose best roundings are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxopt.passes.quantize.soft_rounding import Grid, learn_rounding, mean_error


@dataclass(frozen=True)
class Product:
    """Rows times a weight, against other rows' product, as one batch."""

    rows: Tensor
    target: Tensor
    batches: int = 1

    def difference(self, weights: Sequence[Tensor], batch: int, generator: torch.Generator | None) -> Tensor:
        return self.rows @ weights[0].T - self.target


def unit_grid(weight: Tensor, limits: tuple[int, int] = (-8, 7), scale: float = 1.0) -> Grid:
    return Grid(weight, torch.full((len(weight), 1), scale), torch.zeros(len(weight), 1), limits)


def test_by_hand() -> None:
    """Both inputs are always equal, so that 0.4 + 0.4 is nearer to 1 + 0 than to 0 + 0."""
    weight = torch.tensor([[0.4, 0.4]])
    rows = torch.ones(4, 2)
    grid = unit_grid(weight)
    (found,) = learn_rounding([grid], [grid.nearest()], Product(rows, rows @ weight.T), 100)
    assert found.sum() in (0.0, 1.0)  # plain rounding gives 0: a start from there can stay
    grid = unit_grid(torch.tensor([[0.4, 0.45]]))
    (found,) = learn_rounding([grid], [torch.tensor([[0.0, 1.0]])], Product(rows, rows @ grid.weight.T), 100)
    assert found.tolist() == [[0.0, 1.0]]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_never_worse_than_the_start_or_plain_rounding(seed: int) -> None:
    torch.manual_seed(seed)
    weight, rows = torch.randn(2, 6), torch.randn(64, 2) @ torch.randn(2, 6) + 0.1 * torch.randn(64, 6)
    grid = unit_grid(weight, scale=0.5)
    task = Product(rows, rows @ weight.T)
    start = grid.at(torch.floor(weight / 0.5) + torch.randint(0, 2, weight.shape))
    (found,) = learn_rounding([grid], [start], task, 30)
    assert mean_error(task, [found]) <= min(mean_error(task, [start]), mean_error(task, [grid.nearest()]))
    assert torch.allclose(found / 0.5, (found / 0.5).round())
    assert bool(((found - weight).abs() < 0.5001).all())  # one of the two steps around the exact value


def test_from_exact_weights_it_finds_one_of_the_best_roundings() -> None:
    weight, rows = torch.randn(1, 8), torch.randn(64, 2) @ torch.randn(2, 8) + 0.1 * torch.randn(64, 8)
    grid = unit_grid(weight, scale=0.5)
    task = Product(rows, rows @ weight.T)
    (found,) = learn_rounding([grid], [None], task, 300)
    floor, ways = torch.floor(weight / 0.5), itertools.product((0.0, 1.0), repeat=8)
    errors = sorted(mean_error(task, [grid.at(floor + torch.tensor([up]))]) for up in ways)
    assert mean_error(task, [found]) <= errors[12]  # of 256


def test_the_target_may_be_that_of_other_inputs() -> None:
    """Asymmetric reconstruction: inputs that came out a quarter too small are made up for."""
    weight = torch.tensor([[1.4, 2.4, -1.4]])
    rows = torch.rand(50, 3) + 0.5
    grid = unit_grid(weight)
    (found,) = learn_rounding([grid], [grid.nearest()], Product(0.75 * rows, rows @ weight.T), 200)
    assert found.sum() > grid.nearest().sum()


def test_limits_hold_and_exact_weights_stay() -> None:
    weight, rows = torch.tensor([[9.3, -2.5, 1.0]]), torch.randn(20, 3)
    grid = unit_grid(weight, (-7, 7))
    (found,) = learn_rounding([grid], [grid.nearest()], Product(rows, rows @ weight.T), 50)
    assert found[0, 0] == 7 and found[0, 1] in (-3, -2)
    whole = unit_grid(torch.tensor([[3.0, -2.0, 1.0]]))
    (found,) = learn_rounding([whole], [whole.nearest() + 1], Product(rows, rows @ whole.weight.T), 50)
    assert torch.equal(found, whole.weight)


@pytest.mark.parametrize("zero", [0.0, 3.0])
def test_grid_clamps_around_its_zero_point(zero: float) -> None:
    grid = Grid(torch.tensor([-10.0, 0.2, 10.0]), torch.tensor(0.5), torch.tensor(zero), (-4, 3))
    assert grid.nearest().tolist() == [(-4 - zero) / 2, min(0.0, (3 - zero) / 2), (3 - zero) / 2]
