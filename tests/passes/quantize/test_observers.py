"""Observers: hand-computed ranges of streams."""

import math

import pytest
import torch
from torch import Tensor

from fxopt.errors import PassError
from fxopt.passes.quantize import Scheme
from fxopt.passes.quantize.observers import (
    DECAY,
    HistogramObserver,
    MinMax,
    MovingAverage,
    Observer,
    RangeObserver,
    check_observer,
    make_observer,
)

NAMES: list[Observer] = ["minmax", "moving-average", "mse", "percentile", "entropy", "auto"]


def feed(observer: RangeObserver, *items: Tensor) -> RangeObserver:
    for item in items:
        if item.numel():
            low, high = torch.aminmax(item)
            observer.update(item, float(low), float(high))
        observer.end_item()
    return observer


def test_min_max_keeps_the_extremes_and_zero() -> None:
    assert feed(MinMax(), torch.tensor([1.0, 2.0]), torch.tensor([[0.5], [3.0]])).range(Scheme()) == (0.0, 3.0)
    assert feed(MinMax(), torch.tensor([-4.0, -2.0])).range(Scheme()) == (-4.0, 0.0)


def test_a_moving_average_by_hand() -> None:
    items = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 6.0, 1.0]), torch.tensor([0.0, 4.0])]
    weights = [DECAY**2, DECAY, 1.0]
    low = -(1.0 * weights[0] + 3.0 * weights[1]) / sum(weights)
    high = (2.0 * weights[0] + 6.0 * weights[1] + 4.0 * weights[2]) / sum(weights)
    assert feed(MovingAverage(), *items).range(Scheme()) == pytest.approx((low, high))
    assert feed(MovingAverage(), items[1]).range(Scheme()) == pytest.approx((-3.0, 6.0))
    assert feed(MovingAverage(), *[torch.tensor([2.0])] * 500, torch.tensor([4.0])).range(Scheme())[1] == pytest.approx(
        2 * DECAY + 4 * (1 - DECAY), rel=1e-3
    )


def test_the_values_of_a_group_in_one_item_are_one_range_of_a_moving_average() -> None:
    observer = MovingAverage()
    for _ in range(3):
        observer.update(torch.tensor([1.0]), 1.0, 1.0)
        observer.update(torch.tensor([10.0]), 10.0, 10.0)
        observer.end_item()
    assert observer.range(Scheme()) == pytest.approx((0.0, 10.0))


def test_an_empty_item_does_not_move_an_average() -> None:
    items = [torch.tensor([-1.0, 2.0]), torch.zeros(0, 3), torch.tensor([-2.0, 6.0])]
    assert feed(MovingAverage(), *items).range(Scheme()) == feed(MovingAverage(), items[0], items[2]).range(Scheme())


def test_a_stream_of_batches_is_one_batch() -> None:
    values = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    for name in ("mse", "percentile", "entropy"):
        whole = feed(make_observer(name), values).range(Scheme())
        parts = feed(make_observer(name), values[:1000].reshape(10, 100), values[1000:]).range(Scheme())
        assert parts == pytest.approx(whole, rel=0.1)


def test_constant_batches_then_another_value() -> None:
    observer = feed(make_observer("mse"), torch.full((7,), 3.0))
    assert observer.range(Scheme()) == (0.0, 3.0)
    feed(observer, torch.full((2, 3), 3.0), torch.tensor([-1.0]))
    assert isinstance(observer, HistogramObserver)
    assert float(observer.histogram.counts.sum()) == 14
    low, high = observer.range(Scheme())
    assert low == pytest.approx(-1.0, rel=0.02) and high == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_an_observer_that_saw_nothing_or_zeros_or_one_value(name: Observer) -> None:
    assert make_observer(name).range(Scheme()) == (0.0, 0.0)
    assert feed(make_observer(name), torch.zeros(5)).range(Scheme()) == (0.0, 0.0)
    assert feed(make_observer(name), torch.tensor(-2.0)).range(Scheme()) == pytest.approx((-2.0, 0.0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("outlier", [1e4, 1e20, 3e38])
def test_a_huge_outlier_leaves_a_usable_range(name: Observer, outlier: float) -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    values[123] = outlier
    low, high = feed(make_observer(name), values).range(Scheme())
    assert -6 < low <= 0 < high <= outlier * (1 + 1e-6)
    scale, zero_point = Scheme().levels(low).parameters(low, high)
    assert math.isfinite(scale) and scale > 0 and 0 <= zero_point <= 255


def test_a_percentile_cuts_an_outlier_off() -> None:
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    values[123] = 1e3
    low, high = feed(make_observer("percentile"), values).range(Scheme())
    assert 3 < high < 5 and -5 < low < -3


def test_an_observer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PassError, match=r"no observer 'median'\. Choose one of minmax, moving-average, mse"):
        check_observer("median")
