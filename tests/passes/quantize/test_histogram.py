"""Histogram: it counts every value in its bin, however its range grows, and misses no rare large value."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxopt.passes.quantize.histogram import BINS, Histogram, outside, subsample
from fxopt.passes.quantize.observers import quantiles


def histogram_of(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        low, high = torch.aminmax(batch)
        histogram.update(batch, float(low), float(high))
    return histogram


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4), st.integers(1, 400), st.integers(0, 2**16)),
        min_size=1,
        max_size=8,
    )
)
def test_a_growing_histogram_counts_every_value_in_its_bin(drawn: list[tuple[float, float, int, int]]) -> None:
    batches = [
        torch.rand(count, generator=torch.Generator().manual_seed(seed)) * spread + center
        for center, spread, count, seed in drawn
    ]
    histogram = histogram_of(*batches)
    values = torch.cat(batches).double()
    assert float(histogram.counts.sum()) == values.numel()
    assert histogram.counts.shape == (BINS,)
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))
    # Up to rounding at its edges, the number of values below each bin is the number that the histogram says.
    edges = histogram.start + histogram.width * torch.arange(BINS + 1, dtype=torch.float64)
    slack = 2 * histogram.width + 1e-6 * float(values.abs().max())
    below = torch.searchsorted(values.sort().values, edges - slack)
    above = torch.searchsorted(values.sort().values, edges + slack)
    counted = torch.cat([torch.zeros(1, dtype=torch.float64), histogram.counts.cumsum(0)])
    assert bool(((below <= counted) & (counted <= above)).all())


def test_rare_large_values_are_counted_though_the_sample_misses_them() -> None:
    values = torch.randn(1_000_000) * 0.25
    values[torch.arange(7, 1_000_000, 40_000)] = 25.0  # 25 values hold almost as much energy as all others
    histogram = histogram_of(values)
    assert float(histogram.counts.sum()) == pytest.approx(1_000_000)
    assert float(histogram.counts[BINS // 2 :].sum()) == pytest.approx(25)


def test_outside_finds_exactly_the_values_beyond() -> None:
    values = torch.randn(10_007)
    expected = values[(values >= 2.0) | (values < -2.5)]
    assert torch.equal(outside(values, -2.5, 2.0).sort().values, expected.sort().values)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 300))
def test_a_subsample_is_small_and_visits_every_place(count: int, limit: int) -> None:
    values = torch.arange(count)
    taken = subsample(values, limit)
    assert len(taken) <= limit or count <= limit
    stride = int(taken[1] - taken[0]) if len(taken) > 1 else 1
    assert stride == 1 or math.gcd(stride, count) == 1


@pytest.mark.parametrize("largest", [1e20, 1e38, 3.4e38])
def test_the_largest_numbers_of_float32_have_their_bins(largest: float) -> None:
    histogram = histogram_of(torch.randn(1000), torch.tensor([largest, -largest]))
    assert float(histogram.counts.sum()) == 1002
    assert math.isfinite(histogram.width)
    assert float(histogram.counts[histogram.edges()[:-1] > largest / 2].sum()) == 1


@pytest.mark.parametrize("kind", ["normal", "relu", "uniform", "exponential"])
def test_quantiles_are_those_of_numpy(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(60_000, generator=generator)
    if kind == "relu":
        values = values.relu()
    elif kind == "uniform":
        values = torch.rand(60_000, generator=generator) * 5 - 2
    elif kind == "exponential":
        values = -torch.rand(60_000, generator=generator).clamp(min=1e-6).log()
    shares = (0.001, 0.05, 0.5, 0.9, 0.9995)
    histogram = histogram_of(values[:20_000], values[20_000:].reshape(100, -1))
    expected = np.quantile(values.numpy(), shares)
    assert quantiles(histogram, shares) == pytest.approx(expected, abs=2 * histogram.width)
