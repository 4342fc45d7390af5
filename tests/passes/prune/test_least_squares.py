"""Moments and solve(): against numpy's least squares on the rows themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fxopt.passes.prune.least_squares import Moments, best_change, solve

GROUPS, ROWS, FEATURES, OUTPUTS = 2, 40, 5, 3


def rows(count: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(GROUPS, count, FEATURES) + torch.arange(FEATURES)
    return x, x @ torch.randn(GROUPS, FEATURES, OUTPUTS) + torch.randn(GROUPS, count, OUTPUTS) + 2


def moments(x: torch.Tensor, r: torch.Tensor) -> Moments:
    result = Moments(x.shape[0], x.shape[2], r.shape[2])
    for part in range(0, x.shape[1], 16):
        result.add(x[:, part : part + 16], r[:, part : part + 16])
    return result


@pytest.mark.parametrize("ridge", [0.0, 0.1, 10.0])
def test_solve_is_ridge_regression_with_a_free_bias(ridge: float) -> None:
    x, r = rows()
    found = solve(moments(x, r), ridge)
    for group in range(GROUPS):
        left, right = x[group].double().numpy(), r[group].double().numpy()
        strength = np.sqrt(ridge * left.var(0).mean() * ROWS)
        damped = np.concatenate([left - left.mean(0), strength * np.eye(FEATURES)])
        missing = np.concatenate([right - right.mean(0), np.zeros((FEATURES, OUTPUTS))])
        weights = np.linalg.lstsq(damped, missing, rcond=None)[0].T
        np.testing.assert_allclose(found[group, :, :-1], weights, atol=1e-6)
        np.testing.assert_allclose(found[group, :, -1], right.mean(0) - weights @ left.mean(0), atol=1e-6)


def test_error_is_that_of_the_rows() -> None:
    x, r = rows()
    change = torch.randn(GROUPS, OUTPUTS, FEATURES + 1, dtype=torch.float64)
    left = r.double() - x.double() @ change[..., :-1].mT - change[:, None, :, -1]
    assert moments(x, r).error(change) == pytest.approx(float(left.square().sum()))


def test_inputs_that_never_change_are_left_to_the_bias() -> None:
    x, r = torch.full((1, 9, 4), 3.0), torch.full((1, 9, 2), 5.0)
    found = solve(moments(x, r), 1e-6)
    torch.testing.assert_close(found[..., :-1] @ x[0, 0].double() + found[..., -1], r[:, 0].double())
    assert bool(found.isfinite().all()) and float(found[..., :-1].abs().max()) < 1e-6


def test_the_ridge_is_the_one_that_does_best_on_other_rows() -> None:
    x, r = rows(6)  # hardly more rows than features: without a ridge, noise is fitted
    fitted, judged = moments(x, r), moments(*rows(400))
    ridges = (1e-6, 1e-2, 1.0)
    best = best_change(fitted, judged, ridges)
    errors = [judged.error(solve(fitted, ridge)) for ridge in ridges]
    assert best is None or judged.error(best) == min(errors) < judged.power


def test_nothing_is_changed_where_every_change_is_worse() -> None:
    x, r = rows()
    assert best_change(moments(x, r), moments(x, -r), (1e-6, 1.0)) is None
