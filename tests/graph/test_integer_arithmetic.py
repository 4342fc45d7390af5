"""The arithmetic of additions, products and pools equals onnxruntime's integer kernels on every pair of values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from fxopt.export.session import Session
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from fxopt.graph.integer import find_kernels, run_integer
from fxopt.graph.integer_arithmetic import batch_norm
from fxopt.graph.logistic import logistic
from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.rewrite import get_attribute
from fxopt.machine import cpu_features

LEVELS = torch.arange(256, dtype=torch.uint8)
PAIRS = (LEVELS.repeat_interleave(256).reshape(1, -1), LEVELS.repeat(256).reshape(1, -1))
POOLS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any]]] = {
    "GlobalAveragePool": (lambda x: functional.adaptive_avg_pool2d(x, 1), {}),
    "AveragePool": (
        lambda x: functional.avg_pool2d(x, 2, 1, 1, count_include_pad=False),
        {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [1, 1, 1, 1]},
    ),
}


class Quantized(nn.Module):
    """q(op(dq(x), ...)) with random scales; every second seed has scales whose ratios make ties."""

    a_scale: Tensor
    a_zero: Tensor
    y_scale: Tensor
    y_zero: Tensor

    def __init__(self, op: Callable[..., Tensor], inputs: str, seed: int) -> None:
        super().__init__()
        self.op: Callable[..., Tensor] = op
        self.inputs = inputs
        generator = np.random.default_rng(seed)
        scales = dict(zip("yab", generator.uniform(0.002, 0.05, 3), strict=True))
        if seed % 2:
            scales |= {name: scales["y"] * generator.integers(1, 64) / 64 for name in "ab"}
        for name in [*inputs, "y"]:
            self.register_buffer(f"{name}_scale", torch.tensor(scales[name], dtype=torch.float32))
            self.register_buffer(f"{name}_zero", torch.tensor(generator.integers(0, 256), dtype=torch.uint8))

    def forward(self, *values: Tensor) -> Tensor:
        grids = [(getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero")) for name in self.inputs]
        floats = [dequantize(value, *grid, None) for value, grid in zip(values, grids, strict=True)]
        q: Tensor = quantize(self.op(*floats), self.y_scale, self.y_zero, None, 0, 255, torch.uint8)
        return q


def by_onnxruntime(module: Quantized, onnx_op: str, attributes: dict[str, Any], values: tuple[Tensor, ...]) -> Any:
    """Run the same model as ONNX, and see to it that onnxruntime runs the op on integers."""
    nodes = [
        helper.make_node("DequantizeLinear", [name, f"{name}_scale", f"{name}_zero"], [f"{name}_float"])
        for name in module.inputs
    ]
    nodes.append(helper.make_node(onnx_op, [f"{name}_float" for name in module.inputs], ["result"], **attributes))
    nodes.append(helper.make_node("QuantizeLinear", ["result", "y_scale", "y_zero"], ["y"]))
    ranks = dict(zip(module.inputs, (value.ndim for value in values), strict=True))
    inputs = [helper.make_tensor_value_info(name, TensorProto.UINT8, [None] * rank) for name, rank in ranks.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.UINT8, [None] * max(ranks.values()))]
    stored = [numpy_helper.from_array(buffer.numpy(), name) for name, buffer in module.named_buffers()]
    graph = helper.make_graph(nodes, "quantized", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model, dict(zip(module.inputs, (value.numpy() for value in values), strict=True))


def check(module: Quantized, onnx_op: str, attributes: dict[str, Any], values: tuple[Tensor, ...], path: Path) -> None:
    model, feeds = by_onnxruntime(module, onnx_op, attributes, values)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path / "optimised.onnx")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(path / "optimised.onnx")
    assert f"QLinear{onnx_op}" in {node.op_type for node in optimised.graph.node}
    program = capture(module, values)
    assert len(find_kernels(program)) == 1
    (actual,) = run_integer(program, values)
    np.testing.assert_array_equal(actual.numpy(), session.run(None, feeds)[0])


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("op", [torch.add, torch.mul])
def test_add_and_mul_on_every_pair_of_values(op: Callable[..., Tensor], seed: int, tmp_path: Path) -> None:
    check(Quantized(op, "ab", seed), op.__name__.title(), {}, PAIRS, tmp_path)


@pytest.mark.parametrize("seed", [3, 4, 5])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((256, 1), (1, 256)),  # one value of the first for each row of the second
        ((1, 256), (256, 1)),
        ((1, 256, 1), (2, 1, 256)),
        ((256, 1, 1), (1, 256, 1)),  # dimensions of size one do not count
        ((1, 256), (256, 256)),
        ((256, 256), (256, 1)),
        ((1, 1), (1, 256)),
        ((1,), (1, 256, 1)),
    ],
)
@pytest.mark.parametrize("op", [torch.add, torch.mul])
def test_broadcast_operands(
    op: Callable[..., Tensor], left: tuple[int, ...], right: tuple[int, ...], seed: int, tmp_path: Path
) -> None:
    a, b = (torch.arange(torch.Size(shape).numel()).reshape(shape).to(torch.uint8) for shape in (left, right))
    check(Quantized(op, "ab", seed), op.__name__.title(), {}, (a, b), tmp_path)


@pytest.mark.parametrize("grid", [(0.013670705258846283, 129, 0.003317652503028512, 0), (0.05, 3, 1 / 255, 7)])
def test_sigmoid_on_every_value(grid: tuple[float, int, float, int], tmp_path: Path) -> None:
    """The first grid has a tie that only the last bit of onnxruntime's own sigmoid decides."""
    module = Quantized(torch.sigmoid, "a", 0)
    module.a_scale, module.y_scale = torch.tensor(grid[0]), torch.tensor(grid[2])
    module.a_zero, module.y_zero = torch.tensor(grid[1]).to(torch.uint8), torch.tensor(grid[3]).to(torch.uint8)
    check(module, "Sigmoid", {}, (LEVELS.reshape(1, -1),), tmp_path)


def test_logistic_has_every_bit_of_onnxruntime_s() -> None:
    x = torch.linspace(-20, 20, 100_001)
    expected = Session(to_onnx(capture(nn.Sigmoid(), x)).proto)(x)[0]
    assert (logistic(x) != expected).double().mean() < 1e-4
    torch.testing.assert_close(logistic(x), torch.sigmoid(x), rtol=0, atol=2e-7)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("onnx_op", POOLS)
def test_average_pools(onnx_op: str, seed: int, tmp_path: Path) -> None:
    op, attributes = POOLS[onnx_op]
    module = Quantized(op, "a", seed)
    if seed % 3 == 0:  # one grid for both, as placement makes them where it can: every mean of four may be a tie
        module.y_scale, module.y_zero = module.a_scale.clone(), module.a_zero.clone()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (4, 32, 2 + seed % 7, 4), dtype=torch.uint8, generator=generator)
    check(module, onnx_op, attributes, (x,), tmp_path)


def test_pool_to_more_than_one_value_is_no_kernel() -> None:
    module = Quantized(lambda x: functional.adaptive_avg_pool2d(x, 2), "a", 0)
    assert find_kernels(capture(module, torch.zeros(1, 3, 4, 4, dtype=torch.uint8))) == []


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_has_every_bit_of_onnxruntime_s(affine: bool) -> None:
    """Without AVX-512 the last bit of a channel's factor may be another: there it is w rsqrt(v + eps)."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(64, affine=affine).eval()
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 2, generator=generator)
    x = torch.randn(2, 64, 9, 9, generator=generator)
    program = capture(norm, x)
    (node,) = (node for node in program.graph.nodes if node.target is torch.ops.aten.batch_norm.default)
    values = {source: get_attribute(program.module, str(source.target)) for source in node.all_input_nodes[1:]}
    expected = Session(to_onnx(program).proto)(x)[0]
    found = batch_norm(node, values | {node.args[0]: x})
    if not torch.equal(found, expected) and "avx512_f" not in cpu_features():
        state = norm.state_dict()
        factor = (state["running_var"] + norm.eps).rsqrt() * state.get("weight", 1)
        offset = state.get("bias", 0) - state["running_mean"] * factor
        found = x * factor.reshape(-1, 1, 1) + offset.reshape(-1, 1, 1)
    assert torch.equal(found, expected)
