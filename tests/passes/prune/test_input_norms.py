"""Second moments of the inputs of weights, against means taken by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import DataError
from fxopt.passes.prune.input_norms import input_second_moments
from tests.passes.cleanup.checks import program_of

X = torch.randn(6, 5)
IMAGE = torch.randn(4, 6, 5, 5)


def test_of_a_linear_layer_over_two_items() -> None:
    program = program_of(lambda m, x: m.b(torch.relu(m.a(x))), X, dynamic="batch", a=nn.Linear(5, 4), b=nn.Linear(4, 3))
    found = input_second_moments(program, [X[:2], X[2:]])
    torch.testing.assert_close(found["a.weight"], X.square().mean(0, keepdim=True))
    weight, bias = (program.module.get_parameter(f"a.{name}").detach() for name in ("weight", "bias"))
    hidden = torch.relu(nn.functional.linear(X, weight, bias))
    torch.testing.assert_close(found["b.weight"], hidden.square().mean(0, keepdim=True))
    assert found.keys() == {"a.weight", "b.weight"}


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_of_a_convolution_each_filter_has_its_own_inputs(groups: int) -> None:
    program = program_of(lambda m, x: m.conv(x), IMAGE, conv=nn.Conv2d(6, 12, 3, groups=groups))
    moments = input_second_moments(program, [IMAGE])["conv.weight"]
    by_channel = IMAGE.square().mean((0, 2, 3))
    weight = program.module.get_parameter("conv.weight")
    spread = moments.expand_as(weight)
    for out in range(12):
        group, each = out // (12 // groups), 6 // groups
        torch.testing.assert_close(spread[out, :, 0, 0], by_channel[group * each : (group + 1) * each])


def test_of_a_transposed_convolution_and_of_products() -> None:
    program = program_of(
        lambda m, x: (m.up(x), x.mean((2, 3)) @ m.right, m.left @ x.flatten(2)),
        IMAGE,
        up=nn.ConvTranspose2d(6, 4, 2, groups=2),
        right=nn.Parameter(torch.randn(6, 3)),
        left=nn.Parameter(torch.randn(3, 6)),
    )
    found = input_second_moments(program, [IMAGE])
    by_channel = IMAGE.square().mean((0, 2, 3))
    torch.testing.assert_close(found["up.weight"], by_channel.reshape(6, 1, 1, 1))
    torch.testing.assert_close(found["right"], IMAGE.mean((2, 3)).square().mean(0).reshape(6, 1))
    torch.testing.assert_close(found["left"], by_channel.reshape(1, 6))


def test_a_weight_that_is_used_twice_has_the_mean_of_both_uses() -> None:
    program = program_of(lambda m, x: m.layer(torch.relu(m.layer(x))), X, layer=nn.Linear(5, 5))
    weight, bias = (program.module.get_parameter(f"layer.{name}").detach() for name in ("weight", "bias"))
    second: Tensor = torch.relu(nn.functional.linear(X, weight, bias))
    expected = torch.cat([X, second]).square().mean(0, keepdim=True)
    torch.testing.assert_close(input_second_moments(program, [X])["layer.weight"], expected)


def test_data_that_is_empty_is_refused() -> None:
    program = program_of(lambda m, x: m.layer(x), X, layer=nn.Linear(5, 5))
    with pytest.raises(DataError, match="is empty"):
        input_second_moments(program, [])
