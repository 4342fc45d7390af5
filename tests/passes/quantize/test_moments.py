"""Moments: they are those of samples, op by op, and those of the data that the batch norms saw."""

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.errors import PassError
from fxopt.graph.capture import capture
from fxopt.graph.interpret import node_values
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import EqualizeLayers
from fxopt.passes.quantize.batch_norm_statistics import batch_norm_statistics, rescaled
from fxopt.passes.quantize.channel_paths import Channels
from fxopt.passes.quantize.equalize_layers import equalizing_scales
from fxopt.passes.quantize.moment_rules import INPUT_WIDEST, moments_of
from fxopt.passes.quantize.moments import WIDEST, Moments, normal, rectified
from fxopt.passes.quantize.rules import clip_bounds

MEAN, DEVIATION = torch.tensor([-1.0, 0.25, 0.5, 2.0]), torch.tensor([0.5, 1.0, 2.0, 0.75])


class Normed(nn.Module):
    """Batch norms that fold into a convolution, with a scale behind, and into a depthwise one; and one that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.second = nn.Conv2d(8, 8, 3, groups=8)
        self.last = nn.Conv2d(8, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8, momentum=None) for _ in range(3))
        for norm in self.norms.children():
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.uniform_(norm.weight, -1, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.norms[0](self.first(x)) * 2.5)
        second = torch.relu(self.norms[1](self.second(first)))
        y: Tensor = self.last(torch.relu(self.norms[2](second)))
        return y


def trained() -> tuple[Program, Program, Tensor]:
    """Return a captured and a cleaned Program, whose running statistics are those of the given input."""
    x = torch.randn(8, 3, 12, 12)
    model = Normed().train()
    model(x)
    captured = capture(model.eval(), x)
    return captured, Pipeline(CLEANUP)(captured), x


def assert_moments(found: Mapping[str, Moments], values: Mapping[str, Tensor], share: float = 0.01) -> None:
    """Assert that moments are those of values, up to a share of the variance."""
    for name, value in values.items():
        torch.testing.assert_close(found[name].mean, value.mean((0, 2, 3)).double(), rtol=1e-2, atol=5e-3)
        torch.testing.assert_close(found[name].variance, value.var((0, 2, 3)).double(), rtol=share, atol=5e-3)


def test_batch_norms_tell_the_moments_of_the_folded_layers() -> None:
    captured, cleaned, x = trained()
    found = batch_norm_statistics(captured, cleaned)
    assert set(found) == {"conv2d", "conv2d_1", "relu_1"}
    assert_moments(found, node_values(cleaned, (x,), found.keys()))


def test_equalization_scales_the_statistics() -> None:
    captured, cleaned, x = trained()
    found = rescaled(batch_norm_statistics(captured, cleaned), equalizing_scales(cleaned))
    assert float((found["conv2d"].mean - batch_norm_statistics(captured, cleaned)["conv2d"].mean).abs().max()) > 0.1
    assert_moments(found, node_values(EqualizeLayers()(cleaned), (x,), found.keys()))


def test_a_batch_norm_that_stays_has_moments_of_its_own() -> None:
    captured, _, x = trained()
    names = [
        node.name for node in captured.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    ]
    found = moments_of(captured, batch_norm_statistics(captured, captured))
    assert_moments(found, node_values(captured, (x,), names), 0.05)


def test_a_layer_that_was_changed_otherwise_tells_nothing() -> None:
    captured, cleaned, _ = trained()
    cleaned.module.get_parameter("first.weight").data[0, 0, 0, 0] += 1.0
    assert "conv2d" not in batch_norm_statistics(captured, cleaned)


def test_without_batch_norms_there_is_one_clear_error() -> None:
    program = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4)).eval(), torch.randn(2, 3, 4, 4))
    with pytest.raises(PassError, match=r"No batch norm with running statistics.*calibration data.*int8-dynamic"):
        batch_norm_statistics(program, program)


def test_relu_gives_the_clipped_normal_in_closed_form() -> None:
    """E = m P(m / s) + s p(m / s) and E[x^2] = (m^2 + s^2) P + m s p, with the standard normal p and its integral P."""
    before = normal(MEAN, DEVIATION.square(), Channels((1,)))
    after = Moments(before.values.relu(), before.channels)
    ratio, mean, deviation = MEAN.double() / DEVIATION.double(), MEAN.double(), DEVIATION.double()
    below, density = torch.special.ndtr(ratio), torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    expected = mean * below + deviation * density
    square = (mean.square() + deviation.square()) * below + mean * deviation * density
    torch.testing.assert_close(after.mean, expected, rtol=3e-3, atol=3e-3)
    torch.testing.assert_close(after.variance, square - expected.square(), rtol=3e-3, atol=3e-3)
    torch.testing.assert_close(after.high, mean + WIDEST * deviation)
    assert after.low.min() == 0.0 and (before.low == mean - WIDEST * deviation).all()


def test_a_batch_norm_behind_a_relu_tells_of_a_clipped_normal() -> None:
    """Of relu of a normal value, whose moments alone are known, the ends are found."""
    before = normal(MEAN, DEVIATION.square(), Channels((1,)))
    after = Moments(before.values.relu(), before.channels)
    found = rectified(after.mean, after.variance, after.channels)
    torch.testing.assert_close(found.mean, after.mean)
    torch.testing.assert_close(found.variance, after.variance, rtol=0.05, atol=0)
    torch.testing.assert_close(found.high, after.high, rtol=0.05, atol=0)
    assert found.low.tolist() == [0.0] * 4
    far = rectified(torch.tensor([8.0, 0.0]), torch.tensor([1.0, 0.0]), Channels((1,)))
    assert far.low.tolist() == [2.0, 0.0] and far.high.tolist() == [14.0, 0.0]


def test_what_a_batch_norm_tells_of_a_relu_is_not_negative() -> None:
    x = torch.randn(64, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.BatchNorm2d(8, momentum=None), nn.Sigmoid()).train()
    model(x)
    program = capture(model.eval(), x)
    found = moments_of(program, batch_norm_statistics(program, program))
    clip = next(node.name for node in program.graph.nodes if clip_bounds(node) is not None)
    assert float(found[clip].low.min()) == 0.0 and float(found[clip].high.max()) <= 6.0
    assert_moments(found, node_values(program, (x,), [clip, "batch_norm"]), 0.05)


class Second(nn.Module):
    """An op on two values that are independent of each other."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.op(x, y)


CONV, LINEAR = torch.linspace(-1, 1, 6 * 2 * 9).reshape(6, 2, 3, 3).sin(), torch.linspace(-3, 3, 5 * 144).reshape(5, -1)
OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu6": lambda x, y: functional.relu6(x),
    "silu": lambda x, y: functional.silu(x),
    "sigmoid": lambda x, y: torch.sigmoid(x),
    "scale": lambda x, y: x * -3.0 + 1.0,
    "add": lambda x, y: torch.relu(x) + y,
    "square": lambda x, y: torch.relu(x) * x,
    "gate": lambda x, y: x * functional.hardsigmoid(x) + x,
    "multiply": lambda x, y: torch.relu(x) * torch.sigmoid(y),
    "concatenate": lambda x, y: torch.cat([x, torch.relu(y)], 1),
    "chunk": lambda x, y: x.chunk(2, 1)[1],
    "split": lambda x, y: torch.split(x, [1, 3], dim=1)[1],
    "pick": lambda x, y: x.chunk(2, 2)[1],
    "conv": lambda x, y: functional.conv2d(torch.relu(x), CONV, groups=2),
    "flat linear": lambda x, y: functional.linear(x.flatten(1), LINEAR)[:, :, None, None],
}


@pytest.mark.parametrize("name", OPS)
def test_moments_are_those_of_samples(name: str) -> None:
    x, y = (MEAN[:, None, None] + DEVIATION[:, None, None] * torch.randn(1500, 4, 6, 6) for _ in range(2))
    program = capture(Second(OPS[name]), (x, y))
    source = normal(MEAN, DEVIATION.square(), Channels((1,)))
    known = {node.name: source for node in program.placeholders}
    last = program.output_node.all_input_nodes[0]
    found, value = moments_of(program, known)[last.name], program(x, y)
    torch.testing.assert_close(found.mean, value.mean((0, 2, 3)).double(), rtol=0.03, atol=0.06)
    torch.testing.assert_close(found.variance.sqrt(), value.std((0, 2, 3)).double(), rtol=0.06, atol=0.03)
    assert (found.low <= value.amin((0, 2, 3)) + 0.01).all() and (found.high >= value.amax((0, 2, 3)) - 0.01).all()


def test_channels_that_get_lost_leave_one_row_for_all() -> None:
    def shuffle(x: Tensor, y: Tensor) -> Tensor:
        return x.reshape(-1, 2, 2, 36).transpose(1, 2).reshape(-1, 4, 6, 6)

    x = MEAN[:, None, None] + DEVIATION[:, None, None] * torch.randn(400, 4, 6, 6)
    program = capture(Second(shuffle), (x, x))
    found = moments_of(program, {program.placeholders[0].name: normal(MEAN, DEVIATION.square(), Channels((1,)))})
    last = found[program.output_node.all_input_nodes[0].name]
    assert last.channels is None
    assert float(last.mean) == pytest.approx(float(x.mean()), rel=0.05)
    assert float(last.variance) == pytest.approx(float(x.var()), rel=0.05)
    assert float(last.low) <= float(x.min()) and float(last.high) >= float(x.max())


def test_inputs_end_where_normalised_images_do_and_padding_may_not_be_told() -> None:
    program = capture(Second(lambda x, y: functional.pad(x, (1, 1), value=5.0)), (torch.randn(2, 3, 4, 4),) * 2)
    found = moments_of(program, {}, mean=0.5, deviation=0.25)
    assert found["x"].low.tolist() == [0.5 - INPUT_WIDEST * 0.25] * 3
    assert set(found) == {"x", "y"}
