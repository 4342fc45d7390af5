"""Gradually: schedules are the published ones, shares are of the original, and what is between the steps runs there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt.errors import PassError
from fxopt.graph.cost import macs
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.passes import FoldMasks, Gradually, MaskWeights, RemoveChannels, Sparsity, weight_statistics
from fxopt.passes.prune import cubic, linear, one_shot
from fxopt.passes.prune.weights import weights_of
from tests.passes.cleanup.checks import program_of


def _network() -> Program:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10))
    return program_of(lambda m, x: m.layers(x), torch.randn(2, 16), layers=layers)


@pytest.fixture(scope="module")
def network() -> Program:
    return _network()


def sparsity(program: Program) -> float:
    total = weight_statistics(program).total
    return total.zeros / total.count


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(0, 0.5), st.floats(0.5, 1), st.integers(1, 20), st.integers(0, 20))
def test_cubic_is_equation_1(start: float, target: float, steps: int, step: int) -> None:
    step = min(step, steps)
    share = target + (start - target) * (1 - step / steps) ** 3  # t = t_0 + step dt, n = steps
    assert start + (target - start) * cubic(step / steps) == pytest.approx(share)


@pytest.mark.parametrize("schedule", [one_shot, linear, cubic])
def test_schedules_go_from_0_to_1(schedule: Any) -> None:
    way = [schedule(step / 10) for step in range(11)]
    assert way[0] == 0 and way[-1] == 1 and way == sorted(way)


def test_masks_grow_by_the_schedule(network: Program) -> None:
    seen: list[float] = []

    def between(program: Program) -> Program:
        seen.append(sparsity(program))
        return program

    by = Gradually(lambda share: MaskWeights(Sparsity(share)), target=0.8, steps=4, between=between)
    result = by(network)
    assert seen == pytest.approx([0.8 * (1 - 0.75**3), 0.8 * (1 - 0.5**3), 0.8 * (1 - 0.25**3)], abs=1e-3)
    assert sparsity(result) == pytest.approx(0.8, abs=1e-3)
    assert [text.startswith("MaskWeights(pattern=Sparsity(share=") for text in result.history] == [True] * 4


def test_what_is_gone_stays_gone_through_training() -> None:
    gone: list[dict[str, torch.Tensor]] = []

    def train(program: Program) -> Program:
        gone.append({weight.name: ~weight.mask for weight in weights_of(program)})
        with torch.no_grad():
            for parameter in program.parameters():
                parameter.add_(torch.randn_like(parameter))
        return program

    by = Gradually(lambda share: MaskWeights(Sparsity(share)), target=0.5, steps=3, schedule=linear, between=train)
    result = Pipeline([by, FoldMasks()])(_network())
    assert sparsity(result) == pytest.approx(0.5, abs=1e-3)
    assert len(gone) == 2
    for weight in weights_of(result):
        assert all(found[weight.name].any() and (weight.value[found[weight.name]] == 0).all() for found in gone)


def test_one_shot_is_one_step(network: Program) -> None:
    calls: list[Program] = []
    by = Gradually(
        lambda share: MaskWeights(Sparsity(share)),
        target=0.5,
        steps=5,
        schedule=one_shot,
        between=lambda program: calls.append(program) or program,  # type: ignore[func-returns-value,redundant-expr]
    )
    assert by.shares() == (0.5,) and len(by(network).history) == len(network.history) + 1 and not calls


def test_channels_are_of_the_original(network: Program) -> None:
    """Each step asks for a share of what is left, so that what is left in the end is the target of the original."""
    asked: list[float] = []
    left: list[float] = []

    def make(share: float) -> RemoveChannels:
        asked.append(share)
        return RemoveChannels(macs=share, round_to=1)

    def between(program: Program) -> Program:
        left.append(macs(program) / macs(network))
        return program

    by = Gradually(make, target=0.4, steps=3, schedule=linear, between=between, of=macs)
    result = by(network)
    assert by.shares() == pytest.approx((0.8, 0.6, 0.4))
    assert left == pytest.approx([0.8, 0.6], abs=0.02)
    assert macs(result) / macs(network) == pytest.approx(0.4, abs=0.02)
    assert asked == pytest.approx([0.8, 0.6 / left[0], 0.4 / left[1]])


def test_a_step_that_went_too_far_does_the_next_ones_work(network: Program) -> None:
    asked: list[float] = []

    def make(share: float) -> Any:
        asked.append(share)
        return RemoveChannels(macs=share / 2 if len(asked) == 1 else share, round_to=1)

    result = Gradually(make, target=0.3, steps=3, schedule=linear, of=macs)(network)  # 0.77 (is 0.38), 0.53, 0.3
    assert len(asked) == 2
    assert macs(result) / macs(network) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"target": 1.0, "steps": 2}, "target=1.0"),
        ({"target": 0.0, "steps": 2}, "target=0.0"),
        ({"target": 0.5, "steps": 0}, "steps=0"),
        ({"target": 0.5, "steps": 2, "schedule": lambda progress: 1 - progress}, "schedule"),
        ({"target": 0.5, "steps": 2, "schedule": lambda progress: progress / 2}, "schedule"),
    ],
)
def test_bad_input(options: dict[str, Any], text: str) -> None:
    with pytest.raises(PassError, match=text):
        Gradually(lambda share: MaskWeights(Sparsity(share)), **options)
