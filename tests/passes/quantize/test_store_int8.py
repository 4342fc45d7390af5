"""StoreInt8: weights of float recurrent layers stored as int8; the proof allows that, and that only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import PassError
from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import validate
from fxopt.graph.capture import capture
from fxopt.graph.interpret import run, sqnr
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.printer import format_program
from fxopt.graph.program import Program
from fxopt.graph.quantized import stored_nodes
from fxopt.graph.serialize import load
from fxopt.graph.verify import verify
from fxopt.passes.quantize import QuantizeDynamic, StoreInt8
from tests.conftest import Golden

X = torch.randn(6, 3, 64, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    """A linear, then a recurrent layer: x[T, N, 64] -> sequence and states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.linear, self.layer = nn.Linear(64, 64), layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(self.linear(x))


def program_of(layer: nn.Module) -> Program:
    return capture(Recurrent(layer).eval(), X, dynamic={"x": {0: "time", 1: "batch"}})


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: nn.GRU(64, 64, 2, bidirectional=True),
    "gru without bias": lambda: nn.GRU(64, 64, bias=False),
    "rnn": lambda: nn.RNN(64, 64, nonlinearity="relu"),
    "lstm": lambda: nn.LSTM(64, 64, bidirectional=True),
}


@pytest.mark.parametrize(
    ("layer", "target"), [("gru", "x86"), ("gru without bias", "portable"), ("rnn", "x86"), ("lstm", "portable")]
)
@pytest.mark.vnni
def test_the_file_shrinks_and_is_proved(layer: str, target: str, tmp_path: Path) -> None:
    program = program_of(LAYERS[layer]())
    stored = verify(Pipeline((QuantizeDynamic(target=target), StoreInt8()))(program), full=True)
    emitted = to_onnx(stored, tmp_path / "m.onnx", target=target)
    result = validate(tmp_path / "m.onnx", stored, (X,), target=target)
    assert result.ok, result.failures
    assert not emitted.delegated
    assert (
        result.census is not None and result.census.weight_dequantize == 0 and set(result.census.integer) == {"linear"}
    )
    assert result.census.stored_weights == (4 if layer == "gru" else 2)
    assert emitted.file_bytes < 0.33 * to_onnx(program, target=target).file_bytes
    for error in result.outputs:
        assert error.sqnr > 60
    for expected, actual in zip(run(program, (X,)), run(stored, (X,)), strict=True):
        assert sqnr(expected, actual) > 30


def test_the_values_are_those_of_the_rounded_weights() -> None:
    layer = nn.GRU(64, 32)
    (expected, *_) = run(StoreInt8()(capture(layer, X)), (X,))
    with torch.no_grad():
        for weight in (value for name, value in layer.named_parameters() if name.startswith("weight")):
            step = weight.abs().amax(1, keepdim=True) / 127
            weight.copy_(torch.round(weight / step) * step)
    torch.testing.assert_close(layer(X)[0], expected, rtol=0, atol=1e-6)


def test_weights_that_nobody_asked_for_are_still_found(tmp_path: Path) -> None:
    """The file stores the weights of two layers, its Program asks for those of one."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.GRU(64, 64), nn.GRU(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x)[0])[0]
            return y

    program = capture(Two(), X)
    to_onnx(StoreInt8()(program), tmp_path / "m.onnx", target="x86")
    asked = StoreInt8(keep_float=["gru_1"])(program)
    assert stored_nodes(asked) == {"gru"}
    result = validate(tmp_path / "m.onnx", asked, (X,), target="x86", tolerance=1.0)
    assert result.census is not None and (result.census.weight_dequantize, result.census.stored_weights) == (2, 2)
    assert result.failures == ("2 constant weights are dequantized on every run.",)


def test_golden_store_int8(golden: Golden) -> None:
    program = capture(
        nn.GRU(3, 2, bias=False, bidirectional=True), torch.zeros(4, 1, 3), dynamic={"input": {0: "time"}}
    )
    golden(program, StoreInt8()(program))


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    stored = StoreInt8()(program_of(nn.GRU(64, 32)))
    stored.save(tmp_path / "m.pt2")
    assert format_program(load(tmp_path / "m.pt2")) == format_program(stored)


def test_what_stays_float_has_a_reason() -> None:
    projected = StoreInt8()(capture(nn.LSTM(8, 6, proj_size=2), torch.zeros(3, 2, 8)))
    assert projected.notes == (
        "Float: lstm: its states are projected, which is folded into its weights for onnxruntime.",
    )
    kept = StoreInt8(keep_float={"gru": "asked for"})(program_of(nn.GRU(64, 32)))
    assert kept.notes == ("Float: gru: asked for.",) and not stored_nodes(kept)
    double = StoreInt8()(capture(nn.GRU(8, 6).double(), torch.zeros(3, 2, 8, dtype=torch.float64)))
    assert double.notes == ("Float: gru: its weights are not float32.",)
    twice = StoreInt8()(StoreInt8()(program_of(nn.GRU(64, 32))))
    assert twice.notes == ("Float: gru: its weights are computed, or stored as integers already.",)


def test_a_model_without_recurrent_layers_comes_back_the_same() -> None:
    program = capture(nn.Linear(3, 2), torch.zeros(4, 3))
    assert StoreInt8()(program) is program


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(PassError, match="does not have: nowhere"):
        StoreInt8(keep_float=["nowhere"])(program_of(nn.GRU(64, 32)))
