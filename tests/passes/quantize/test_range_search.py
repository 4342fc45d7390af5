"""Searches of ranges, against brute force and against definitions written out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxopt.passes.quantize import FIXED_POINT, Scheme
from fxopt.passes.quantize.observers import SEARCHES, percentile_range, searched_range
from fxopt.passes.quantize.range_search import divergence_range, divergences, squared_error_range
from tests.passes.quantize.test_histogram import histogram_of

SHAPES = ["normal", "relu", "laplace", "skewed", "outlier"]


def values_of(shape: str, seed: int, count: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    if shape == "relu":
        return values.relu()
    if shape == "laplace":
        return values.sign() * -torch.rand(count, generator=generator).clamp(min=1e-6).log()
    if shape == "skewed":
        return values.exp() - 0.5
    if shape == "outlier":
        values[17] = 40.0
    return values


def quantization_error(values: Tensor, low: float, high: float, scheme: Scheme) -> float:
    """Compute the squared error of quantizing to [low, high] in float64, one step after the other."""
    levels = scheme.levels(float(values.min()))
    if scheme.symmetric:
        scale, zero = max(-low, high) / levels.quant_max, 0
    else:
        scale = (high - low) / levels.steps
        zero = levels.quant_min + round(-low / scale)
    if scheme.power_of_two:
        scale = 2.0 ** np.ceil(np.log2(scale))
        zero = 0 if scheme.symmetric else levels.quant_min + round(-low / scale)
    steps = ((values.double() / scale).round() + zero).clamp(levels.quant_min, levels.quant_max) - zero
    return float((steps * scale - values.double()).square().sum())


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(activation_bits=4), Scheme(symmetric=True), FIXED_POINT])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES)
def test_squared_error_is_close_to_the_brute_force_optimum(shape: str, seed: int, scheme: Scheme) -> None:
    values = values_of(shape, seed)
    low, high = squared_error_range(histogram_of(values), scheme)
    smallest, largest = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    fractions = [0.05 * step for step in range(1, 21)]
    candidates = [(smallest * a, largest * b) for a in (fractions if smallest < 0 else [1.0]) for b in fractions]
    best = min(quantization_error(values, *candidate, scheme) for candidate in candidates)
    assert quantization_error(values, low, high, scheme) <= 1.03 * best
    assert quantization_error(values, low, high, scheme) <= quantization_error(values, smallest, largest, scheme) * 1.01
    assert smallest <= low <= 0 <= high <= largest


def kullback_leibler(values: Tensor, counts: Tensor, low: float, high: float, steps: int) -> float:
    """Compute the divergence of one affine range, bin by bin."""
    scale = np.float32(np.float32(high - low) / np.float32(steps))
    zero = np.round(np.float32(-low) / scale)
    level = np.round(values.numpy() / scale) + zero
    mass, bins = np.zeros(steps + 1), np.zeros(steps + 1)
    inside = [(int(place), float(count)) for place, count in zip(level, counts, strict=True) if 0 <= place <= steps]
    for place, count in inside:
        mass[place] += count
        bins[place] += 1
    q = np.array([mass[place] / bins[place] for place, _ in inside])
    p = np.array([count for _, count in inside])
    p[0] += float(counts[torch.from_numpy(level < 0)].sum())
    p[-1] += float(counts[torch.from_numpy(level > steps)].sum())
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("steps", [15, 255])
@pytest.mark.parametrize("shape", SHAPES)
def test_divergences_are_those_of_the_definition(shape: str, steps: int) -> None:
    values, counts = histogram_of(values_of(shape, 1)).points()
    low, high = min(float(values.min()), 0.0), float(values.max())
    ends = [(low * a, high * b) for a in (1.0, 0.62, 0.3) for b in (1.0, 0.71, 0.33)]
    bits = {15: 4, 255: 8}[steps]
    levels = Scheme(activation_bits=bits).levels(low)
    found = divergences(values, counts, levels, *(torch.tensor(end) for end in zip(*ends, strict=True)))
    expected = [kullback_leibler(values, counts, *end, steps) for end in ends]
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", ["normal", "laplace", "skewed"])
def test_entropy_finds_a_range_of_little_divergence(shape: str, bits: int) -> None:
    histogram, scheme = histogram_of(values_of(shape, 2)), Scheme(activation_bits=bits)
    found = divergence_range(histogram, scheme)
    values, counts = histogram.points()
    low, high = histogram.low, histogram.high
    fractions = [0.1 * step for step in range(1, 11)]
    best = min(kullback_leibler(values, counts, low * a, high * b, 2**bits - 1) for a in fractions for b in fractions)
    assert kullback_leibler(values, counts, *found, 2**bits - 1) <= best * 1.05 + 1e-4


def test_entropy_does_not_look_at_the_many_zeros_behind_a_relu() -> None:
    values = values_of("relu", 0)
    sparse = torch.cat([values, torch.zeros(30_000)])
    found, expected = (divergence_range(histogram_of(data), Scheme()) for data in (sparse, values))
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.99])
@pytest.mark.parametrize("shape", ["normal", "laplace", "skewed"])
def test_a_percentile_is_that_of_numpy_on_both_sides(shape: str, percentile: float) -> None:
    values = values_of(shape, 4, 60_000)
    histogram = histogram_of(values)
    expected = np.percentile(values.numpy(), [(100 - percentile) / 2, (100 + percentile) / 2])
    assert percentile_range(histogram, Scheme(), percentile) == pytest.approx(expected, abs=2 * histogram.width)
    assert percentile_range(histogram, Scheme(), 100.0) == pytest.approx((histogram.low, histogram.high), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(SEARCHES)),
    st.sampled_from([Scheme(), Scheme(activation_bits=2), Scheme(symmetric=True), FIXED_POINT]),
    st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(0, 1e4), st.integers(1, 60)), min_size=1, max_size=4),
    st.integers(0, 2**16),
)
def test_a_range_contains_zero_and_lies_inside_what_was_seen(
    search: str, scheme: Scheme, drawn: list[tuple[float, float, int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.rand(count, generator=generator) * spread + center for center, spread, count in drawn]
    histogram = histogram_of(*batches)
    low, high = searched_range(SEARCHES[search], histogram, scheme)  # type: ignore[index]
    slack = 1e-6 * max(abs(histogram.low), abs(histogram.high))
    assert min(histogram.low, 0.0) - slack <= low <= 0.0 <= high <= max(histogram.high, 0.0) + slack
    assert scheme.levels(low).parameters(low, high)[0] > 0
