"""fxopt's own ops have the arithmetic of ONNX QuantizeLinear and DequantizeLinear, and fit torch's op rules."""

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from fxopt.graph.ops import dequantize, dynamic_quantize, fake_quantize, observe, quantize

SCALE, ZERO_POINT = torch.tensor([0.1, 0.5]), torch.tensor([3, -4], dtype=torch.int8)


def reference(op: str, arrays: list[np.ndarray], axis: int | None) -> np.ndarray:
    """Run one ONNX op in onnx's own reference evaluator."""
    names = ["x", "scale", "zero_point"]
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in zip(names, arrays, strict=True)
    ]
    attributes = {} if axis is None else {"axis": axis}
    result = helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], None, None, None, None, **attributes)], "g", values, [result]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (y,) = ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))
    return np.asarray(y)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([torch.int8, torch.uint8]),
    st.integers(-128, 127),
    st.floats(2**-10, 8.0, width=32),
    st.integers(0, 2**31),
)
def test_per_tensor_equals_onnx(dtype: torch.dtype, zero: int, step: float, seed: int) -> None:
    info = torch.iinfo(dtype)
    zero_point = (
        torch.tensor(zero - info.min - 128 if dtype == torch.uint8 else zero).clamp(info.min, info.max).to(dtype)
    )
    scale = torch.tensor(step, dtype=torch.float32)
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * step * 200
    x[:8] = (torch.arange(8) + 0.5) * step  # ties, which round to even
    q = quantize(x, scale, zero_point, None, info.min, info.max, dtype)
    arrays = [x.numpy(), scale.numpy(), zero_point.numpy()]
    np.testing.assert_array_equal(q.numpy(), reference("QuantizeLinear", arrays, None))
    arrays[0] = q.numpy()
    np.testing.assert_array_equal(
        dequantize(q, scale, zero_point, None).numpy(), reference("DequantizeLinear", arrays, None)
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_per_channel_equals_onnx(axis: int) -> None:
    x = torch.randn(2, 2, 2) * 10
    q = quantize(x, SCALE, ZERO_POINT, axis, -128, 127, torch.int8)
    arrays = [x.numpy(), SCALE.numpy(), ZERO_POINT.numpy()]
    np.testing.assert_array_equal(q.numpy(), reference("QuantizeLinear", arrays, axis))
    arrays[0] = q.numpy()
    expected = reference("DequantizeLinear", arrays, axis)
    np.testing.assert_array_equal(dequantize(q, SCALE, ZERO_POINT, axis).numpy(), expected)
    torch.testing.assert_close(fake_quantize(x, SCALE, ZERO_POINT, axis, -128, 127).numpy(), expected)


def test_a_range_inside_the_dtype_saturates_earlier() -> None:
    x = torch.tensor([-100.0, -0.2, 0.2, 100.0])
    q = quantize(x, torch.tensor(0.1), torch.tensor(0, dtype=torch.int8), None, -7, 7, torch.int8)
    assert q.tolist() == [-7, -2, 2, 7]


@pytest.mark.parametrize("axis", [None, 1])
def test_fake_quantize_is_quantize_then_dequantize(axis: int | None) -> None:
    x = torch.randn(5, 2) * 20
    scale, zero_point = (SCALE, ZERO_POINT) if axis == 1 else (SCALE[0], ZERO_POINT[0])
    q = quantize(x, scale, zero_point, axis, -128, 127, torch.int8)
    assert torch.equal(fake_quantize(x, scale, zero_point, axis, -128, 127), dequantize(q, scale, zero_point, axis))


def test_the_gradient_passes_inside_the_range_only() -> None:
    x = torch.tensor([-20.0, -1.0, 0.0, 1.0, 20.0], requires_grad=True)
    fake_quantize(x, torch.tensor(0.1), torch.tensor(0), None, -128, 127).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_observe_is_a_copy_with_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    y = observe(x, "point")
    assert torch.equal(x, y) and y.data_ptr() != x.data_ptr()
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones(3))


def samples() -> list[tuple[object, tuple[object, ...]]]:
    x, q = torch.randn(3, 2), torch.randint(-128, 128, (3, 2), dtype=torch.int8)
    return [
        (quantize, (x, SCALE, ZERO_POINT, 1, -128, 127, torch.int8)),
        (dequantize, (q, SCALE, ZERO_POINT, 1)),
        (fake_quantize, (x.requires_grad_(), SCALE, ZERO_POINT, 1, -128, 127)),
        (observe, (torch.randn(3, requires_grad=True), "name")),
        (dynamic_quantize, (torch.randn(3, 2),)),
    ]


@pytest.mark.parametrize(("op", "arguments"), samples(), ids=lambda value: getattr(value, "__name__", ""))
def test_torch_accepts_schema_fake_kernel_and_autograd(
    op: torch._ops.OpOverload, arguments: tuple[Tensor, ...]
) -> None:
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize(("low", "high"), [(-3.0, 5.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0), (-1e-30, 1e30)])
def test_dynamic_quantize_equals_onnx(low: float, high: float) -> None:
    x = torch.linspace(low, high, 1001)
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero_point"])
    types = {"q": TensorProto.UINT8, "scale": TensorProto.FLOAT, "zero_point": TensorProto.UINT8}
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()]
    graph = helper.make_graph(
        [node], "dynamic", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])], outputs
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for actual, expected in zip(dynamic_quantize(x), session.run(None, {"x": x.numpy()}), strict=True):
        np.testing.assert_array_equal(actual.numpy(), expected)


def test_dynamic_quantize_of_nothing_has_a_scale() -> None:
    q, scale, zero_point = dynamic_quantize(torch.zeros(0, 3))
    assert q.shape == (0, 3) and scale == 1 and zero_point == 0
