"""Scales of weights: hand-computed, clipped at numpy's percentile, and at the brute-force least error."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxopt.passes.quantize import Scheme
from fxopt.passes.quantize.weight_scales import largest_integer, symmetric_scales
from fxopt.target import TARGETS

WEIGHT = torch.tensor([[0.254, -0.127], [0.0, 0.0], [-1.0, 0.5]])
NONE = torch.zeros(3, dtype=torch.float64)


def laplace(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).laplace(size=shape)).float()


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (Scheme(), [0.002, 1e-20, 1 / 127]),
        (Scheme(weight_bits=4), [0.254 / 7, 1e-20, 1 / 7]),
        (Scheme(weight_bits=2), [0.254, 1e-20, 1.0]),
        (Scheme(weight_bits=16), [0.254 / 32767, 1e-20, 1 / 32767]),
        (Scheme(per_channel=False), 1 / 127),
        (Scheme(power_of_two=True), [2.0**-8, 2.0**-66, 2.0**-6]),
        (Scheme(power_of_two=True, per_channel=False), 2.0**-6),
        (Scheme(clip_weights=50), [0.001, 1e-20, 0.5 / 127]),
    ],
)
def test_scales_by_hand(scheme: Scheme, expected: object) -> None:
    found = symmetric_scales(WEIGHT, scheme.weight_max, NONE, scheme)
    assert found.dtype is torch.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_no_scale_is_below_the_smallest() -> None:
    smallest = torch.tensor([0.01, 0.03, 0.0], dtype=torch.float64)
    assert symmetric_scales(WEIGHT, 127, smallest).tolist() == pytest.approx([0.01, 0.03, 1 / 127])
    assert float(symmetric_scales(WEIGHT, 127, smallest, Scheme(per_channel=False))) == pytest.approx(0.03)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 100.0])
def test_a_percentile_of_the_magnitudes(percentile: float) -> None:
    weight = laplace(5, 40, 5, 5)
    rows = np.abs(weight.numpy()).reshape(5, -1)
    expected = np.percentile(rows, percentile, axis=1, method="inverted_cdf") / 127
    zeros = torch.zeros(5, dtype=torch.float64)
    assert symmetric_scales(weight, 127, zeros, Scheme(clip_weights=percentile)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rounded", [False, True])
def test_a_clip_has_the_least_squared_error_of_each_channel(bits: int, rounded: bool) -> None:
    weight = laplace(6, 500)
    weight[3] = 0.25  # a constant channel
    scheme = Scheme(weight_bits=bits, clip_weights="mse", power_of_two=rounded)
    largest = 2 ** (bits - 1) - 1
    found = symmetric_scales(weight, largest, torch.zeros(6, dtype=torch.float64), scheme).numpy()

    def error(row: np.ndarray, scale: float) -> float:
        return float(np.square(np.clip(np.round(row / scale), -largest, largest) * scale - row).sum())

    for row, scale in zip(weight.double().numpy(), found, strict=True):
        tried = [np.abs(row).max() / largest * fraction for fraction in np.linspace(0.1, 1, 200)]
        if rounded:
            tried = [2 ** np.ceil(np.log2(step)) for step in tried]
        assert error(row, scale) <= min(error(row, step) for step in tried) * 1.1 + 1e-9  # it is ragged
        assert not rounded or np.frexp(scale)[0] == 0.5


def test_a_target_limits_weights_but_no_simulation() -> None:
    narrow, wide = TARGETS["x86-avx2"], TARGETS["x86"]
    found = [largest_integer(Scheme(weight_bits=bits), narrow) for bits in (4, 7, 8, 16)]
    assert found == [7, 63, 64, 32767]
    assert largest_integer(Scheme(), wide) == 127


@given(
    st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), min_size=1, max_size=3),
    st.sampled_from([Scheme(), Scheme(weight_bits=3, clip_weights="mse"), Scheme(power_of_two=True)]),
)
def test_scales_are_positive_and_clip_only_on_request(rows: list[list[float]], scheme: Scheme) -> None:
    weight = torch.tensor(rows)
    scales = symmetric_scales(weight, scheme.weight_max, torch.zeros(len(rows), dtype=torch.float64), scheme)
    assert bool((scales > 0).all())
    if scheme.clip_weights is None:
        assert bool((weight.abs().amax(1) <= scales * scheme.weight_max * (1 + 1e-5)).all())
