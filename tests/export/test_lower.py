"""lower(): other spellings of the same integers, under the same node names."""

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import TargetError
from fxopt.export.lower import lower
from fxopt.graph.capture import capture
from fxopt.graph.ops import dequantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes, matmul_integer_to_float
from fxopt.graph.verify import verify
from fxopt.passes.quantize import Quantize
from fxopt.target import TARGETS

aten = torch.ops.aten


def quantized(module: nn.Module, x: Tensor, target: str) -> Program:
    return Quantize([x], target)(capture(module.eval(), x, dynamic="batch"))


def targets(program: Program) -> list[object]:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def test_a_float_program_comes_back_as_it_is() -> None:
    program = capture(nn.Linear(4, 4), torch.randn(2, 4))
    assert lower(program, TARGETS["x86"]) is program


def test_the_integer_product_by_hand() -> None:
    x = torch.tensor([[1, 5], [255, 0]], dtype=torch.uint8)
    weight = torch.tensor([[1, -2, 3], [4, 5, -128]], dtype=torch.int8)
    result = matmul_integer_to_float(
        x, weight, torch.tensor(0.5), torch.tensor([1.0, 2.0, 4.0]), torch.tensor(3, dtype=torch.uint8),
        torch.zeros(3, dtype=torch.int8), torch.tensor([10.0, 0.0, 0.0]),
    )  # fmt: skip
    # (x − 3) @ weight = [[-2, 2], [252, -3]] @ weight = [[6, 14, -262], [240, -519, 1140]]
    assert result.tolist() == [[13.0, 14.0, -524.0], [130.0, -519.0, 2280.0]]


@pytest.mark.parametrize("shape", [(3, 24), (2, 3, 24), (2, 2, 3, 24)])
@pytest.mark.parametrize("target", TARGETS)
def test_linears(shape: tuple[int, ...], target: str) -> None:
    x = torch.randn(*shape)
    program = quantized(nn.Linear(24, 17), x, target)
    lowered = verify(lower(program, TARGETS[target]), full=True)
    assert torch.allclose(lowered(x), program(x), rtol=1e-5, atol=1e-5)
    if target != "portable":
        assert targets(lowered)[-1] is matmul_integer_to_float
        assert set(integer_nodes(lowered)) == set(integer_nodes(program)) == {"linear"}
    elif len(shape) > 2:
        # a bias of the rank of the product: onnxruntime merges one of rank 1 into a float Gemm
        add = next(node for node in lowered.graph.nodes if node.target is aten.add.Tensor)
        assert tuple(add.args[1].meta["val"].shape) == (*[1] * (len(shape) - 1), 17)
        assert next(node for node in lowered.graph.nodes if node.target is aten.matmul.default).name == "linear"
    else:
        assert aten.linear.default in targets(lowered)
        bias = next(node for node in lowered.graph.nodes if node.name == "linear").args[2]
        assert bias.target is dequantize and bias.args[0].meta["val"].dtype is torch.int32


def test_linears_that_share_a_weight_share_its_transpose() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(self.layer(x))
            return y

    lowered = lower(quantized(Twice(), torch.randn(2, 16), "x86"), TARGETS["x86"])
    names = [str(node.target) for node in lowered.graph.find_nodes(op="get_attr")]
    assert [name for name in names if "weight_int8" in name] == ["layer.weight_int8_transposed"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_stem_reads_four_channels_where_the_target_wants_them(target: str) -> None:
    x = torch.randn(2, 3, 12, 12) + 0.3
    program = quantized(nn.Conv2d(3, 16, 3, padding=1), x, target)
    lowered = verify(lower(program, TARGETS[target]), full=True)
    node = next(node for node in lowered.graph.nodes if node.target is aten.conv2d.default)
    wanted = 4 if TARGETS[target].convolution.pad_input else 3
    assert node.name == "conv2d"
    assert node.args[0].meta["val"].shape[1] == node.args[1].meta["val"].shape[1] == wanted
    assert torch.allclose(lowered(x), program(x), atol=1e-6)


@pytest.mark.parametrize(("target", "wanted"), [("x86", 4), ("x86-avx2", 3)])
def test_a_large_kernel_reads_padded_channels_only_where_that_is_faster(target: str, wanted: int) -> None:
    x = torch.randn(2, 3, 16, 16) + 0.3
    program = quantized(nn.Conv2d(3, 16, 5, stride=2), x, target)
    lowered = verify(lower(program, TARGETS[target]), full=True)
    node = next(node for node in lowered.graph.nodes if node.target is aten.conv2d.default)
    assert integer_nodes(lowered)[node.name] == "conv"
    assert node.args[0].meta["val"].shape[1] == node.args[1].meta["val"].shape[1] == wanted
    assert torch.allclose(lowered(x), program(x), atol=1e-6)


@pytest.mark.parametrize("keepdim", [True, False])
def test_a_spatial_mean_becomes_a_global_pool(keepdim: bool) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(4, 16, 3), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.conv(x).mean([-1, -2], keepdim=keepdim).flatten(1))
            return y

    x = torch.randn(2, 4, 8, 8)
    program = quantized(Pooled(), x, "x86")
    lowered = verify(lower(program, TARGETS["x86"]), full=True)
    assert aten.mean.dim not in targets(lowered)
    assert integer_nodes(lowered)["mean"] == "pool"
    assert torch.allclose(lowered(x), program(x), atol=1e-5)


def test_weights_that_saturate_on_the_target_are_refused() -> None:
    x = torch.randn(2, 16, 8, 8)
    program = quantized(nn.Conv2d(16, 16, 3), x, "x86")
    with pytest.raises(TargetError, match=r"'conv2d'.*up to 127.*up to ±64. Quantize with target='x86-avx2' too"):
        lower(program, TARGETS["x86-avx2"])
    narrow = quantized(nn.Conv2d(16, 16, 3), x, "x86-avx2")
    for target in TARGETS.values():
        if target.activation is torch.uint8:  # weights of 7 bits suit every kernel
            assert torch.equal(lower(narrow, target)(x), narrow(x))
