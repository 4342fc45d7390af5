"""expected_noise: what is measured on normal inputs, and a judge of equalization."""

import pytest
import torch
from torch import Tensor, nn

from fxopt.graph.capture import capture
from fxopt.graph.interpret import sqnr
from fxopt.graph.program import Program
from fxopt.passes.quantize import EqualizeLayers, QuantizeDataFree
from fxopt.passes.quantize.batch_norm_statistics import rescaled
from fxopt.passes.quantize.channel_paths import Channels
from fxopt.passes.quantize.equalize_layers import equalizing_scales
from fxopt.passes.quantize.expected_noise import expected_noise
from fxopt.passes.quantize.moment_rules import moments_of
from fxopt.passes.quantize.moments import Moments, normal


def linear_program(rows: int = 32) -> tuple[Program, Tensor, dict[str, Moments]]:
    x = torch.randn(512, 64).clamp(-6, 6)
    program = capture(nn.Linear(64, rows), x)
    name = program.placeholders[0].name
    return program, x, moments_of(program, {name: normal(torch.zeros(64), torch.ones(64), Channels((1,)))})


def test_it_is_the_noise_of_a_linear_on_normal_inputs() -> None:
    program, x, moments = linear_program()
    step = QuantizeDataFree(moments)
    measured = 10 ** (-sqnr(program(x) - program(x).mean(0), step(program)(x) - program(x).mean(0)) / 10)
    assert expected_noise(program, step) == pytest.approx(measured, rel=0.2)


def test_channels_without_variance_count_as_noise_only_as_far_as_they_have_any() -> None:
    program, _, moments = linear_program()
    before = expected_noise(program, QuantizeDataFree(moments))
    program.module.get_parameter("weight").data[0] = 0.0
    dead = moments_of(program, {name: moments[name] for name in [program.placeholders[0].name]})
    after = expected_noise(program, QuantizeDataFree(dead))
    assert after == pytest.approx(before + 1 / 32, rel=0.01)


def test_nothing_integer_has_no_noise() -> None:
    program, _, moments = linear_program()
    assert expected_noise(program, QuantizeDataFree(moments, keep_float=("linear",))) == 0.0


@pytest.mark.parametrize("uneven", [False, True])
def test_it_tells_whether_equalization_pays(uneven: bool) -> None:
    """Channels a hundred times larger than others, and as much smaller in the next weight, need it."""
    first, second = nn.Linear(32, 32), nn.Linear(32, 16)
    if uneven:
        scale = torch.logspace(-2, 2, 32)
        first.weight.data *= scale[:, None]
        first.bias.data *= scale
        second.weight.data /= scale
    x = torch.randn(256, 32)
    program = capture(nn.Sequential(first, nn.ReLU(), second), x)
    told = {program.placeholders[0].name: normal(torch.zeros(32), torch.ones(32), Channels((1,)))}
    equalized = EqualizeLayers()(program)
    ways = [
        (program, QuantizeDataFree(moments_of(program, told))),
        (equalized, QuantizeDataFree(moments_of(equalized, rescaled(told, equalizing_scales(program))))),
    ]
    noises = [expected_noise(*way) for way in ways]
    ratios = [10 ** (-sqnr(program(x), step(found)(x)) / 10) for found, step in ways]
    assert (noises[1] < 0.1 * noises[0]) == (ratios[1] < 0.1 * ratios[0]) == uneven
    assert uneven or noises[1] == pytest.approx(noises[0], rel=0.05)
