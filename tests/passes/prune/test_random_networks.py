"""Random networks: whatever can be removed can go, and the rest computes what it did."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxopt.errors import PassError
from fxopt.graph.capture import capture
from fxopt.graph.cost import macs
from fxopt.graph.verify import verify
from fxopt.passes.prune import RemoveChannels, channel_groups
from tests.passes.prune.checks import check_removal
from tests.strategies import Drawn, networks


class FirstOutput(nn.Module):
    """A network without its second output, which would keep the channels of the last block."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(x)[0]
        return result


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn=networks(), seed=st.integers(0, 9))
def test_units_of_a_random_network_can_go(drawn: Drawn, seed: int) -> None:
    program = capture(FirstOutput(drawn.build()), drawn.inputs())
    groups = channel_groups(program)
    assert groups.unknown == {}
    check_removal(program, drawn.inputs(), exact=not any(group.inexact for group in groups.groups), seed=seed)


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn=networks(), share=st.sampled_from((0.3, 0.6, 0.9)))
def test_a_share_of_a_random_network_is_reached_or_refused(drawn: Drawn, share: float) -> None:
    program = capture(FirstOutput(drawn.build()), drawn.inputs(), dynamic="batch")
    try:
        small = RemoveChannels(macs=share)(program)
    except PassError as refusal:
        assert "cannot be reached" in str(refusal)
    else:
        verify(small, full=True)
        assert macs(small) / macs(program) == pytest.approx(share, abs=0.02)
