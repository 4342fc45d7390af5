"""Scheme and Levels: hand-computed scales, exact powers of two, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxopt.errors import PassError
from fxopt.graph.grids import power_of_two
from fxopt.passes.quantize import FIXED_POINT, Scheme
from fxopt.passes.quantize.scheme import Levels

SCHEMES = [
    Scheme(activation_bits=bits, symmetric=symmetric, power_of_two=rounded)
    for bits in (2, 3, 4, 8, 16)
    for symmetric in (False, True)
    for rounded in (False, True)
]


@pytest.mark.parametrize(
    ("low", "high", "levels", "scale", "zero_point"),
    [
        (-1.0, 3.0, Levels(0, 255), 4 / 255, 64),  # 1 / (4 / 255) = 63.75
        (0.0, 6.0, Levels(0, 255), 6 / 255, 0),
        (-2.0, 0.0, Levels(0, 255), 2 / 255, 255),
        (-1.0, 3.0, Levels(-128, 127), 4 / 255, -64),
        (0.0, 0.0, Levels(0, 255), 1 / 255, 0),
        (0.0, 1e-30, Levels(0, 255), 1 / 255, 0),
        (-1.0, 2.0, Levels(0, 15), 0.2, 5),
        (-1.0, 3.0, Levels(-128, 127, symmetric=True), 3 / 127, 0),
        (-4.0, 3.0, Levels(-8, 7, symmetric=True), 4 / 7, 0),
        (0.0, 3.0, Levels(0, 255, symmetric=True), 3 / 255, 0),
        (-1.0, 3.0, Levels(-128, 127, True, True), 2.0**-5, 0),  # 3 / 127 = 1.5 / 2^6
        (-1.0, 3.0, Levels(0, 255, False, True), 2.0**-5, 32),  # 4 / 255 is a little more than 2^-6
        (0.0, 127 / 64, Levels(-128, 127, True, True), 2.0**-6, 0),  # is a power of two already
    ],
)
def test_parameters_by_hand(low: float, high: float, levels: Levels, scale: float, zero_point: int) -> None:
    found_scale, found_zero_point = levels.parameters(low, high)
    assert found_scale == pytest.approx(scale, rel=1e-6)
    assert found_zero_point == zero_point


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SCHEMES), st.floats(-1e6, 0, width=32), st.floats(0, 1e6, width=32))
def test_a_range_is_covered_and_zero_is_exact(scheme: Scheme, low: float, high: float) -> None:
    levels = scheme.levels(low)
    scale, zero_point = levels.parameters(low, high)
    assert scale > 0 and levels.quant_min <= zero_point <= levels.quant_max
    assert levels.steps == 2**scheme.activation_bits - 1
    if high - low > 1e-12:
        slack = 0.5 * scale * (1 + 1e-4)  # the zero point is rounded
        assert (levels.quant_min - zero_point) * scale <= low + slack
        assert (levels.quant_max - zero_point) * scale >= high - slack
    assert not scheme.symmetric or zero_point == 0
    assert not scheme.power_of_two or math.frexp(scale)[0] == 0.5


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_rounding_up_to_a_power_of_two(value: float) -> None:
    rounded = float(power_of_two(torch.tensor(value)))
    assert math.frexp(rounded)[0] == 0.5
    assert rounded / 2 < value <= rounded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_bits": 1}, "activation_bits is 1. Choose one of 2, 3"),
        ({"weight_bits": 9}, "weight_bits is 9"),
        ({"clip_weights": "percentile"}, "clip_weights is 'percentile'"),
        ({"clip_weights": 0.0}, "clip_weights is 0.0. Give 'mse', a percentile"),
        ({"clip_weights": 100.5}, "clip_weights is 100.5"),
    ],
)
def test_a_scheme_that_does_not_exist_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PassError, match=message):
        Scheme(**options)  # type: ignore[arg-type]


def test_a_scheme_shows_what_differs_from_the_default() -> None:
    assert repr(Scheme()) == "Scheme()"
    assert repr(FIXED_POINT) == "Scheme(symmetric=True, power_of_two=True)"
    assert eval(repr(Scheme(weight_bits=4, clip_weights=99.9)), {"Scheme": Scheme}) == Scheme(
        weight_bits=4, clip_weights=99.9
    )
    assert [Scheme(weight_bits=bits).weight_max for bits in (2, 4, 7, 8, 16)] == [1, 7, 63, 127, 32767]
