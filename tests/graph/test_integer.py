"""Integer kernels: run_integer equals onnxruntime bit for bit on hand-made QDQ models."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fxopt.graph.capture import capture
from fxopt.graph.integer import find_kernels, run_integer
from fxopt.graph.interpret import run
from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.program import Program, TensorSpec
from fxopt.graph.rewrite import Edit
from fxopt.graph.verify import verify


@dataclass
class Layer:
    """One layer to be quantized: the integer weight and bias, all scales and zero points, and the op between them."""

    weight: Tensor
    weight_scale: Tensor
    weight_axis: int | None
    bias: Tensor | None
    x_scale: float
    x_zero_point: int
    y_scale: float
    y_zero_point: int
    dtype: torch.dtype
    op: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    onnx_op: str
    attributes: dict[str, Any]
    bound: float | None = None  # of a Relu (inf) or Clip to [0, bound] after the op


class QuantizedLayer(nn.Module):
    """q(clamp(op(dq(q(x)), dq(w), dq(bias)))), as fxopt's conversion leaves it."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("weight", layer.weight)
        self.register_buffer("weight_scale", layer.weight_scale)
        self.register_buffer("weight_zero_point", torch.zeros_like(layer.weight_scale, dtype=torch.int8))
        self.register_buffer("bias", layer.bias)
        self.register_buffer("bias_scale", layer.weight_scale * layer.x_scale)
        self.register_buffer("bias_zero_point", torch.zeros_like(layer.weight_scale, dtype=torch.int32))
        for name in ("x", "y"):
            self.register_buffer(f"{name}_scale", torch.tensor(getattr(layer, f"{name}_scale")))
            self.register_buffer(
                f"{name}_zero_point", torch.tensor(getattr(layer, f"{name}_zero_point"), dtype=layer.dtype)
            )

    def forward(self, x: Tensor) -> Tensor:
        layer, info = self.layer, torch.iinfo(self.layer.dtype)
        axis = None if layer.weight_axis is None else 0
        q = quantize(x, self.x_scale, self.x_zero_point, None, info.min, info.max, layer.dtype)
        x = dequantize(q, self.x_scale, self.x_zero_point, None)
        weight = dequantize(self.weight, self.weight_scale, self.weight_zero_point, layer.weight_axis)
        bias = None if layer.bias is None else dequantize(self.bias, self.bias_scale, self.bias_zero_point, axis)
        y = layer.op(x, weight, bias)
        if layer.bound is not None:
            y = y.relu() if layer.bound == float("inf") else nn.functional.hardtanh(y, 0.0, layer.bound)
        result = quantize(y, self.y_scale, self.y_zero_point, None, info.min, info.max, layer.dtype)
        assert isinstance(result, Tensor)
        return result


def onnx_model(layer: Layer, module: QuantizedLayer, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Write the same layer as an ONNX model of QuantizeLinear, DequantizeLinear and the op."""
    element = {torch.uint8: TensorProto.UINT8, torch.int8: TensorProto.INT8}[layer.dtype]
    initializers = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in module.named_buffers()]
    weight_axis: dict[str, Any] = {} if layer.weight_axis is None else {"axis": layer.weight_axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero_point"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero_point"], ["dq"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero_point"], ["w"], **weight_axis),
    ]
    operands = ["dq", "w"]
    if layer.bias is not None:
        bias_axis: dict[str, Any] = {} if layer.weight_axis is None else {"axis": 0}
        nodes.append(
            helper.make_node("DequantizeLinear", ["bias", "bias_scale", "bias_zero_point"], ["b"], **bias_axis)
        )
        operands.append("b")
    nodes.append(helper.make_node(layer.onnx_op, operands, ["float"], **layer.attributes))
    result = "float"
    if layer.bound is not None:
        result = "clamped"
        limits = [] if layer.bound == float("inf") else ["low", "high"]
        initializers += [
            numpy_helper.from_array(np.array(v, np.float32), n)
            for v, n in zip((0.0, layer.bound), limits, strict=False)
        ]
        nodes.append(helper.make_node("Clip" if limits else "Relu", ["float", *limits], ["clamped"]))
    nodes.append(helper.make_node("QuantizeLinear", [result, "y_scale", "y_zero_point"], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "layer", inputs, [helper.make_tensor_value_info("y", element, None)], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run_onnxruntime(model: onnx.ModelProto, x: Tensor, path: Path) -> tuple[np.ndarray[Any, Any], set[str]]:
    """Run with all optimisations; returns the result and the op types of the optimised graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path / "optimised.onnx")
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": x.numpy()})
    return result, {node.op_type for node in onnx.load(path / "optimised.onnx").graph.node}


def make_conv(
    dtype: torch.dtype, per_channel: bool, with_bias: bool, groups: int = 1, seed: int = 0, **changes: Any
) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    channels = 16
    weight = torch.randint(-127, 128, (channels, channels // groups, 3, 3), generator=generator, dtype=torch.int8)
    scale = torch.rand(channels, generator=generator) * 0.01 + 0.001 if per_channel else torch.tensor(0.0057)
    values: dict[str, Any] = {
        "weight": weight,
        "weight_scale": scale,
        "weight_axis": 0 if per_channel else None,
        "bias": torch.randint(-5000, 5000, (channels,), generator=generator, dtype=torch.int32) if with_bias else None,
        "x_scale": 0.0213,
        "x_zero_point": 117 if dtype == torch.uint8 else -11,
        "y_scale": 0.0931,
        "y_zero_point": 131 if dtype == torch.uint8 else 5,
        "dtype": dtype,
        "op": lambda x, w, b: torch.nn.functional.conv2d(x, w, b, stride=2, padding=1, groups=groups),
        "onnx_op": "Conv",
        "attributes": {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": groups},
    }
    return Layer(**(values | changes))


def check(layer: Layer, shape: tuple[int, ...], path: Path, kernel: str) -> Program:
    module = QuantizedLayer(layer).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2
    program = capture(module, x)
    expected, ops = run_onnxruntime(onnx_model(layer, module, shape), x, path)
    (actual,) = run_integer(program, (x,))
    assert kernel in ops, ops
    assert len(np.unique(expected)) > 30, "the example must not saturate"
    np.testing.assert_array_equal(actual.numpy(), expected)
    return program


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.vnni
def test_conv_equals_qlinearconv(dtype: torch.dtype, per_channel: bool, bias: bool, tmp_path: Path) -> None:
    program = check(make_conv(dtype, per_channel, bias), (2, 16, 13, 11), tmp_path, "QLinearConv")
    assert len(find_kernels(program)) == 1


@pytest.mark.parametrize("groups", [4, 16])
@pytest.mark.vnni
def test_grouped_conv_equals_qlinearconv(groups: int, tmp_path: Path) -> None:
    check(make_conv(torch.uint8, True, True, groups=groups, y_scale=0.031), (2, 16, 13, 11), tmp_path, "QLinearConv")


@pytest.mark.parametrize(("dtype", "zero_point"), [(torch.uint8, 0), (torch.int8, -128)])
@pytest.mark.parametrize("bound", [float("inf"), 6.0])
@pytest.mark.vnni
def test_redundant_clamp_belongs_to_the_kernel(
    dtype: torch.dtype, zero_point: int, bound: float, tmp_path: Path
) -> None:
    layer = make_conv(dtype, True, True, bound=bound, y_scale=6.0 / 255, y_zero_point=zero_point)
    program = check(layer, (2, 16, 9, 9), tmp_path, "QLinearConv")
    assert len(find_kernels(program)) == 1


def test_clamp_that_changes_values_stays_float() -> None:
    layer = make_conv(torch.uint8, True, True, bound=float("inf"), y_zero_point=100)
    program = capture(QuantizedLayer(layer), torch.randn(1, 16, 5, 5))
    assert find_kernels(program) == []
    x = torch.randn(1, 16, 5, 5)
    assert torch.equal(run_integer(program, (x,))[0], run(program, (x,))[0])
    assert int(run(program, (x,))[0].min()) == 100


def matmul_layer() -> Layer:
    return make_conv(
        torch.uint8, True, False,
        weight=torch.randint(-127, 128, (24, 40), generator=torch.Generator().manual_seed(3), dtype=torch.int8),
        weight_scale=torch.rand(40, generator=torch.Generator().manual_seed(4)) * 0.01 + 0.001,
        weight_axis=1, op=lambda x, w, b: torch.matmul(x, w), onnx_op="MatMul", attributes={},
    )  # fmt: skip


@pytest.mark.vnni
def test_matmul_equals_qlinearmatmul(tmp_path: Path) -> None:
    check(matmul_layer(), (3, 7, 24), tmp_path, "QLinearMatMul")


@pytest.mark.vnni
def test_linear_equals_qgemm(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = make_conv(
        torch.uint8, True, True,
        weight=torch.randint(-127, 128, (40, 24), generator=generator, dtype=torch.int8),
        weight_scale=torch.rand(40, generator=generator) * 0.01 + 0.001,
        bias=torch.randint(-5000, 5000, (40,), generator=generator, dtype=torch.int32),
        op=nn.functional.linear, onnx_op="Gemm", attributes={"transB": 1},
    )  # fmt: skip
    check(layer, (30, 24), tmp_path, "QGemm")


def test_weight_scale_along_the_summed_axis_is_no_kernel() -> None:
    layer = matmul_layer()
    layer.weight_axis, layer.weight_scale = 0, torch.rand(24) + 0.1
    assert find_kernels(capture(QuantizedLayer(layer), torch.randn(5, 24))) == []


@pytest.mark.vnni
def test_linear_without_quantize_equals_matmulintegertofloat(tmp_path: Path) -> None:
    layer = matmul_layer()
    module = QuantizedLayer(layer)
    model = onnx_model(layer, module, (3, 7, 24))
    model.graph.node.pop()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("float", TensorProto.FLOAT, None))
    x = torch.randn(3, 7, 24)
    expected, ops = run_onnxruntime(model, x, tmp_path)
    assert "MatMulIntegerToFloat" in ops

    program = capture(module, x)
    edit = Edit(program, by=None)
    *_, last = edit.calls(quantize)
    edit.graph.output_node().args = ((last.args[0],),)
    spec = TensorSpec("output", torch.float32, (3, 7, 40))
    (actual,) = run_integer(verify(edit.finish(outputs=(spec,))), (x,))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=3e-7)


@pytest.mark.vnni
def test_float_bias_is_rounded_as_onnxruntime_does(tmp_path: Path) -> None:
    layer = make_conv(torch.uint8, True, True)
    module = QuantizedLayer(layer)
    model = onnx_model(layer, module, (1, 16, 9, 9))
    assert layer.bias is not None
    bias = (layer.bias * layer.weight_scale * layer.x_scale) + 1e-4
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.input[2] = "float_bias"
    model.graph.initializer.append(numpy_helper.from_array(bias.numpy(), "float_bias"))
    x = torch.randn(1, 16, 9, 9)
    expected, ops = run_onnxruntime(model, x, tmp_path)
    assert "QLinearConv" in ops
    layer.op = lambda x, w, b: nn.functional.conv2d(x, w, bias, stride=2, padding=1)
    (actual,) = run_integer(capture(module, x), (x,))
    np.testing.assert_array_equal(actual.numpy(), expected)


def test_float_program_runs_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 8, 8)
    program = capture(model, x)
    assert torch.equal(run_integer(program, (x,))[0], model(x))
