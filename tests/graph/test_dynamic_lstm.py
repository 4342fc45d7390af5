"""dynamic_lstm has the arithmetic of onnxruntime's DynamicQuantizeLSTM, bit for bit, and fits torch's op rules."""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fxopt.export.session import Session
from fxopt.graph import logistic
from fxopt.graph.capture import capture
from fxopt.graph.cost import macs
from fxopt.graph.dynamic_lstm import dynamic_lstm
from fxopt.graph.interpret import sqnr
from fxopt.passes.quantize import QuantizeDynamic

# The kernel's sigmoid and tanh are known to the last bit where they have fused multiply-adds of 8 or 16 lanes.
HAS_KNOWN_FUNCTIONS = torch.backends.cpu.get_cpu_capability().startswith("AVX")


@dataclass(frozen=True)
class Layer:
    """The int8 parameters of a layer in torch's order of gates, as dynamic_lstm takes them."""

    weight_ih: Tensor
    weight_hh: Tensor
    scale_ih: Tensor
    scale_hh: Tensor
    bias: Tensor | None

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        """All, in the order of the op's arguments."""
        return self.weight_ih, self.weight_hh, self.scale_ih, self.scale_hh, self.bias


def draw_layer(directions: int, inputs: int, units: int, bias: bool) -> Layer:
    return Layer(
        torch.randint(-127, 128, (directions, 4 * units, inputs)).to(torch.int8),
        torch.randint(-127, 128, (directions, 4 * units, units)).to(torch.int8),
        torch.rand(directions, 4 * units) * 0.01 + 0.001,
        torch.rand(directions, 4 * units) * 0.01 + 0.001,
        torch.randn(directions, 4 * units) if bias else None,
    )


def kernel(layer: Layer, states: bool) -> onnx.ModelProto:
    """Write the one-node model x[, h, c] -> y, h, c of onnxruntime's kernel, from numpy alone."""
    directions, _, units = layer.weight_hh.shape

    def onnx_order(value: Tensor) -> np.ndarray:
        i, f, c, o = np.split(value.numpy(), 4, axis=1)
        return np.concatenate([i, o, f, c], axis=1)

    constants = {
        "w": np.ascontiguousarray(onnx_order(layer.weight_ih).transpose(0, 2, 1)),
        "r": np.ascontiguousarray(onnx_order(layer.weight_hh).transpose(0, 2, 1)),
        "w_scale": onnx_order(layer.scale_ih),
        "r_scale": onnx_order(layer.scale_hh),
        "zero": np.zeros((directions, 4 * units), np.int8),
    }
    if layer.bias is not None:
        half = onnx_order(layer.bias)
        constants["b"] = np.concatenate([half * 0.25, half * 0.75], axis=1)
    given_states = ["h", "c"] if states else ["", ""]
    bias = "" if layer.bias is None else "b"
    names = ["x", "w", "r", bias, "", *given_states, "", "w_scale", "zero", "r_scale", "zero"]
    node = helper.make_node(
        "DynamicQuantizeLSTM", names, ["y", "y_h", "y_c"], domain="com.microsoft", hidden_size=units,
        direction="bidirectional" if directions == 2 else "forward",
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "lstm",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names[:1] + names[5:7] if name],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "y_h", "y_c")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def run_kernel(layer: Layer, *inputs: Tensor, threads: int = 1) -> list[Tensor]:
    """Run onnxruntime's kernel; returns its results in torch's shapes."""
    y, h, c = Session(kernel(layer, len(inputs) > 1), threads=threads)(*inputs)
    return [y.permute(0, 2, 1, 3).flatten(2), h, c]


def assert_same(actual: tuple[Tensor, ...], expected: list[Tensor]) -> None:
    for left, right in zip(actual, expected, strict=True):
        assert left.shape == right.shape
        assert torch.equal(left, right) if HAS_KNOWN_FUNCTIONS else sqnr(right, left) > 60


@settings(max_examples=15, deadline=None)
@given(
    directions=st.sampled_from([1, 2]),
    sizes=st.tuples(st.integers(1, 24), st.integers(1, 40), st.integers(1, 5), st.integers(1, 12)),
    bias=st.booleans(),
    states=st.booleans(),
    seed=st.integers(0, 2**31),
)
@pytest.mark.vnni
def test_every_bit_is_that_of_onnxruntime(
    directions: int, sizes: tuple[int, int, int, int], bias: bool, states: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    inputs, units, batch, time = sizes
    layer = draw_layer(directions, inputs, units, bias)
    x = torch.randn(time, batch, inputs) * 3
    first = tuple(torch.randn(2, directions, batch, units)) if states else ()
    expected = run_kernel(layer, x, *first)
    assert_same(dynamic_lstm(x, *(first or (None, None)), *layer.parameters), expected)


@pytest.mark.vnni
def test_several_threads_quantize_their_shares_of_the_batch_by_themselves() -> None:
    layer = draw_layer(1, 12, 64, True)
    x = torch.randn(20, 4, 12).clamp(-3, 3)
    x[0, :, 0], x[0, :, 1] = 3.0, -3.0  # each share has the range of all
    shares = [dynamic_lstm(x[:, part], None, None, *layer.parameters) for part in (slice(0, 2), slice(2, 4))]
    together = run_kernel(layer, x, threads=2)
    assert_same(tuple(torch.cat(parts, 1) for parts in zip(*shares, strict=True)), together)
    whole = dynamic_lstm(x, None, None, *layer.parameters)
    assert 30 < sqnr(whole[0], together[0]) < 100


def test_it_is_near_the_lstm_of_the_same_weights() -> None:
    model, layer = nn.LSTM(20, 32, bidirectional=True), draw_layer(2, 20, 32, True)
    layer = replace(layer, scale_hh=layer.scale_hh * 0.2)  # recurrence that does not amplify its own roundings
    assert layer.bias is not None
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for d, suffix in enumerate(("", "_reverse")):
            parameters[f"weight_ih_l0{suffix}"].copy_(layer.weight_ih[d] * layer.scale_ih[d][:, None])
            parameters[f"weight_hh_l0{suffix}"].copy_(layer.weight_hh[d] * layer.scale_hh[d][:, None])
            parameters[f"bias_ih_l0{suffix}"].copy_(layer.bias[d])
            parameters[f"bias_hh_l0{suffix}"].zero_()
    x = torch.randn(10, 3, 20)
    y, (h, c) = model(x)
    for dtype in (torch.float32, torch.float64):
        results = dynamic_lstm(x.to(dtype), None, None, *layer.parameters)
        for actual, expected in zip(results, (y, h, c), strict=True):
            assert actual.dtype is dtype and sqnr(expected, actual) > 30


def test_tanh_has_every_bit_of_onnxruntime_s() -> None:
    x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([0.0, -0.0, 1e-30, torch.inf, -torch.inf])])
    node = helper.make_node("Tanh", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([node], "tanh", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (expected,) = Session(model)(x)
    assert (logistic.tanh(x) != expected).double().mean() < (0 if HAS_KNOWN_FUNCTIONS else 1e-2) + 1e-9
    torch.testing.assert_close(logistic.tanh(x), torch.tanh(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("states", [False, True])
def test_torch_accepts_schema_and_fake_kernel(states: bool) -> None:
    first = (torch.randn(2, 3, 4), torch.randn(2, 3, 4)) if states else (None, None)
    layer = draw_layer(2, 5, 4, states)
    torch.library.opcheck(dynamic_lstm, (torch.randn(6, 3, 5), *first, *layer.parameters))


def test_no_steps_leave_the_states_as_they_are() -> None:
    first = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    y, h, c = dynamic_lstm(torch.zeros(0, 3, 5), *first, *draw_layer(1, 5, 4, True).parameters)
    assert y.shape == (0, 3, 4) and torch.equal(h, first[0]) and torch.equal(c, first[1])


def test_it_costs_what_the_float_lstm_costs() -> None:
    program = capture(nn.LSTM(40, 96, 2, bidirectional=True), torch.zeros(5, 2, 40), dynamic={"input": {0: "time"}})
    assert macs(QuantizeDynamic()(program)) == macs(program) > 0
