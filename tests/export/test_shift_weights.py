"""Weights with a zero point: other kernels of onnxruntime, the same integers."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fxopt.export.census import take_census
from fxopt.export.lower import lower
from fxopt.export.session import Session
from fxopt.export.shift_weights import is_matrix_product
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.integer import run_integer
from fxopt.graph.ops import dequantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes
from fxopt.graph.rewrite import constant
from fxopt.graph.verify import verify
from fxopt.passes.quantize import Quantize
from fxopt.target import TARGETS, ConvolutionKernels, Target
from tests.conftest import Golden
from tests.passes.quantize.nets import Branches, Inverted, Residual, images, program_of

ALWAYS = replace(TARGETS["x86-amx"], convolution=ConvolutionKernels(pad_input={3: 4}, matrix_product={1: 1}))


def weights(program: Program) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the stored integers and zero points of each convolution's weight."""
    found = {}
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.conv2d.default and node.args[1].target is dequantize:
            stored, zero = (constant(program.module, node.args[1].args[index]) for index in (0, 2))
            assert stored is not None and zero is not None
            found[node.name] = (stored, zero)
    return found


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((256, 256, 1, 1), True),
        ((252, 256, 1, 1), False),
        ((256, 252, 1, 1), False),
        ((128, 128, 3, 3), True),
        ((128, 64, 3, 3), False),
        ((64, 64, 3, 3), False),
        ((128, 128, 5, 5), True),
        ((128, 128, 1, 7), False),  # fewer positions than 3x3: the row of 1x1 holds
        ((256, 256, 1, 7), True),
        ((128, 128, 9), True),
    ],
)
def test_which_convolutions_are_matrix_products_on_amx(shape: tuple[int, ...], expected: bool) -> None:
    assert is_matrix_product(shape, TARGETS["x86-amx"].convolution) is expected
    assert not is_matrix_product(shape, TARGETS["x86"].convolution)


def test_golden_shift_weights(golden: Golden) -> None:
    layer = nn.Conv2d(4, 16, 1, bias=False)
    nn.init.constant_(layer.weight, 0.25)
    program = Quantize([torch.ones(1, 4, 2, 2)])(program_of(layer, torch.ones(1, 4, 2, 2)))
    golden(program, verify(lower(program, ALWAYS), full=True))


def test_every_symmetric_weight_has_room_for_its_shift() -> None:
    layer = nn.Conv2d(4, 16, 1)
    with torch.no_grad():
        layer.weight[:, :, 0, 0] = torch.tensor([1.0, -1.0, 0.0, 64 / 127])
    x = torch.randn(2, 4, 6, 6)
    program = Quantize([x])(program_of(layer, x))
    (stored, zero) = weights(lower(program, ALWAYS))["conv2d"]
    assert stored.dtype is zero.dtype is torch.int8
    assert stored[0, :, 0, 0].tolist() == [126, -128, -1, 63]
    assert zero.tolist() == [-1] * 16
    assert torch.equal(lower(program, ALWAYS)(x), program(x))


def test_a_weight_without_room_keeps_its_form() -> None:
    x = torch.randn(2, 4, 6, 6)
    program = Quantize([x])(program_of(nn.Conv2d(4, 16, 1), x))
    stored = weights(program)["conv2d"][0]
    stored[3, 1] = -128
    after, zero = weights(lower(program, ALWAYS))["conv2d"]
    assert torch.equal(after, stored) and not zero.any()


def test_a_shared_weight_is_shifted_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(16, 16, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(torch.relu(self.layer(x)))
            return y

    x = torch.randn(2, 16, 6, 6)
    program = Quantize([x])(program_of(Twice(), x))
    lowered = lower(program, ALWAYS)
    assert [zero.tolist() for _, zero in weights(lowered).values()] == 2 * [16 * [-1]]
    assert [name for name, _ in lowered.module.named_buffers() if "int8" in name] == ["layer.weight_int8_shifted"]
    assert torch.equal(lowered(x), program(x))


class Wide(nn.Module):
    """A residual block of 128 channels, downsampled to 256, with pointwise convolutions of 256 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 128, 3, 2, 1)
        self.first, self.second = nn.Conv2d(128, 128, 3, padding=1), nn.Conv2d(128, 128, 3, padding=1)
        self.down, self.short = nn.Conv2d(128, 256, 3, 2, 1), nn.Conv2d(128, 256, 1, 2)
        self.point = nn.Conv2d(256, 256, 1)
        self.depthwise = nn.Conv2d(256, 256, 3, padding=1, groups=256)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.second(torch.relu(self.first(x))) + x)
        x = torch.relu(self.down(x) + self.short(x))
        x = torch.relu(self.depthwise(torch.relu(self.point(x))))
        y: Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


def test_only_the_convolutions_of_the_table_are_shifted() -> None:
    x = images(size=16)
    lowered = lower(Quantize([x], "x86-amx")(program_of(Wide(), x)), TARGETS["x86-amx"])
    shifted = [name for name, (_, zero) in weights(lowered).items() if zero.any()]
    # first, second, down and point; not the stem, not the strided shortcut from 128 channels, not the depthwise one
    assert shifted == ["conv2d_1", "conv2d_2", "conv2d_3", "conv2d_5"]


@pytest.mark.parametrize(
    ("net", "target"), [(Wide, TARGETS["x86-amx"]), (Residual, ALWAYS), (Inverted, ALWAYS), (Branches, ALWAYS)]
)
@pytest.mark.vnni
def test_the_integers_are_the_same_in_onnxruntime(net: Callable[[], nn.Module], target: Target) -> None:
    x = images()
    program = Quantize([x])(program_of(net(), x))
    protos = [to_onnx(program, target=each).proto for each in (TARGETS["x86"], target)]
    plain, shifted = (take_census(proto, integer_nodes(program)) for proto in protos)
    assert shifted.unfused == {} and shifted.weight_dequantize == 0 and shifted.float_compute == ()
    assert shifted.kernels == plain.kernels
    for batch in (x, x[:1]):
        (expected,), (actual,) = (Session(proto)(batch) for proto in protos)
        assert torch.equal(actual, expected)
        (unoptimised,) = Session(protos[1], level="none")(batch)
        assert torch.equal(unoptimised, Session(protos[0], level="none")(batch)[0])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(256, 256, 1),
        nn.Conv2d(256, 256, 1, 2, bias=False),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.Conv2d(128, 132, 3, 2, 1),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv1d(128, 128, 9, padding=4),
    ],
)
@pytest.mark.vnni
def test_single_convolutions_are_bit_exact(layer: nn.Conv1d | nn.Conv2d) -> None:
    x = torch.randn(2, layer.in_channels, *[9] * len(layer.kernel_size))
    program = Quantize([x], "x86-amx")(program_of(layer, x))
    proto = to_onnx(program, target="x86-amx").proto
    assert any(tensor.name.endswith("_shifted") for tensor in proto.graph.initializer)
    assert list(take_census(proto, integer_nodes(program)).integer.values()) == ["QLinearConv"]
    assert torch.equal(Session(proto)(x)[0], run_integer(program, (x,))[0])


def test_the_program_is_that_of_x86() -> None:
    x = images(size=16)
    torch.manual_seed(0)
    program = program_of(Wide(), x)
    amx, plain = (Quantize([x], target)(program) for target in ("x86-amx", "x86"))
    assert str(amx).partition("return")[0] == str(plain).partition("return")[0]
    assert torch.equal(amx(x), plain(x))
