"""Dynamic int8 LSTMs: every form in integer kernels with the very same values, and what stays float with a reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import ExportError
from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import validate
from fxopt.graph.capture import capture
from fxopt.graph.dynamic_lstm import dynamic_lstm
from fxopt.graph.interpret import run, sqnr
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.printer import format_program
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes
from fxopt.graph.serialize import load
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import QuantizeDynamic
from fxopt.target import TARGETS
from tests.conftest import Golden
from tests.graph.test_dynamic_lstm import HAS_KNOWN_FUNCTIONS

# Integers gain from 96 hidden units on: the smallest LSTM that becomes integer.
UNITS = 96
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "bidirectional": {"bidirectional": True},
    "stacked without bias": {"num_layers": 3, "bias": False, "batch_first": True, "dropout": 0.1},
    "stacked bidirectional": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}


class Stateful(nn.Module):
    """An LSTM that is given its states."""

    def __init__(self, **form: Any) -> None:
        super().__init__()
        self.layer = nn.LSTM(20, UNITS, **form)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        result: tuple[Tensor, tuple[Tensor, Tensor]] = self.layer(x, (h, c))
        return result


def program_of(form: dict[str, Any], states: bool) -> tuple[Program, tuple[Tensor, ...]]:
    """Capture an LSTM with both its batch and its time dynamic; returns example inputs too."""
    batch, chains = (0, 1)[not form.get("batch_first")], form.get("num_layers", 1) * (1 + form.get("bidirectional", 0))
    sizes = {batch: "batch", 1 - batch: "time"}
    x = torch.randn(4, 5, 20)
    if not states:
        return capture(nn.LSTM(20, UNITS, **form).eval(), x, dynamic={"input": sizes}), (x,)
    inputs = (x, *torch.randn(2, chains, x.shape[batch], UNITS))
    dynamic = {"x": sizes, "h": {1: "batch"}, "c": {1: "batch"}}
    return capture(Stateful(**form).eval(), inputs, dynamic=dynamic), inputs


@pytest.mark.parametrize(("name", "states"), list(zip(FORMS, (True, False, True, False, True), strict=True)))
@pytest.mark.vnni
def test_every_form_runs_in_integer_kernels_with_the_very_same_values(name: str, states: bool, tmp_path: Path) -> None:
    form = FORMS[name]
    program, inputs = program_of(form, states)
    quantized = verify(QuantizeDynamic()(program), full=True)
    claimed = integer_nodes(quantized)
    assert list(claimed.values()) == ["lstm"] * form.get("num_layers", 1) and "lstm" in claimed
    to_onnx(quantized, tmp_path / "m.onnx", target="x86")
    result = validate(tmp_path / "m.onnx", quantized, inputs, target="x86")
    assert result.ok, result.failures
    assert result.census is not None and set(result.census.integer.values()) == {"DynamicQuantizeLSTM"}
    assert result.census.float_compute == () and {"batch", "time"} == result.sizes[0].keys()
    # Without optimisations there is one thread, which the Program is exact for.
    assert all(error.sqnr > (1000 if HAS_KNOWN_FUNCTIONS else 60) for error in result.unoptimised)
    for expected, actual in zip(run(program, inputs), run(quantized, inputs), strict=True):
        assert sqnr(expected, actual) > 33


@pytest.mark.parametrize("form", ["batch first", "stacked bidirectional"])
def test_it_is_saved_and_loaded(form: str, tmp_path: Path) -> None:
    program, inputs = program_of(FORMS[form], True)
    quantized = QuantizeDynamic()(program)
    quantized.save(tmp_path / "m.pt2")
    again = load(tmp_path / "m.pt2")
    assert format_program(again) == format_program(quantized)
    for expected, actual in zip(run(quantized, inputs), run(again, inputs), strict=True):
        assert torch.equal(expected, actual)


def test_golden_quantize_recurrent(golden: Golden) -> None:
    program, _ = program_of(FORMS["stacked bidirectional"], True)
    golden(program, QuantizeDynamic()(program))


def test_a_layer_that_is_called_twice_is_stored_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(UNITS, UNITS)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(self.layer(x)[0])[0]
            return y

    quantized = verify(QuantizeDynamic()(capture(Twice(), torch.zeros(3, 2, UNITS))))
    assert list(integer_nodes(quantized)) == ["lstm", "lstm_1"]
    assert len([name for name, _ in quantized.module.named_buffers() if name.endswith("int8")]) == 2


@pytest.mark.parametrize(
    ("layer", "target", "reason"),
    [
        (nn.LSTM(20, UNITS - 1), "x86", "95 hidden units; integers gain from 96 on"),
        (nn.LSTM(20, UNITS, proj_size=8), "arm64", "its states are projected, which the integer kernel cannot do"),
        (nn.LSTM(20, UNITS), "portable", "target portable has no integer kernel for recurrent ops"),
        (nn.LSTM(20, UNITS).double(), "x86", "its input is float64; the kernel takes float32"),
        (nn.GRU(20, UNITS), "x86", "onnxruntime has no integer kernel for it"),
        (nn.RNN(20, UNITS), "x86", "onnxruntime has no integer kernel for it"),
        (nn.LSTMCell(20, UNITS), "x86", "onnxruntime has no integer kernel for it"),
    ],
    ids=lambda value: getattr(value, "_get_name", lambda: None)(),
)
def test_what_stays_float_has_a_reason(layer: nn.Module, target: str, reason: str) -> None:
    x = torch.zeros(3, 20) if isinstance(layer, nn.LSTMCell) else torch.zeros(3, 2, 20)
    program = capture(layer, x.to(next(layer.parameters()).dtype))
    quantized = QuantizeDynamic(target=target)(program)
    (note,) = quantized.notes
    assert note.startswith("Float: ") and note.endswith(f": {reason}.")
    assert not integer_nodes(quantized) and format_program(quantized) == format_program(program)


def test_computed_weights_and_named_nodes_stay_float() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.kept = nn.LSTM(20, UNITS), nn.LSTM(UNITS, UNITS)

        def forward(self, x: Tensor) -> Tensor:
            weights = {name: value * 2 for name, value in self.layer.named_parameters()}
            y: Tensor = self.kept(torch.func.functional_call(self.layer, weights, (x,))[0])[0]
            return y

    quantized = QuantizeDynamic(keep_float={"lstm_1": "asked for"})(capture(Computed(), torch.zeros(3, 2, 20)))
    assert quantized.notes == ("Float: lstm: its weights are computed.", "Float: lstm_1: asked for.")


def test_another_target_refuses_the_export() -> None:
    program, _ = program_of({}, False)
    with pytest.raises(ExportError, match=r"QuantizeDynamic\(target='portable'\)"):
        to_onnx(QuantizeDynamic()(program), target="portable")


def test_it_runs_behind_the_cleanup_passes_and_before_them() -> None:
    program, inputs = program_of(FORMS["stacked bidirectional"], False)
    cleaned = Pipeline((*CLEANUP, QuantizeDynamic(), *CLEANUP))(program)
    verify(cleaned, full=True)
    assert len([node for node in cleaned.graph.nodes if node.target is dynamic_lstm]) == 2
    for expected, actual in zip(run(QuantizeDynamic()(program), inputs), run(cleaned, inputs), strict=True):
        assert torch.equal(expected, actual)


def test_the_targets_say_from_where_on_integers_gain() -> None:
    assert {target.lstm_minimum for target in TARGETS.values() if target.contrib_ops} == {UNITS}
    assert TARGETS["portable"].lstm_minimum is None


def test_weights_stay_inside_the_range_of_the_target() -> None:
    program, (x,) = program_of({}, False)
    for target in ("x86", "x86-avx2"):
        quantized = QuantizeDynamic(target=target)(program)
        largest = [int(value.abs().max()) for _, value in quantized.module.named_buffers() if value.dtype is torch.int8]
        assert largest == [TARGETS[target].weight_max] * 2
        assert sqnr(run(program, (x,))[0], run(quantized, (x,))[0]) > 30
