"""Every cleanup pass on random networks: same meaning, valid, idempotent, deterministic, input untouched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from fxopt.graph.capture import capture
from fxopt.graph.pipeline import Pass, Pipeline
from fxopt.graph.verify import verify
from fxopt.passes import (
    CLEANUP,
    DropInferenceNoOps,
    EliminateCommonSubexpressions,
    EliminateDeadCode,
)
from tests.passes.cleanup.checks import FLOAT32_BOUND, assert_same_outputs, check, snapshot
from tests.strategies import Drawn, networks

EXACT = (EliminateCommonSubexpressions, EliminateDeadCode)
# No deadline and no shrinking, and the time to draw does not count: nearly all of it is torch.export.
FEW = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
FOLDABLE = (("conv", "norm", "scale"), ("conv_transpose", "norm", "scale"), ("norm", "conv", "pad"))


def bound_of(by: Pass, drawn: Drawn) -> float:
    """Return the bound of a pass.

    Folds round weights once more in each of the blocks they reach; without contiguous(), sums run in another order.
    """
    if isinstance(by, DropInferenceNoOps):
        return FLOAT32_BOUND / 10
    return 0.0 if isinstance(by, EXACT) else FLOAT32_BOUND * (2 + len(drawn.blocks))


def check_all(drawn: Drawn) -> None:
    """Check each pass alone, then all in a row, then the whole chain against itself."""
    program = capture(drawn.build(), drawn.inputs(), dynamic="batch")
    inputs = drawn.inputs(batch=3)
    before = snapshot(program)[0]
    result = program
    for by in CLEANUP:
        if by(program) is not program:
            check(by, program, *inputs, bound=bound_of(by, drawn))
        if by(result) is not result:
            result = check(by, result, *inputs, bound=bound_of(by, drawn))
    verify(result, full=True)
    assert_same_outputs(program, result, inputs, FLOAT32_BOUND * (2 + len(drawn.blocks)))
    first, second = snapshot(result), snapshot(Pipeline(CLEANUP)(program))
    assert first[0] == second[0]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert snapshot(program)[0] == before


@given(networks())
@FEW
def test_random_networks(drawn: Drawn) -> None:
    check_all(drawn)


@pytest.mark.parametrize("kinds", FOLDABLE)
def test_random_rows_of_foldable_blocks(kinds: tuple[str, ...]) -> None:
    settings(FEW, max_examples=3)(given(networks(kinds=kinds, most=5))(check_all))()


@pytest.mark.slow
@given(networks(most=12))
@settings(FEW, max_examples=150, derandomize=False)
def test_many_random_networks(drawn: Drawn) -> None:
    check_all(drawn)
