"""The rows of layers: precision of every kind, errors against values by hand, times of planted profiles."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fxopt.export.measure import KernelTime
from fxopt.graph.capture import capture
from fxopt.graph.cost import macs_per_sample
from fxopt.graph.interpret import node_values, sqnr
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.job import Job, Proved, silent
from fxopt.layers import NO_FORM, STAYS_FLOAT, LayerRow, Layers, few_samples, layer_rows, output_errors
from fxopt.passes.quantize import Quantize, QuantizeDynamic, QuantizeEmbeddings, QuantizeWeights
from fxopt.passes.quantize.quantize_dynamic import dynamic_float_reasons
from fxopt.target import TARGETS
from tests.passes.quantize.nets import Residual, images, program_of

X = images(4)


def proved(program: Program, reasons: Mapping[str, str] | None = None, path: str = "static") -> Proved:
    unused: Any = SimpleNamespace()
    return Proved(program, unused, Path(path), unused, reasons or {})


def by_name(baseline: Program, result: Proved) -> dict[str, LayerRow]:
    return {row.name: row for row in layer_rows(baseline, result, {}, {})}


@pytest.fixture(scope="module")
def program() -> Program:
    return program_of(Residual(), X)


@pytest.fixture(scope="module")
def quantized(program: Program) -> Program:
    return Quantize([X], keep_float={"conv2d_1": "asked for"}, correct_bias=False)(program)


def test_rows_are_the_layers_in_the_order_of_the_graph(program: Program, quantized: Program) -> None:
    rows = layer_rows(program, proved(quantized, {"conv2d_1": "asked for"}), {}, {})
    names = [node.name for node in program.graph.nodes]
    assert [row.name for row in rows] == sorted((row.name for row in rows), key=names.index)
    convolutions = ["conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "conv2d_4"]
    assert {row.name for row in rows} == {*convolutions, "add", "add_1", "adaptive_avg_pool2d", "linear"}
    floats = {row.name: row.reason for row in rows if row.precision == "float"}
    assert floats == {"conv2d_1": "asked for"} and {row.precision for row in rows} == {"float", "int8"}
    assert sum(row.macs for row in rows) == macs_per_sample(program)
    assert rows[0] == LayerRow("conv2d", "aten.conv2d.default", "int8", 16 * 16 * 16 * 3 * 7 * 7)


class Mixed(nn.Module):
    """tokens[T, T] -> [T, T, 8]: a table, an LSTM with as many steps as sequences, a linear, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(600, 32)
        self.layer = nn.LSTM(32, 96, batch_first=True)
        self.head = nn.Linear(96, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.layer(self.table(tokens))[0])
        return y @ y.transpose(-1, -2)


TOKENS = torch.arange(36).reshape(6, 6)


@pytest.fixture(scope="module")
def mixed() -> Program:
    torch.manual_seed(0)
    return capture(Mixed().eval(), TOKENS)


def test_dynamic_layers_and_tables(mixed: Program) -> None:
    result = proved(QuantizeEmbeddings()(QuantizeDynamic()(mixed)), dynamic_float_reasons(mixed, (), TARGETS["x86"]))
    precisions = {name: (row.precision, row.reason) for name, row in by_name(mixed, result).items()}
    expected = {"embedding": "int8 weights", "lstm": "int8 dynamic", "linear": "int8 dynamic"}
    assert precisions == {**{name: (kind, "") for name, kind in expected.items()}, "matmul": ("float", NO_FORM)}


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_alone(mixed: Program, bits: int) -> None:
    rows = by_name(mixed, proved(QuantizeWeights(bits)(mixed)))
    assert rows["linear"].precision == f"int{bits} weights"
    assert rows["lstm"].precision == "float" and rows["lstm"].reason == NO_FORM


def test_a_float_result_has_reasons_too(program: Program) -> None:
    rows = by_name(program, proved(program, {"conv2d": "it lost", "max_pool2d": "it lost"}))
    assert rows["conv2d"].reason == "it lost" and rows["linear"].reason == STAYS_FLOAT
    assert {row.precision for row in rows.values()} == {"float"}


def test_errors_are_those_of_the_values(program: Program, quantized: Program) -> None:
    names = ["conv2d", "add", "linear"]
    left, right = (node_values(side, (X,), names) for side in (program, quantized))
    errors = output_errors(program, quantized, (X,), [*names, "missing"])
    assert errors == {name: pytest.approx(sqnr(left[name], right[name])) for name in names}


def test_an_lstm_is_compared_in_the_layout_of_the_float_one(mixed: Program) -> None:
    """With as many steps as sequences the transposed result has the same shape, and an SQNR of about 0 dB."""
    (error,) = output_errors(mixed, QuantizeDynamic()(mixed), (TOKENS,), ["lstm"]).values()
    assert error > 30


def test_the_sample_is_small() -> None:
    program = program_of(Residual(), X)
    assert [len(part) for part in few_samples([X[:3], X], program)] == [2]
    fixed = capture(Residual().eval(), X)
    assert [len(part) for part in few_samples([X], fixed)] == [4]


def scaled(program: Program) -> Program:
    """Return a Program that computes the same, with the first layer's output a hundred times as large inside."""
    edit = Edit(program, by=None)
    (first, *_) = edit.calls(torch.ops.aten.conv2d.default)
    (user,) = first.users
    back = edit.call(torch.ops.aten.mul.Tensor, first, 0.01, before=user)
    user.replace_input_with(first, back)
    large = edit.call(torch.ops.aten.mul.Tensor, first.args[0], 100.0, before=first)
    bias = edit.add_constant("large_bias", edit.constant(first.args[2]).detach() * 100, before=first)  # type: ignore[union-attr]
    first.args = (large, first.args[1], bias, *first.args[3:])
    return edit.finish()


def job() -> Job:
    found = Job(TARGETS["x86"], None, None, silent, "m.onnx")
    micro = 1e-6
    least = KernelTime("other", "Relu", 0.0)  # what is least counts as the price of recording
    found.profiles = {
        Path("float"): [
            least,
            KernelTime("conv2d_nchwc", "Conv", 90 * micro),
            KernelTime("conv2d_1", "Conv", 80 * micro),
            KernelTime("linear", "Gemm", 5 * micro),
        ],
        Path("static"): [
            least,
            KernelTime("conv2d_token_1", "QLinearConv", 30 * micro),
            KernelTime("conv2d_1", "QLinearConv", 95 * micro),
            KernelTime("linear", "Gemm", 6 * micro),
        ],
        Path("timed"): [
            least,
            KernelTime("conv2d", "QLinearConv", 20 * micro),
            KernelTime("conv2d_quantize", "QuantizeLinear", 500 * micro),
            KernelTime("conv2d_1", "Conv", 81 * micro),
        ],
    }
    return found


@pytest.mark.parametrize(("path", "seconds"), [("timed", 20e-6), ("static", 30e-6)])
def test_times_are_of_the_result_and_then_of_what_was_tried(
    program: Program, quantized: Program, path: str, seconds: float
) -> None:
    """A float layer has the time of its integer kernel if one was tried; a float kernel is none."""
    table = Layers(job(), program, Path("float"), (X,), None)
    rows = {row.name: row for row in table.rows(proved(quantized, path=path), program)}
    found = [
        value for name in ("conv2d", "conv2d_1") for value in (rows[name].float_seconds, rows[name].integer_seconds)
    ]
    assert found == pytest.approx([90e-6, seconds, 80e-6, 95e-6])
    assert rows["linear"].float_seconds == pytest.approx(5e-6) and rows["linear"].integer_seconds is None
    assert rows["add"].float_seconds is None and rows["add"].error is None


def test_without_inputs_there_are_no_times_and_errors_follow_the_moved_scales(program: Program) -> None:
    exact = scaled(program)
    result = proved(Quantize([X], correct_bias=False)(exact))
    rows = Layers(job(), program, Path("float"), None, (X,)).rows(result, exact)
    assert all(row.float_seconds is None and row.integer_seconds is None for row in rows)
    errors = {row.name: row.error for row in rows}
    assert all(cast(float, error) > 20 for error in errors.values())
    assert output_errors(program, result.program, (X,), ["conv2d"])["conv2d"] < 1  # against the unscaled ones
