"""Observers: hand-computed scales, the brute-force optimum, and streaming that loses nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxopt.passes.quantize.observers import (
    BINS,
    MeanSquaredError,
    MinMax,
    RangeObserver,
    affine_parameters,
    outside,
    subsample,
)


def feed(observer: RangeObserver, *batches: Tensor) -> RangeObserver:
    for batch in batches:
        low, high = torch.aminmax(batch)
        observer.update(batch, float(low), float(high))
    return observer


def quantization_error(values: Tensor, low: float, high: float) -> float:
    """Compute the squared error of quantizing to [low, high] in 256 steps, one value at a time in float64."""
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    steps = ((values.double() / scale).round() + zero_point).clamp(0, 255) - zero_point
    return float((steps * scale - values.double()).square().sum())


@pytest.mark.parametrize(
    ("low", "high", "limits", "scale", "zero_point"),
    [
        (-1.0, 3.0, (0, 255), 4 / 255, 64),  # 1 / (4 / 255) = 63.75
        (0.0, 6.0, (0, 255), 6 / 255, 0),
        (-2.0, 0.0, (0, 255), 2 / 255, 255),
        (-1.0, 3.0, (-128, 127), 4 / 255, -64),
        (0.0, 0.0, (0, 255), 1 / 255, 0),
        (0.0, 1e-30, (0, 255), 1 / 255, 0),
    ],
)
def test_affine_parameters(low: float, high: float, limits: tuple[int, int], scale: float, zero_point: int) -> None:
    found_scale, found_zero_point = affine_parameters(low, high, *limits)
    assert found_scale == pytest.approx(scale, rel=1e-6)
    assert found_zero_point == zero_point


def test_min_max_keeps_the_extremes_and_zero() -> None:
    assert feed(MinMax(), torch.tensor([1.0, 2.0]), torch.tensor([[0.5], [3.0]])).range(255) == (0.0, 3.0)
    assert feed(MinMax(), torch.tensor([-4.0, -2.0])).range(255) == (-4.0, 0.0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", ["normal", "relu", "laplace", "skewed", "outlier"])
def test_mse_is_close_to_the_brute_force_optimum(shape: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(20_000, generator=generator)
    if shape == "relu":
        values = values.relu()
    elif shape == "laplace":
        values = values.sign() * -torch.rand(20_000, generator=generator).clamp(min=1e-6).log()
    elif shape == "skewed":
        values = values.exp() - 0.5
    elif shape == "outlier":
        values[17] = 40.0
    low, high = feed(MeanSquaredError(), values).range(255)
    smallest, largest = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    fractions = [0.05 * step for step in range(1, 21)]
    candidates = [(smallest * a, largest * b) for a in (fractions if smallest < 0 else [1.0]) for b in fractions]
    best = min(quantization_error(values, *candidate) for candidate in candidates)
    assert quantization_error(values, low, high) <= 1.03 * best
    assert quantization_error(values, low, high) <= quantization_error(values, smallest, largest) * 1.01
    assert smallest <= low <= 0 <= high <= largest


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4), st.integers(1, 400), st.integers(0, 2**16)),
        min_size=1,
        max_size=8,
    )
)
def test_a_growing_histogram_counts_every_value_in_its_bin(drawn: list[tuple[float, float, int, int]]) -> None:
    observer = MeanSquaredError()
    batches = [
        torch.rand(count, generator=torch.Generator().manual_seed(seed)) * spread + center
        for center, spread, count, seed in drawn
    ]
    feed(observer, *batches)
    values = torch.cat(batches).double()
    assert float(observer.counts.sum()) == values.numel()
    assert observer.counts.shape == (BINS,)
    assert (observer.low, observer.high) == (float(values.min()), float(values.max()))
    # Up to rounding at its edges, the number of values below each bin is the number that the histogram says.
    edges = observer.start + observer.width * torch.arange(BINS + 1, dtype=torch.float64)
    slack = 2 * observer.width + 1e-6 * float(values.abs().max())
    below = torch.searchsorted(values.sort().values, edges - slack)
    above = torch.searchsorted(values.sort().values, edges + slack)
    counted = torch.cat([torch.zeros(1, dtype=torch.float64), observer.counts.cumsum(0)])
    assert bool(((below <= counted) & (counted <= above)).all())


def test_rare_large_values_are_counted_though_the_sample_misses_them() -> None:
    values = torch.randn(1_000_000) * 0.25
    values[torch.arange(7, 1_000_000, 40_000)] = 25.0  # 25 values hold almost as much energy as all others
    observer = feed(MeanSquaredError(), values)
    low, high = observer.range(255)
    best = min(quantization_error(values, -0.25 * a, 25.0 * b) for a in (1, 2, 4) for b in (0.05, 0.1, 0.3, 0.6, 1.0))
    assert quantization_error(values, low, high) <= 1.05 * best
    assert isinstance(observer, MeanSquaredError)
    assert float(observer.counts.sum()) == pytest.approx(1_000_000)
    assert float(observer.counts[BINS // 2 :].sum()) == pytest.approx(25)


def test_outside_finds_exactly_the_values_beyond() -> None:
    values = torch.randn(10_007)
    expected = values[(values >= 2.0) | (values < -2.5)]
    assert torch.equal(outside(values, -2.5, 2.0).sort().values, expected.sort().values)


def test_constant_batches_then_another_value() -> None:
    observer = feed(MeanSquaredError(), torch.full((7,), 3.0))
    assert observer.range(255) == (0.0, 3.0)
    feed(observer, torch.full((2, 3), 3.0), torch.tensor([-1.0]))
    assert isinstance(observer, MeanSquaredError)
    assert float(observer.counts.sum()) == 14
    low, high = observer.range(255)
    assert low == pytest.approx(-1.0, rel=0.02) and high == pytest.approx(3.0, rel=0.02)


def test_an_observer_that_saw_nothing_or_zeros() -> None:
    assert feed(MeanSquaredError(), torch.zeros(5)).range(255) == (0.0, 0.0)
    assert MeanSquaredError().range(255) == (0.0, 0.0)
    assert MinMax().range(255) == (0.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 300))
def test_a_subsample_is_small_and_visits_every_place(count: int, limit: int) -> None:
    values = torch.arange(count)
    taken = subsample(values, limit)
    assert len(taken) <= limit or count <= limit
    stride = int(taken[1] - taken[0]) if len(taken) > 1 else 1
    assert stride == 1 or math.gcd(stride, count) == 1
