"""QuantizeDataFree: exact enough on a trained network, float where nothing is known, and no data anywhere."""

import pytest
import torch
from torch import Tensor, nn

from fxopt.demo import demo_data, demo_model
from fxopt.graph.capture import capture
from fxopt.graph.interpret import node_values, sqnr
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import Calibrate, CorrectBiasByMoments, InsertObservers, Quantize, QuantizeDataFree, Scheme
from fxopt.passes.quantize.batch_norm_statistics import batch_norm_statistics
from fxopt.passes.quantize.channel_paths import Channels
from fxopt.passes.quantize.moment_rules import moments_of
from fxopt.passes.quantize.moments import Moments, normal
from fxopt.passes.quantize.quantize_data_free import NOTE
from tests.conftest import Golden

Prepared = tuple[Program, dict[str, Moments]]


def prepared(model: nn.Module, x: Tensor) -> Prepared:
    captured = capture(model.eval(), x, dynamic="batch")
    cleaned = Pipeline(CLEANUP)(captured)
    return cleaned, moments_of(cleaned, batch_norm_statistics(captured, cleaned))


@pytest.fixture(scope="module")
def digits() -> Prepared:
    return prepared(demo_model(), demo_data("test")[0][:2])


def test_a_trained_network_stays_near_to_float_on_real_images(digits: Prepared) -> None:
    program, moments = digits
    images = demo_data("test")[0][:64]
    found = sqnr(program(images), verify(QuantizeDataFree(moments)(program))(images))
    noise = Quantize(list(torch.randn(4, 8, 1, 32, 32)), observer="minmax")(program)
    assert found > 33
    assert found > sqnr(program(images), noise(images)) + 1


def test_ranges_are_those_of_the_moments_and_contain_zero(digits: Prepared) -> None:
    program, moments = digits
    result = QuantizeDataFree(moments)(program)
    buffers = dict(result.module.named_buffers())
    for group, low, high in (("relu", 0.0, float(moments["relu"].high.max())), ("conv2d_2", None, None)):
        ends = moments[group]
        low, high = low if low is not None else float(ends.low.min()), high or float(ends.high.max())
        assert float(buffers[f"{group}_scale"]) == pytest.approx((high - low) / 255, rel=1e-5)
        assert int(buffers[f"{group}_zero_point"]) == round(-low / (high - low) * 255)
    assert result.notes[-1] == NOTE


class Gap(nn.Module):
    """A softmax, whose range no batch norm tells, between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.norms[1](self.convs[1](torch.relu(self.norms[0](self.convs[0](x))))))
        y: Tensor = self.norms[3](self.convs[3](torch.relu(self.norms[2](self.convs[2](first.softmax(1))))))
        return y


def test_what_reads_a_value_of_unknown_range_stays_float() -> None:
    program, moments = prepared(Gap(), torch.randn(2, 16, 5, 5))
    step = QuantizeDataFree(moments)
    assert "softmax" not in moments
    assert step.placement(program).float_reasons == {"conv2d_2": "no batch norm tells the range of softmax"}
    result = verify(step(program))
    assert integer_nodes(result).keys() == {"conv2d", "conv2d_1", "conv2d_3"}
    assert any("no batch norm tells the range of softmax" in note for note in result.notes)


def test_golden_quantize_data_free(golden: Golden) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 16, 1))
    program, moments = prepared(net, torch.randn(2, 4, 6, 6))
    golden(program, QuantizeDataFree(moments)(program))


def coarse(program: Program, x: Tensor, bits: int) -> Program:
    return Calibrate([x], "minmax", scheme=Scheme(weight_bits=bits))(InsertObservers("x86")(program))


def test_the_correction_of_a_linear_by_hand() -> None:
    """With steps of 1, the weights 1.0 and 0.4 become 1 and 0: 0.4 times the mean 2.5 of the second input is lost."""
    linear = nn.Linear(4, 4)
    linear.weight.data = torch.tensor([[1.0, 0.4, 0.0, 0.0], *torch.eye(4)[1:].tolist()])
    linear.bias.data = torch.tensor([3.0, 0.0, 0.0, 0.0])
    x = torch.randn(8, 4)
    program = capture(linear, x)
    moments = {"input": normal(torch.tensor([7.0, 2.5, 1.0, 1.0]), torch.ones(4), Channels((1,)))}
    name = program.placeholders[0].name
    found = CorrectBiasByMoments({name: moments["input"]})(coarse(program, x, 2))
    torch.testing.assert_close(dict(found.module.named_buffers())["bias_corrected"], torch.tensor([4.0, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_the_mean_of_each_channel_is_back_where_it_was(groups: int) -> None:
    """Inputs that are constant in each channel have no variance, and without padding all taps see them."""
    net = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.Conv2d(16, 16, 3, groups=groups), nn.Conv2d(16, 16, 1))
    x = torch.rand(16)[:, None, None].expand(4, 16, 6, 6).contiguous()
    program = capture(net, x)
    names = [program.placeholders[0].name, "conv2d", "conv2d_1"]
    exact = {name: value[0, :, 0, 0] for name, value in node_values(program, (x,), names).items()}
    before = coarse(program, x, 4)
    after = CorrectBiasByMoments({n: normal(v, torch.zeros(16), Channels((1,))) for n, v in exact.items()})(before)
    errors = [node_values(p, (x,), ["conv2d_1"])["conv2d_1"][0, :, 0, 0] - exact["conv2d_1"] for p in (before, after)]
    assert float(errors[0].abs().max()) > 0.02
    assert float(errors[1].abs().max()) < 0.01  # what is left is the rounding of values to 8 bits
