"""weight_statistics(): the numbers are those of numpy and scipy's definitions, and the table shows them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fxopt.errors import PassError
from fxopt.graph.rewrite import get_attribute
from fxopt.passes import FoldMasks, Magnitude, MaskWeights, Sparsity, weight_statistics
from tests.passes.cleanup.checks import program_of


def test_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([[0.0, 0.5, -1.0, 2.0]]))
    program = program_of(lambda m, x: nn.functional.linear(x, m.weight), torch.randn(2, 4), weight=weight)
    found = weight_statistics(program, thresholds=(0.5, 1.5)).weights[0]
    assert (found.name, found.shape, found.count, found.zeros) == ("weight", (1, 4), 4, 1)
    assert found.mean == 0.375 and found.deviation == pytest.approx(math.sqrt((5.25 - 4 * 0.375**2) / 4))
    assert found.below == {0.5: 0.25, 1.5: 0.75}  # strictly below, as Magnitude takes them
    assert found.quantiles[0.5] == 0.5 and found.quantiles[0.75] == 1.0 and found.quantiles[1.0] == 2.0


def test_against_numpy() -> None:
    layers = nn.Sequential(nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 30))
    found = weight_statistics(program_of(lambda m, x: m.layers(x), torch.randn(2, 50), layers=layers))
    values = [weight.detach().numpy().ravel() for weight in layers.parameters() if weight.ndim == 2]
    for row, expected in zip((*found.weights, found.total), (*values, np.concatenate(values)), strict=True):
        expected = expected.astype(np.float64)
        centred = expected - expected.mean()
        assert row.mean == pytest.approx(expected.mean()) and row.deviation == pytest.approx(expected.std())
        assert row.kurtosis == pytest.approx((centred**4).mean() / expected.var() ** 2, rel=1e-4)
        for share, quantile in row.quantiles.items():
            assert quantile == np.quantile(np.abs(expected), share, method="inverted_cdf").astype(np.float32)
        assert row.below == {t: pytest.approx((np.abs(expected) < np.float32(t)).mean()) for t in row.below}


def test_a_threshold_takes_what_the_statistics_say() -> None:
    program = program_of(lambda m, x: m.layer(x), torch.randn(2, 30), layer=nn.Linear(30, 30))
    share = weight_statistics(program, thresholds=(0.1,)).total.below[0.1]
    for result in (masked := MaskWeights(Magnitude(0.1))(program), FoldMasks()(masked)):
        found = weight_statistics(result)
        assert found.total.zeros == round(share * 900) > 0


def test_masked_weights_are_zeros() -> None:
    program = program_of(lambda m, x: m.layer(x), torch.randn(2, 8), layer=nn.Linear(8, 8))
    assert get_attribute(program.module, "layer.weight").count_nonzero() == 64
    assert weight_statistics(MaskWeights(Sparsity(0.25))(program)).total.zeros == 16


def test_the_table() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    program = program_of(lambda m, x: nn.functional.linear(x, m.weight), torch.randn(2, 2), weight=weight)
    head, row, total = str(weight_statistics(program, thresholds=(2.0,))).splitlines()
    assert head.split()[:6] == ["weight", "shape", "zeros", "mean", "deviation", "kurtosis"]
    assert row.split() == ["weight", "2x2", "0.0%", "0", "1", "1", *["1"] * 7, "100.0%"]
    assert total.split()[:2] == ["total", "4"]
    assert len(head) == len(row) == len(total)


def test_equal_weights_have_no_kurtosis() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    program = program_of(lambda m, x: nn.functional.linear(x, m.weight), torch.randn(2, 2), weight=weight)
    assert math.isnan(weight_statistics(program).total.kurtosis)


def test_without_weights() -> None:
    with pytest.raises(PassError, match="nothing to describe"):
        weight_statistics(program_of(lambda m, x: torch.relu(x), torch.randn(2, 2)))
