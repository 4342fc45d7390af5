"""The notations of max_drop and max_latency, what they allow, and what they refuse."""

import math

import pytest

from fxopt.errors import ModelError
from fxopt.limits import Budget, Drop, Latency, read_budget


@pytest.mark.parametrize(
    ("given", "drop"),
    [
        (0.5, Drop("metric", 0.5)),
        ("0.5", Drop("metric", 0.5)),
        (0, Drop("metric", 0.0)),
        ("sqnr=30", Drop("sqnr", 30.0)),
        ("sqnr 30.5", Drop("sqnr", 30.5)),
        ("sqnr=-3", Drop("sqnr", -3.0)),
        (" kl = 1e-2 ", Drop("kl", 0.01)),
        ("agreement=.99", Drop("agreement", 0.99)),
    ],
)
def test_drops(given: float | str, drop: Drop) -> None:
    assert read_budget(given, None, evaluated=True) == Budget(drop, None)
    assert read_budget(str(drop), None, evaluated=True) == Budget(drop, None)


@pytest.mark.parametrize(
    ("given", "latency", "limit"),
    [
        (0.5, Latency(share=0.5), 2.0),
        ("0.5", Latency(share=0.5), 2.0),
        ("3ms", Latency(seconds=0.003), 0.003),
        ("2 s", Latency(seconds=2.0), 2.0),
        ("250us", Latency(seconds=250e-6), 250e-6),
    ],
)
def test_latencies(given: float | str, latency: Latency, limit: float) -> None:
    budget = read_budget(None, given, evaluated=False)
    assert budget == Budget(None, latency) and latency.limit(float_seconds=4.0) == pytest.approx(limit)
    assert read_budget(None, str(latency), evaluated=False) == budget


@pytest.mark.parametrize(
    ("max_drop", "max_latency", "evaluated", "says"),
    [
        (0.5, None, False, "pass `evaluate`"),
        ("snr=30", None, True, "'sqnr=30'"),
        ("much", None, True, "is not understood"),
        ("sqnr", None, True, "is not understood"),
        (-0.1, None, True, "below 0"),
        ("kl=-1", None, True, "below 0"),
        ("agreement=99", None, True, "0 to 1"),
        (math.nan, None, True, "is not understood"),
        (None, "fast", False, "'3ms'"),
        (None, "3 minutes", False, "is not understood"),
        (None, 0, False, "is no time"),
        (None, "-3ms", False, "is no time"),
    ],
)
def test_what_is_refused(
    max_drop: float | str | None, max_latency: float | str | None, evaluated: bool, says: str
) -> None:
    with pytest.raises(ModelError) as error:
        read_budget(max_drop, max_latency, evaluated)
    assert says in str(error.value)


def test_no_bound_is_no_budget() -> None:
    assert read_budget(None, None, evaluated=False) is None


@pytest.mark.parametrize(
    ("drop", "good", "bad"),
    [
        (Drop("metric", 0.5), -1.0, 0.51),
        (Drop("sqnr", 30.0), math.inf, 29.9),
        (Drop("kl", 0.01), 0.01, 0.011),
        (Drop("agreement", 0.99), 0.99, 0.98),
    ],
)
def test_what_a_drop_allows(drop: Drop, good: float, bad: float) -> None:
    assert drop.allows(good) and drop.allows(drop.bound) and not drop.allows(bad) and not drop.allows(math.nan)
    assert drop.lost(good) < drop.lost(bad) < drop.lost(math.nan)
