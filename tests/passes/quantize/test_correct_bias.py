"""Bias correction: the mean of each channel is that of the float layer, layer after layer, or nothing changes."""

import math

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import DataError
from fxopt.graph.capture import capture
from fxopt.graph.interpret import node_values, relative_noise, run, sqnr
from fxopt.graph.program import Program
from fxopt.graph.verify import verify
from fxopt.passes.quantize import Calibrate, Convert, CorrectBias, InsertObservers, Quantize
from tests.passes.quantize.nets import Encoder, Inverted, Residual, images, program_of


def calibrated(program: Program, *data: Tensor) -> Program:
    return Calibrate(list(data))(InsertObservers("x86")(program))


def coarse(model: nn.Module) -> nn.Module:
    """Give one weight of each layer a magnitude that makes the steps of all others coarse, and their errors biased."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            flat = layer.weight.data.flatten(1)
            flat += 0.02
            flat[:, 0] = 6.0 * flat.abs().max()
    return model.eval()


@pytest.mark.parametrize("net", [Residual, Inverted])
def test_outputs_come_nearer_to_the_float_ones(net: type[nn.Module]) -> None:
    x = images(8)
    program = program_of(coarse(net()), x)
    before = calibrated(program, x)
    after = verify(CorrectBias([x])(before), full=True)
    held_out = images(16)[8:]
    assert sqnr(program(held_out), after(held_out)) > sqnr(program(held_out), before(held_out)) + 1


def test_each_layer_keeps_its_mean_behind_the_corrected_layers_before() -> None:
    x = images(4)  # all are fitted: there is none left to judge by
    program = program_of(coarse(Residual()), x)
    after = CorrectBias([x])(calibrated(program, x))
    names = [node.name for node in program.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    expected, actual = node_values(program, (x,), names), node_values(after, (x,), names)
    for name in names:
        means = [values[name].mean((0, 2, 3)) for values in (expected, actual)]
        torch.testing.assert_close(means[1], means[0], rtol=1e-4, atol=1e-4)


def test_a_layer_without_bias_gets_one_and_becomes_integer_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxopt.passes.quantize.correct_bias.WORTH_IT_FITTED", math.inf)
    x = images(8)
    model = coarse(nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.ReLU(), nn.Conv2d(16, 16, 3, bias=False)))
    corrected = CorrectBias([x])(calibrated(capture(model, x), x))
    converted = verify(Convert("x86")(corrected), full=True)
    buffers = dict(converted.module.named_buffers())
    assert buffers["0.weight_bias_int32"].dtype is torch.int32


def test_what_only_fits_its_own_samples_is_left_out() -> None:
    """Corrections from images of one kind must not pass when they are judged on images of another."""
    bright, dark = images(8) + 3.0, images(8) - 3.0
    before = calibrated(program_of(coarse(Residual()), bright), bright, dark)
    after = CorrectBias([bright, dark])(before)
    assert "left out" in after.notes[-1]
    assert torch.equal(after(dark), before(dark))


def test_what_does_not_help_is_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(4)
    before = calibrated(program_of(Residual(), x), x)
    monkeypatch.setattr("fxopt.passes.quantize.correct_bias.relative_noise", lambda expected, actual: 1.0)
    after = CorrectBias([x])(before)
    assert "left out" in after.notes[-1]
    assert torch.equal(run(after, (x,))[0], run(before, (x,))[0])


def test_shared_biases_are_corrected_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxopt.passes.quantize.correct_bias.WORTH_IT_FITTED", math.inf)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
            self.second.bias = self.first.bias

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(torch.relu(self.first(x)))
            return y

    x = images(4)
    corrected = CorrectBias([x])(calibrated(capture(coarse(Shared()), x), x))
    biases = [node.args[2] for node in corrected.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    assert len(set(biases)) == 2


def test_inputs_of_other_shapes_and_transformers() -> None:
    data = [torch.randn(2, 5, 32), torch.randn(1, 7, 32)]
    program = capture(coarse(Encoder()), data[0], dynamic={"x": {0: "batch", 1: "sequence"}})
    before = calibrated(program, *data)
    after = CorrectBias(data)(before)
    noise = [relative_noise([program(x) for x in data], [found(x) for x in data]) for found in (before, after)]
    assert noise[1] <= noise[0]


def test_quantize_corrects_on_request_and_reads_a_stream_once() -> None:
    x = images(8)
    program = program_of(coarse(Residual()), x)
    reads = []

    def stream() -> object:
        for item in torch.split(x, 2):
            reads.append(item)
            yield item

    plain = Quantize(list(torch.split(x, 2)), correct_bias=False)(program)
    corrected = Quantize(stream(), correct_bias=True)(program)  # type: ignore[arg-type]
    assert len(reads) == 4
    assert sqnr(program(x), corrected(x)) > sqnr(program(x), plain(x)) + 1


def test_empty_data_is_an_error() -> None:
    x = images(2)
    with pytest.raises(DataError, match="empty"):
        CorrectBias([])(calibrated(program_of(Residual(), x), x))


def test_a_float_program_comes_back_as_it_is() -> None:
    program = program_of(Residual(), images(2))
    assert str(CorrectBias([])(program)) == str(program)
