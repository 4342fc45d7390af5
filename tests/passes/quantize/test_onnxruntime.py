"""What is claimed to be integer is an integer kernel in onnxruntime, with the very same integers."""

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.export.census import Census, take_census
from fxopt.export.session import Session
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from fxopt.graph.integer import run_integer
from fxopt.graph.interpret import sqnr
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import Calibrate, InsertObservers, Quantize
from fxopt.target import TARGETS
from tests.passes.quantize.nets import Branches, Encoder, Gated, Inverted, Residual, images, program_of

TOKENS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
EXACT = [(Residual, images()), (Inverted, images()), (Branches, images()), (Gated, images(2, 16))]


def census_of(program: Program, target: str) -> Census:
    return take_census(to_onnx(program, target=target).proto, integer_nodes(program), TARGETS[target].session)


def session_of(program: Program, target: str) -> Session:
    return Session(to_onnx(program, target=target).proto, settings=TARGETS[target].session)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("net", "x"), EXACT)
@pytest.mark.vnni
def test_convolutional_networks_are_fused_whole_and_exact(net: type[nn.Module], x: Tensor, target: str) -> None:
    program = Quantize([x], target)(program_of(net(), x))
    census = census_of(program, target)
    assert census.unfused == {}
    assert census.weight_dequantize == 0
    assert census.float_compute == ()
    claimed = Counter(integer_nodes(program).values())
    assert census.kernels["QLinearConv"] == claimed["conv"]
    assert census.kernels.get("QLinearAdd", 0) == claimed["add"]
    assert census.kernels.get("QLinearConcat", 0) == claimed["cat"]
    for batch in (x, x[:1]):
        (actual,) = session_of(program, target)(batch)
        (expected,) = run_integer(program, (batch,))
        assert sqnr(expected, actual) > 60
        assert sqnr(program(batch), actual) > 30


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.vnni
def test_linears_of_a_transformer_are_integer_with_one_quantization_for_query_key_and_value(target: str) -> None:
    program = Quantize([TOKENS], target)(program_of(Encoder(), TOKENS))
    census = census_of(program, target)
    assert census.unfused == {}
    assert census.weight_dequantize == 0
    assert sum(census.kernels.get(kernel, 0) for kernel in ("MatMulIntegerToFloat", "QGemm")) == 6
    assert census.kernels["QuantizeLinear"] == 4
    (actual,) = session_of(program, target)(TOKENS)
    assert sqnr(program(TOKENS), actual) > 40


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.vnni
def test_a_linear_of_any_rank_is_an_integer_kernel(target: str, rank: int, bias: bool) -> None:
    x = torch.randn(*[2, 3, 4, 24][-rank:])
    program = Quantize([x], target)(capture(nn.Linear(24, 17, bias=bias), x, dynamic="batch"))
    census = census_of(program, target)
    assert census.unfused == {} and census.weight_dequantize == 0 and census.float_compute == ()
    (actual,) = session_of(program, target)(x)
    (expected,) = run_integer(program, (x,))
    assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-6)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "stem": lambda: nn.Conv2d(3, 16, 7, 2, 3),
    "plain": lambda: nn.Conv2d(16, 32, 3, padding=1),
    "strided": lambda: nn.Conv2d(16, 32, 3, 2, 1, bias=False),
    "dilated": lambda: nn.Conv2d(16, 16, 3, padding=2, dilation=2),
    "same": lambda: nn.Conv2d(16, 16, 4, padding="same"),
    "grouped": lambda: nn.Conv2d(64, 32, 3, groups=2),
    "line": lambda: nn.Conv1d(16, 32, 3, padding=1),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.vnni
def test_single_convolutions_are_bit_exact(name: str, target: str) -> None:
    layer = LAYERS[name]()
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    x = torch.randn(2, layer.in_channels, *[13] * len(layer.kernel_size))
    program = Quantize([x], target)(program_of(layer, x))
    census = census_of(program, target)
    assert list(census.integer.values()) == ["QLinearConv"] and census.weight_dequantize == 0
    (actual,) = session_of(program, target)(x)
    (expected,) = run_integer(program, (x,))
    assert torch.equal(actual, expected)


@pytest.mark.vnni
def test_a_float_convolution_between_integer_ones_keeps_its_float_weight() -> None:
    """Left to itself, onnxruntime quantizes such a weight with one scale for all channels."""

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(16, 16, 1)
            self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
            self.last = nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(torch.relu(self.grouped(torch.relu(self.first(x)))))
            return y

    x = torch.randn(2, 16, 12, 12)
    program = Quantize([x])(program_of(Grouped(), x))
    census = census_of(program, "x86")
    assert census.kernels["QLinearConv"] == 2
    assert len(census.float_compute) == 1
    (actual,) = session_of(program, "x86")(x)
    assert sqnr(program(x), actual) > 60


def test_a_calibrated_program_can_be_exported_as_it_is() -> None:
    x = images()
    calibrated = Calibrate([x])(InsertObservers()(program_of(Residual(), x)))
    (actual,) = Session(to_onnx(calibrated).proto, level="none")(x)
    assert sqnr(calibrated(x), actual) > 40
    observed = InsertObservers()(program_of(Residual(), x))
    assert torch.allclose(Session(to_onnx(observed).proto)(x)[0], observed(x), atol=1e-4)


@pytest.mark.vnni
def test_integers_hold_at_other_sizes_of_dynamic_dimensions() -> None:
    program = capture(Residual().eval(), images(), dynamic={"x": {0: "batch", 2: "height", 3: "width"}})
    quantized = Quantize([images(), images(1, 64)])(program)
    session = session_of(quantized, "x86")
    for x in (images(3, 32, 5), images(1, 48, 6)):
        assert sqnr(run_integer(quantized, (x,))[0], session(x)[0]) > 60


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "mobilenet_v3_small"])
@pytest.mark.vnni
def test_architectures_of_torchvision(name: str) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    from benchmarks.zoo_models.torchvision_models import torchvision_models

    model = next(model for model in torchvision_models() if model.name == name)
    (x,) = model.inputs(2)
    assert isinstance(x, Tensor)
    program = Pipeline(CLEANUP)(capture(model.build(), x, dynamic="batch"))
    quantized = Quantize([x])(program)
    census = census_of(quantized, "x86")
    convolutions = sum(node.target is torch.ops.aten.conv2d.default for node in program.graph.nodes)
    assert census.unfused == {} and census.weight_dequantize == 0
    assert census.kernels["QLinearConv"] == convolutions == Counter(integer_nodes(quantized).values())["conv"]
    assert sqnr(run_integer(quantized, (x,))[0], session_of(quantized, "x86")(x)[0]) > 60


@pytest.mark.vnni
def test_average_pools_and_leaky_relus_between_integers() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.avg_pool2d(functional.leaky_relu(self.first(x), 0.1), 2)
            y: Tensor = self.last(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
            return y

    x = torch.randn(2, 16, 14, 14)
    program = Quantize([x])(program_of(Pooled(), x))
    census = census_of(program, "x86")
    assert set(integer_nodes(program).values()) == {"conv", "leaky_relu", "pool", "data"}
    assert census.unfused == {} and census.float_compute == ()
    assert {"QLinearLeakyRelu", "QLinearAveragePool"} <= set(census.kernels)
    assert sqnr(program(x), session_of(program, "x86")(x)[0]) > 35


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.vnni
def test_a_padding_between_integers_costs_no_float_op(readers: int) -> None:
    """Asymmetric padding, as of models from TensorFlow, is a node of its own."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(16, 16, 1)
            self.wide = nn.ModuleList(nn.Conv2d(16, 16, 3, 2, groups=16) for _ in range(readers))
            self.last = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(readers))

        def forward(self, x: Tensor) -> Tensor:
            x = functional.pad(functional.relu6(self.first(x)), (0, 1, 0, 1))
            parts = [last(torch.relu(wide(x))) for wide, last in zip(self.wide, self.last, strict=True)]
            return torch.stack(parts).sum(0) if readers > 1 else parts[0]

    x = torch.randn(2, 16, 12, 12)
    program = Quantize([x])(program_of(Padded(), x))
    census = census_of(program, "x86")
    assert census.kernels["QLinearConv"] == 1 + 2 * readers
    assert census.unfused == {} and census.float_compute == ()
    assert census.kernels.get("DequantizeLinear", 0) == readers and census.kernels["QuantizeLinear"] == 1
    assert census.kernels.get("Pad", 0) == (readers > 1)
    (actual,) = session_of(program, "x86")(x)
    assert torch.equal(actual, run_integer(program, (x,))[0])


@pytest.mark.vnni
def test_a_float_convolution_behind_a_pool_keeps_its_float_weight() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(16, 16, 1)
            self.grouped = nn.Conv2d(16, 16, 3, groups=4)
            self.last = nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.pad(functional.max_pool2d(torch.relu(self.first(x)), 2), (1, 1, 1, 1))
            y: Tensor = self.last(torch.relu(self.grouped(x)))
            return y

    x = torch.randn(2, 16, 12, 12)
    program = Quantize([x])(program_of(Pooled(), x))
    census = census_of(program, "x86")
    assert census.kernels["QLinearConv"] == 2 and len(census.float_compute) == 1
    (actual,) = session_of(program, "x86")(x)
    assert sqnr(run_integer(program, (x,))[0], actual) > 60
