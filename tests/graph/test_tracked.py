"""tracked_grid and weight_grid: ranges by hand, and torch's rules for ops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxopt.graph.grids import power_of_two
from fxopt.graph.tracked import tracked_grid, weight_grid


def ends(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_ranges_move_by_hand() -> None:
    state = ends((-1.0, 1.0), (0.0, 9.0))
    x = torch.tensor([-3.0, 0.5, 5.0])
    scale, zero_point = tracked_grid(x, state, 0, 0, 255, False, False, 0.25, True)
    assert state.tolist() == [[-1.5, 2.0], [0.0, 9.0]]
    assert float(scale) == pytest.approx(10.5 / 255) and int(zero_point) == round(1.5 / 10.5 * 255)
    tracked_grid(torch.tensor([2.0, 3.0]), state, 0, 0, 255, False, False, 0.5, True)
    assert state[0].tolist() == [-0.75, 2.5]  # ranges hold zero
    again, _ = tracked_grid(100 * x, state, 1, 0, 255, False, False, 0.5, False)
    assert state.tolist() == [[-0.75, 2.5], [0.0, 9.0]] and float(again) == pytest.approx(9.75 / 255)


@pytest.mark.parametrize("fixed_point", [False, True])
def test_symmetric_grids(fixed_point: bool) -> None:
    scale, zero_point = tracked_grid(torch.ones(1), ends((-4.0, 1.0)), 0, -128, 127, True, fixed_point, 0.1, False)
    assert int(zero_point) == 0 and float(scale) == pytest.approx(1 / 16 if fixed_point else 4 / 127)


def test_a_range_of_zero_has_a_scale() -> None:
    scale, zero_point = tracked_grid(torch.zeros(3), ends((0.0, 0.0)), 0, 0, 255, False, False, 0.1, True)
    assert float(scale) == pytest.approx(1 / 255) and int(zero_point) == 0


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("fixed_point", [False, True])
def test_grids_of_weights(axis: int | None, fixed_point: bool) -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    largest = weight.detach().abs().max() if axis is None else weight.detach().abs().amax(1 if axis == 0 else 0)
    expected = largest * 0.9 / 7
    share = torch.full(expected.shape, 0.9, dtype=torch.float64)
    scale, zero_point = weight_grid(weight, share, axis, 7, fixed_point)
    torch.testing.assert_close(scale, power_of_two(expected) if fixed_point else expected)
    assert zero_point.dtype is torch.int8 and zero_point.shape == scale.shape and not zero_point.any()


def test_torch_accepts_schema_fake_kernel_and_autograd() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    torch.library.opcheck(tracked_grid, (x, ends((-1.0, 1.0)), 0, 0, 255, False, False, 0.1, False))
    torch.library.opcheck(weight_grid, (x, torch.ones(3, dtype=torch.float64), 0, 127, False))
