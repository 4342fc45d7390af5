"""Weights in blocks: by hand, against onnxruntime's DequantizeLinear and MatMulNBits, and through a .pt2 file."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fxopt.errors import VerifyError
from fxopt.graph.blocks import (
    KERNEL_BLOCKS,
    dequantize_blocks,
    fake_quantize_blocks,
    kernel_block,
    matmul_nbits,
    middle,
    pack_bits,
    unpack_bits,
)
from fxopt.graph.capture import capture
from fxopt.graph.rewrite import Edit
from fxopt.graph.serialize import load
from fxopt.graph.verify import verify
from fxopt.passes.quantize import QuantizeWeights


def random_weight(bits: int, rows: int, columns: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return stored values, scales and zero points."""
    count = -(-columns // block)
    q, zero = (torch.randint(0, 1 << bits, (rows, size), dtype=torch.uint8) for size in (columns, count))
    return q, torch.rand(rows, count) + 0.01, zero


def test_dequantize_blocks_by_hand() -> None:
    q = torch.tensor([[0, 1, 2, 3, 15], [8, 8, 7, 9, 0]], dtype=torch.uint8)
    scale = torch.tensor([[1.0, 10.0, 100.0], [2.0, 1.0, 0.5]])
    expected = [[-8.0, -7.0, -60.0, -50.0, 700.0], [0.0, 0.0, -1.0, 1.0, -4.0]]
    assert dequantize_blocks(q, scale, None, 1, 2, 4).tolist() == expected
    assert dequantize_blocks(q.t().contiguous(), scale.t(), None, 0, 2, 4).t().tolist() == expected
    zero = torch.tensor([[0, 2, 15], [8, 7, 1]], dtype=torch.uint8)
    assert dequantize_blocks(q, scale, zero, 1, 2, 4).tolist() == [[0, 1, 0, 10, 0], [0, 0, 0, 2, -0.5]]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("columns", [64, 50])
def test_dequantize_blocks_equals_onnx(columns: int, axis: int) -> None:
    parts = [value if axis else value.t().contiguous() for value in random_weight(8, 6, columns, 16)]
    names = ["q", "scale", "zero_point"]
    node = helper.make_node("DequantizeLinear", names, ["y"], axis=axis, block_size=16)
    tensors = [numpy_helper.from_array(value.numpy(), name) for name, value in zip(names, parts, strict=True)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "dequantize", [], [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {})
    np.testing.assert_array_equal(dequantize_blocks(*parts, axis, 16, 8).numpy(), expected)


def test_fake_quantize_blocks_by_hand() -> None:
    x = torch.tensor([[127.0, 0.4, -63.6, 0.0, 254.0, 3.0, 1.0]])  # blocks with the steps 1, 2 and 1/127
    assert fake_quantize_blocks(x, 3).tolist() == [[127.0, 0.0, -64.0, 0.0, 254.0, 4.0, 1.0]]


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e-40, -1e-44], [3e38, -3e38]])
def test_fake_quantize_blocks_stays_finite(values: list[float]) -> None:
    x = torch.tensor(values)
    assert torch.allclose(fake_quantize_blocks(x, 2), x, rtol=0.01, atol=1e-38)


def test_the_gradient_passes_through() -> None:
    x = torch.randn(2, 5, requires_grad=True)
    fake_quantize_blocks(x, 2).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones(2, 5))


@given(bits=st.sampled_from([2, 4, 8]), data=st.data())
def test_pack_bits_is_reversible(bits: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=1, max_size=20))
    stored = torch.tensor([values, values[::-1]], dtype=torch.uint8)
    packed = pack_bits(stored, bits)
    assert packed.shape == (2, -(-len(values) * bits // 8))
    assert torch.equal(unpack_bits(packed, bits)[:, : len(values)], stored)


def test_pack_bits_by_hand() -> None:
    assert pack_bits(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x21, 0x03]
    assert pack_bits(torch.tensor([1, 2, 3, 0, 2], dtype=torch.uint8), 2).tolist() == [0b00_11_10_01, 2]


@pytest.mark.parametrize(
    ("bits", "size", "block"), [(4, 256, 128), (4, 64, 64), (4, 100, 128), (4, 20, 32), (2, 9, 32)]
)
def test_kernel_block_wastes_least(bits: int, size: int, block: int) -> None:
    assert kernel_block(bits, size) == block
    assert all(kernel_block(bits, each) == each for each in KERNEL_BLOCKS[bits])


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmul_nbits_is_the_kernel(bits: int, level: int, zero_points: bool) -> None:
    block, rows, columns = 32, 9, 70
    q, scale, zero = random_weight(bits, rows, columns, block)
    packed = pack_bits(torch.nn.functional.pad(q, (0, 26)).reshape(rows, 3, block), bits)
    zeros, bias = pack_bits(zero, bits) if zero_points else None, torch.randn(rows)
    x = torch.randn(2, 3, columns)
    values = {"x": x, "packed": packed, "scale": scale, "zero_point": zeros, "group": None, "bias": bias}
    node = helper.make_node(
        "MatMulNBits", [name if value is not None else "" for name, value in values.items()], ["y"],
        domain="com.microsoft", K=columns, N=rows, bits=bits, block_size=block, accuracy_level=level,
    )  # fmt: skip
    tensors = [numpy_helper.from_array(v.numpy(), n) for n, v in list(values.items())[1:] if v is not None]
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([node], "kernel", floats[:1], floats[1:], tensors)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x.numpy()})
    actual = matmul_nbits(x, packed, scale, zeros, bias, bits, block, level)
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=1e-5, atol=1e-5 * float(actual.abs().max()))
    weight = dequantize_blocks(q, scale, zero if zero_points else torch.full_like(zero, middle(bits)), 1, block, bits)
    by_float = nn.functional.linear(x, weight, bias)
    assert torch.allclose(actual, by_float, atol=1e-5 * float(by_float.abs().max())) == (level == 0)


def samples() -> list[tuple[torch._ops.OpOverload, tuple[object, ...]]]:
    q, scale, zero = random_weight(4, 3, 20, 16)
    packed = pack_bits(torch.nn.functional.pad(q, (0, 12)).reshape(3, 2, 16), 4)
    return [
        (dequantize_blocks, (q, scale, zero, 1, 16, 4)),
        (fake_quantize_blocks, (torch.randn(2, 20, requires_grad=True), 16)),
        (matmul_nbits, (torch.randn(2, 20), packed, scale, pack_bits(zero, 4), torch.randn(3), 4, 16, 4)),
    ]


@pytest.mark.parametrize(("op", "arguments"), samples(), ids=lambda value: getattr(value, "__name__", ""))
def test_torch_accepts_schema_fake_kernel_and_autograd(
    op: torch._ops.OpOverload, arguments: tuple[Tensor, ...]
) -> None:
    torch.library.opcheck(op, arguments)


def test_a_saved_program_is_the_same(tmp_path: Path) -> None:
    x = torch.randn(2, 40)
    program = QuantizeWeights()(capture(nn.Linear(40, 8), x, dynamic="batch"))
    program.save(tmp_path / "m.pt2")
    loaded = verify(load(tmp_path / "m.pt2"), full=True)
    assert str(loaded) == str(program)
    assert torch.equal(loaded(x), program(x))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.full((8, 40), 16, dtype=torch.uint8), "holds 16, which 4 bits cannot"),
        (1, torch.ones(8, 3), r"scale has the shape \[8, 3\] instead of \[8, 2\]"),
        (1, torch.zeros(8, 2), "not positive and finite"),
        (2, torch.zeros(8, 1, dtype=torch.uint8), r"zero_point has the shape \[8, 1\]"),
        (5, 3, "3 bits in blocks of 32"),
    ],
)
def test_verify_finds_what_does_not_fit(position: int, value: Tensor | int, message: str) -> None:
    program = QuantizeWeights()(capture(nn.Linear(40, 8), torch.randn(2, 40)))
    edit = Edit(program, by=None)
    (node,) = edit.calls(dequantize_blocks)
    new = edit.add_constant("wrong", value, before=node) if isinstance(value, Tensor) else value
    node.update_arg(position, new)
    with pytest.raises(VerifyError, match=message):
        verify(edit.finish())
