"""Calibrate with every observer: what real data may hold is handled, and hand-computed schemes come out."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.errors import DataError
from fxopt.graph.interpret import sqnr
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes
from fxopt.graph.rewrite import constant
from fxopt.graph.verify import verify
from fxopt.passes.quantize import FIXED_POINT, Calibrate, Convert, InsertObservers, Quantize, Scheme
from fxopt.passes.quantize.calibrate import KnownRanges
from fxopt.passes.quantize.observers import Observer
from tests.passes.quantize.nets import Gated, Residual, images, program_of
from tests.passes.quantize.test_observers import NAMES


def tensors(program: Program) -> dict[str, Tensor]:
    return {str(node.target): constant(program.module, node) for node in program.graph.find_nodes(op="get_attr")}  # type: ignore[misc]


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return program_of(Residual(), images())


def assert_usable(quantized: Program, x: Tensor) -> None:
    verify(quantized, full=True)
    assert bool(quantized(x).isfinite().all())
    for name, value in tensors(quantized).items():
        assert not name.endswith("_scale") or bool(((value > 0) & value.isfinite()).all())


@pytest.mark.parametrize("observer", NAMES)
def test_constant_channels(observer: Observer) -> None:
    layer = nn.Conv2d(4, 16, 1)
    with torch.no_grad():
        layer.weight[2] = 0.0
        layer.weight[5] = 0.25
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 3.0
    x[:, 2] = 0.0
    program = program_of(layer, x)
    quantized = Quantize([x], observer=observer)(program)
    assert_usable(quantized, x)
    assert sqnr(program(x), quantized(x)) > 25
    assert torch.allclose(quantized(x)[:, 2], layer.bias[2].expand(2, 8, 8), rtol=0.02, atol=0.02)  # type: ignore[index]


@pytest.mark.parametrize("observer", NAMES)
def test_activations_that_are_all_zero(program: Program, observer: Observer) -> None:
    x = torch.zeros(2, 3, 32, 32)
    quantized = Quantize([x], observer=observer)(program)
    assert_usable(quantized, x)
    assert float(tensors(quantized)["x_scale"]) == pytest.approx(1 / 255)
    assert sqnr(program(x), quantized(x)) > 25


@pytest.mark.parametrize("observer", NAMES)
def test_values_that_are_one_constant(program: Program, observer: Observer) -> None:
    x = torch.full((2, 3, 32, 32), -0.75)
    quantized = Quantize([x], observer=observer)(program)
    assert_usable(quantized, x)
    assert float(tensors(quantized)["x_scale"]) == pytest.approx(0.75 / 255, rel=0.01)


@pytest.mark.parametrize("observer", NAMES)
@pytest.mark.parametrize("outlier", [1e3, 1e9])
def test_huge_outliers(program: Program, observer: Observer, outlier: float) -> None:
    x = images()
    x[0, 0, 0, 0] = outlier
    assert_usable(Quantize([x, images(2, seed=1)], observer=observer)(program), x)


@pytest.mark.parametrize("observer", NAMES)
def test_one_sample(program: Program, observer: Observer) -> None:
    x = images(1)
    quantized = Quantize([x], observer=observer)(program)
    assert_usable(quantized, x)
    assert sqnr(program(x), quantized(x)) > 20


@pytest.mark.parametrize("observer", NAMES)
def test_an_empty_item_counts_for_nothing(program: Program, observer: Observer) -> None:
    x, observed = images(), InsertObservers()(program)
    with_empty, plain = (Calibrate(data, observer)(observed) for data in ([x[:0], x], [x]))
    assert torch.equal(with_empty(x), plain(x))


@pytest.mark.parametrize("observer", NAMES)
def test_nothing_but_empty_items(program: Program, observer: Observer) -> None:
    x = images()
    assert_usable(Quantize([x[:0]], observer=observer)(program), x)


@pytest.mark.parametrize("observer", NAMES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(program: Program, observer: Observer, bad: float) -> None:
    x = images()
    x[1, 2, 3, 4] = bad
    with pytest.raises(DataError, match="item 1: input 'x' holds NaN or infinity"):
        Quantize([images(), x], observer=observer)(program)


@pytest.mark.parametrize("net", [Residual, Gated])
def test_fixed_point_scales_are_powers_of_two_and_their_products_too(net: type[nn.Module]) -> None:
    x = images(2, 32 if net is Residual else 16)
    program = program_of(net(), x)
    calibrated = verify(Calibrate([x], scheme=FIXED_POINT)(InsertObservers()(program)), full=True)
    found = tensors(calibrated)
    scales = [value for name, value in found.items() if name.endswith("_scale")]
    assert len(scales) > 8
    assert all(bool((torch.frexp(scale).mantissa == 0.5).all()) for scale in scales)
    assert all(not bool(value.any()) for name, value in found.items() if name.endswith("_zero_point"))
    converted = tensors(Convert()(calibrated))
    biases = [value for name, value in converted.items() if name.endswith("bias_scale")]
    assert biases and all(bool((torch.frexp(scale).mantissa == 0.5).all()) for scale in biases)
    assert (
        int(
            tensors(Convert("arm64")(Calibrate([x], scheme=FIXED_POINT)(InsertObservers("arm64")(program))))[
                f"{program.placeholders[0].name}_zero_point"
            ]
        )
        == 0
    )


@pytest.mark.parametrize("scheme", [FIXED_POINT, Scheme(symmetric=True), Scheme(4, 8, True), Scheme(power_of_two=True)])
@pytest.mark.parametrize("clip", [torch.relu, functional.relu6, functional.hardtanh, lambda x: x.clamp(-0.37, 0.61)])
def test_levels_end_where_a_clip_does(scheme: Scheme, clip: object) -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = clip(self.conv(x))  # type: ignore[operator]
            return y

    torch.manual_seed(1)
    x = 9 * torch.randn(2, 4, 8, 8)
    calibrated = Calibrate([x], scheme=scheme)(InsertObservers()(program_of(Clipped(), x)))
    converted = Convert()(calibrated)
    assert list(integer_nodes(converted).values()) == ["conv"]
    scale = float(max(float(v) for n, v in tensors(converted).items() if n.endswith("_scale") and v.ndim == 0))
    assert float((converted(x) - calibrated(x)).detach().abs().max()) <= scale  # the bias is rounded
    assert math.isclose(float(converted(x).max()), float(calibrated(x).detach().max()), rel_tol=1e-6)


def test_the_levels_of_a_relu6_in_fixed_point_by_hand() -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = functional.relu6(self.conv(x))
            return y

    torch.manual_seed(1)
    x = 20 * torch.randn(2, 4, 8, 8)
    calibrated = Calibrate([x], "minmax", scheme=FIXED_POINT)(InsertObservers()(program_of(Clipped(), x)))
    *_, fake = calibrated.graph.find_nodes(op="call_function", target=fake_quantize)
    assert fake.args[4:] == (0, 192)  # 6 / 255 is rounded up to 2^-5, and 6 · 2^5 = 192
    assert float(calibrated(x).detach().max()) == 6.0


@pytest.mark.parametrize("bits", [2, 3, 5, 7])
def test_fewer_bits_use_fewer_integers(program: Program, bits: int) -> None:
    x = images()
    scheme = Scheme(activation_bits=bits, weight_bits=bits, clip_weights="mse")
    found = tensors(Quantize([x], scheme=scheme)(program))
    weights = {name: value for name, value in found.items() if name.endswith("weight_int8")}
    assert len(weights) == 6
    assert all(int(value.abs().max()) == 2 ** (bits - 1) - 1 for value in weights.values())
    quantized = Quantize([x], "x86", scheme=scheme)(program)
    limits = {
        node.args[4:6]
        for node in quantized.graph.find_nodes(op="call_function", target=torch.ops.fxopt.quantize.default)
    }
    assert limits == {(0, 2**bits - 1)}


@pytest.mark.parametrize("net", [Residual, Gated])
def test_whole_ranges_of_known_data_need_no_data(net: type[nn.Module]) -> None:
    data = [images(count) for count in (2, 1, 3)]
    program = program_of(net(), images())
    known = KnownRanges()
    Quantize(data, known=known)(program)
    again = Quantize(iter(()), observer="minmax", known=known.whole())(program)
    expected = tensors(Quantize(data, observer="minmax")(program))
    assert {name: value.tolist() for name, value in tensors(again).items()} == {
        name: value.tolist() for name, value in expected.items()
    }
