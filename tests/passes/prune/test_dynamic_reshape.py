"""Reshapes of static dimensions into a dynamic one: heads beside the batch, pixels of patches, batch and time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import validate
from fxopt.graph.capture import capture
from fxopt.graph.program import Program
from fxopt.passes.prune import RemoveChannels
from fxopt.passes.prune.groups import channel_groups
from tests.passes.prune.checks import check_removal, widths_of


class Attention(nn.Module):
    """torch's attention module on rows; heads stand beside the batch, and come back from it (or not: with weights)."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.attention(x, x, x, need_weights=self.weights)[0])
        return result


class Folded(nn.Module):
    """A function between two linears of 12 units."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Linear(16, 12), nn.Linear(12, 3), function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.function(self.first(x)))
        return result


def _through_the_batch(x: Tensor) -> Tensor:
    """[batch, 5, 12] as [5, batch * 3, 4], and back."""
    batch = x.shape[0]
    folded = torch.relu(x.transpose(0, 1).reshape(5, batch * 3, 4))
    return folded.reshape(5, batch, 12).transpose(0, 1)


def _every_other_row(x: Tensor) -> Tensor:
    """Rows of [batch * 3, 20] that a slice takes are not the same of every sample: they must all stay."""
    batch = x.shape[0]
    rows = x.transpose(1, 2).reshape(batch * 3, 20)
    swapped = torch.cat([rows[::2], rows[1::2]])
    return swapped.reshape(batch, 12, 5).transpose(1, 2)


def _batch_behind(x: Tensor) -> Tensor:
    """[12, batch] as [batch * 3, 4]: the batch is inside, so that a row is of no unit alone."""
    batch = x.shape[0]
    return torch.relu(x[:, 0].t().reshape(batch * 3, 4)).reshape(12, batch).t()


def _program(module: nn.Module) -> Program:
    return capture(module.eval(), (torch.randn(2, 5, 16),), dynamic="batch")


@pytest.mark.parametrize("weights", [False, True])
def test_heads_beside_the_batch(weights: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = _program(Attention(weights))
    groups = channel_groups(program)
    assert groups.unknown == {}
    assert widths_of(groups) == (16, 4, 4)  # what the module gives; heads; positions of every head
    check_removal(program, (torch.randn(3, 5, 16),), exact=True)  # another batch than captured
    smaller = RemoveChannels(macs=0.5, round_to=1)(program)
    assert {"attention.in_proj_weight", "attention.out_proj.weight"} <= {
        str(node.target) for node in smaller.graph.find_nodes(op="get_attr")
    }
    to_onnx(smaller, tmp_path / "model.onnx")
    assert validate(tmp_path / "model.onnx", smaller, (torch.randn(2, 5, 16),)).ok


def test_static_dimensions_in_the_batch_and_back() -> None:
    torch.manual_seed(0)
    program = _program(Folded(_through_the_batch))
    assert widths_of(channel_groups(program)) == (4, 3)
    check_removal(program, (torch.randn(4, 5, 16),), exact=True)


@pytest.mark.parametrize(
    ("function", "reason"), [(_every_other_row, "sliced at a computed place"), (_batch_behind, "a dynamic dimension")]
)
def test_what_is_not_the_same_of_every_sample_stays(function: Callable[[Tensor], Tensor], reason: str) -> None:
    torch.manual_seed(0)
    groups = channel_groups(_program(Folded(function)))
    assert widths_of(groups) == ()
    reasons = {f"{frozen.tensor}[{frozen.dim}]": frozen.reason for frozen in groups.frozen}
    assert reason in reasons["first.weight[0]"]
    assert "dynamic" in reasons["second.weight[1]"] or "computed" in reasons["second.weight[1]"]
