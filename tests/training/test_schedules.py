"""Schedules against torch's own, and by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR, StepLR

from fxopt.errors import TrainingError
from fxopt.training.schedules import Constant, Cosine, Linear, OneCycle, Step

STEPS = 30


def rates(make: Callable[[Optimizer, int], LRScheduler], steps: int = STEPS) -> list[tuple[float, ...]]:
    """Return the rate of each step, and the momentum."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.4, momentum=0.9)
    schedule = make(optimizer, steps)
    found: list[tuple[float, ...]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there are no steps of the optimizer
        for _ in range(steps):
            group = optimizer.param_groups[0]
            found.append((float(group["lr"]), float(group["momentum"])))
            schedule.step()
    return found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Constant(), lambda optimizer, steps: StepLR(optimizer, steps + 1)),
        (Step(0.2, 0.5), lambda optimizer, steps: StepLR(optimizer, 6, 0.5)),
        (Step(1 / 3), lambda optimizer, steps: StepLR(optimizer, 10, 0.1)),
        (Linear(), lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.0, steps)),
        (Linear(0.25), lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.25, steps)),
        (Cosine(), lambda optimizer, steps: CosineAnnealingLR(optimizer, steps)),
        (Cosine(0.1), lambda optimizer, steps: CosineAnnealingLR(optimizer, steps, 0.04)),
        (OneCycle(), lambda optimizer, steps: OneCycleLR(optimizer, 0.4, steps)),
        (
            OneCycle(0.2, 0.1, 0.001),
            lambda optimizer, steps: OneCycleLR(
                optimizer, 0.4, steps, pct_start=0.2, div_factor=10, final_div_factor=100
            ),
        ),
    ],
)
def test_the_rates_are_those_of_torch(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(rates(ours), rates(theirs), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("kind", [Constant, Step, Linear, Cosine])
def test_the_rate_warms_up_in_equal_parts(kind: Any) -> None:
    found = [rate for rate, _ in rates(kind(warm_up=0.2))]
    torch.testing.assert_close(found[:7], [0.4 * (step + 1) / 7 for step in range(7)])
    torch.testing.assert_close(found[6:], [rate for rate, _ in rates(kind(), 24)], atol=1e-9, rtol=1e-6)


def test_each_group_keeps_its_own_rate() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in (0.1, 0.2)]
    for schedule in (Constant(warm_up=0.5), OneCycle()):
        optimizer = torch.optim.AdamW(groups)
        schedule(optimizer, 10)
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(2 * first)
    OneCycle()(torch.optim.Adagrad(groups[:1]), 10)  # has no momentum to cycle


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Step(0), "every=0"),
        (lambda: Step(1.5), "every=1.5"),
        (lambda: OneCycle(start=0), "start=0"),
        (lambda: OneCycle(end=2), "end=2"),
        (lambda: rates(Cosine(warm_up=1.0)), "warm_up=1.0"),
        (lambda: rates(OneCycle(warm_up=-0.1)), "warm_up=-0.1"),
    ],
)
def test_bad_shares(make: Any, text: str) -> None:
    with pytest.raises(TrainingError, match=text):
        make()
