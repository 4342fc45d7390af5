"""ReestimateBatchNorm: the statistics are torch's own of what each norm reads, behind the norms before it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import DataError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import get_attribute
from fxopt.graph.verify import verify
from fxopt.passes import ReestimateBatchNorm
from tests.passes.cleanup.checks import program_of

DATA = [torch.randn(5, 3, 6, 6) + 2 for _ in range(3)]


def network() -> tuple[nn.Module, Program]:
    body = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU()
    )
    program = program_of(lambda m, x: m.body(x), torch.randn(2, 3, 6, 6), dynamic="batch", body=body.eval())
    return body, program


def test_statistics_are_those_of_the_data_one_norm_after_the_other() -> None:
    body, program = network()
    found = verify(ReestimateBatchNorm(DATA)(program), full=True)
    x: Tensor = torch.cat(DATA)
    for name, layer in body.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            mean, variance = x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).var(1)
            for which, expected in (("running_mean", mean), ("running_var", variance)):
                torch.testing.assert_close(get_attribute(found.module, f"body.{name}.{which}"), expected)
                torch.testing.assert_close(getattr(layer, which), torch.full_like(expected, which == "running_var"))
            layer.running_mean, layer.running_var = mean.detach(), variance.detach()
        x = layer(x)


def test_a_program_without_statistics_stays_as_it_is() -> None:
    program = program_of(lambda m, x: m.a(x), torch.randn(2, 4), a=nn.Linear(4, 4))
    assert ReestimateBatchNorm(DATA)(program) is program


@pytest.mark.parametrize("data", [[], [torch.zeros(0, 3, 6, 6)], [torch.zeros(1, 3, 6)]])
def test_bad_data_is_refused(data: list[Any]) -> None:
    with pytest.raises(DataError):
        ReestimateBatchNorm(data)(network()[1])
