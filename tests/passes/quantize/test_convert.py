"""InsertObservers, Calibrate, Convert: hand-computed integers, absorbed clips, and the order of the three."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fxopt.errors import ExportError, PassError, TargetError
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.interpret import sqnr
from fxopt.graph.ops import dequantize, fake_quantize, observe, quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes
from fxopt.graph.rewrite import constant
from fxopt.graph.verify import verify
from fxopt.passes.quantize import Calibrate, Convert, CorrectBias, InsertObservers, Quantize, Scheme
from fxopt.passes.quantize.calibrate import BIAS_MAX
from fxopt.passes.quantize.clips import clip_is_redundant
from fxopt.passes.quantize.observers import Observer
from fxopt.target import TARGETS
from tests.conftest import Golden
from tests.passes.quantize.nets import Branches, Encoder, Gated, Inverted, Residual, images, program_of

NETS = [
    (Residual, images()),
    (Inverted, images()),
    (Branches, images()),
    (Gated, images(2, 16)),
    (Encoder, torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))),
]


def tensors(program: Program) -> dict[str, Tensor]:
    return {str(node.target): constant(program.module, node) for node in program.graph.find_nodes(op="get_attr")}  # type: ignore[misc]


def targets(program: Program) -> list[object]:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def test_the_integers_of_one_convolution_by_hand() -> None:
    layer = nn.Conv2d(4, 16, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, :, 0, 0] = torch.tensor([0.254, -0.127, 0.0011, 0.0])
        layer.bias = nn.Parameter(torch.full((16,), 0.5))
    x = torch.linspace(-1.0, 3.0, 64).reshape(1, 4, 4, 4).repeat(2, 1, 1, 1)
    program = verify(Quantize([x], observer="minmax", correct_bias=False)(program_of(layer, x)), full=True)
    found, name = tensors(program), program.placeholders[0].name
    assert float(found[f"{name}_scale"]) == pytest.approx(4 / 255)
    assert int(found[f"{name}_zero_point"]) == 64
    assert float(found["weight_scale"][0]) == pytest.approx(0.254 / 127)
    assert found["weight_int8"][0, :, 0, 0].tolist() == [127, -64, 1, 0]  # -63.5 is rounded to even
    assert int(found["bias_int32"][0]) == pytest.approx(0.5 / (4 / 255 * 0.254 / 127), abs=1)
    assert found["weight_int8"].dtype is torch.int8 and found["bias_int32"].dtype is torch.int32
    assert "weight" not in found and "bias" not in found


@pytest.mark.parametrize("target", TARGETS)
def test_weights_fill_the_range_of_the_target(target: str) -> None:
    x = images()
    quantized = Quantize([x], target)(program_of(Residual(), x))
    weights = [tensor for name, tensor in tensors(quantized).items() if name.endswith("weight_int8")]
    assert len(weights) == 6
    assert {int(weight.abs().max()) for weight in weights} == {TARGETS[target].weight_max}


def test_weights_calibrated_for_a_wider_range_are_refused() -> None:
    x = images()
    calibrated = Calibrate([x])(InsertObservers("x86-avx2")(program_of(Residual(), x)))
    with pytest.raises(PassError, match=r"\[-127, 127\].*Calibrate\(data, target='x86-avx2'\)"):
        Convert("x86-avx2")(calibrated)


def test_signed_activations_of_arm64_are_those_of_x86_shifted() -> None:
    x = images()
    program = program_of(Residual(), x)
    unsigned, signed = (Quantize([x], target)(program) for target in ("x86", "arm64"))
    assert int(tensors(signed)["x_zero_point_int8"]) == int(tensors(unsigned)["x_zero_point"]) - 128
    assert int(tensors(signed)["relu_zero_point_int8"]) == -128
    assert torch.equal(unsigned(x), signed(x))


@pytest.mark.parametrize(("net", "x"), NETS)
@pytest.mark.parametrize("observer", ["minmax", "mse"])
@pytest.mark.parametrize("correct", [False, True])
def test_passes_by_hand_are_the_one_pass(net: type[nn.Module], x: Tensor, observer: Observer, correct: bool) -> None:
    program = program_of(net(), x)
    before = str(program)
    observed = verify(InsertObservers("x86")(program))
    assert torch.equal(observed(x), program(x))
    calibrated = verify(Calibrate([x], observer)(observed), full=True)
    corrected = CorrectBias([x])(calibrated) if correct else calibrated
    converted = verify(Convert("x86")(corrected), full=True)
    whole = Quantize([x], "x86", observer, correct_bias=correct)(program)
    assert str(converted).partition("return")[0] == str(whole).partition("return")[0]
    assert torch.equal(converted(x), whole(x))
    assert str(program) == before
    assert not {observe, fake_quantize} & set(targets(converted))
    assert converted.history[len(program.history) :] == (
        "InsertObservers(target='x86', keep_float={})",
        f"Calibrate(observer='{observer}', target='x86', scheme=Scheme())",
        *(["CorrectBias(samples=16)"] if correct else []),
        "Convert(target='x86')",
    )
    steps = f"correct_bias={correct}, round_weights=False"
    options = f"observer='{observer}', keep_float={{}}, {steps}, scheme=Scheme()"
    assert whole.history[-1] == f"Quantize(target='x86', {options})"
    assert len(whole.history) == len(program.history) + 1


@pytest.mark.parametrize(("net", "x"), NETS)
@pytest.mark.parametrize("target", TARGETS)
def test_quantization_is_close_to_float(net: type[nn.Module], x: Tensor, target: str) -> None:
    program = program_of(net(), x)
    quantized = Quantize([x], target)(program)
    assert len(integer_nodes(quantized)) >= 6
    assert sqnr(program(x), quantized(x)) > 25


def test_a_calibrated_program_is_close_to_the_converted_one_and_has_gradients() -> None:
    x = images()
    calibrated = Calibrate([x])(InsertObservers()(program_of(Residual(), x)))
    assert sqnr(calibrated(x), Convert()(calibrated)(x)) > 40
    calibrated(x).square().sum().backward()
    gradients = [parameter.grad for parameter in calibrated.parameters()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)


def test_a_bias_that_would_overflow_int32_widens_the_scale_of_its_channel() -> None:
    layer = nn.Conv2d(4, 16, 1)
    with torch.no_grad():
        layer.weight[3] = 1e-12
        layer.weight[4] = 0.0
        layer.bias = nn.Parameter(torch.full((16,), 0.7))
    x = torch.randn(2, 4, 4, 4)
    program = Quantize([x])(program_of(layer, x))
    found = tensors(program)
    assert int(found["bias_int32"].abs().max()) <= BIAS_MAX + 2**8  # the scale is rounded to float32
    assert program(x)[:, 3:5].mean().item() == pytest.approx(0.7, rel=0.02)


@given(
    st.floats(0.001, 1.0),
    st.integers(0, 255),
    st.sampled_from([(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, 2.0), (-0.3, math.inf)]),
)
def test_a_redundant_clip_changes_nothing(step: float, zero_point: int, bounds: tuple[float, float]) -> None:
    scale = float(torch.tensor(step))
    values = torch.cat([torch.linspace(-300 * step, 300 * step, 999), torch.tensor([-1e6, 0.0, 1e6, *bounds])])

    def integers(x: Tensor) -> Tensor:
        zero = torch.tensor(zero_point, dtype=torch.uint8)
        result: Tensor = quantize(x, torch.tensor(scale), zero, None, 0, 255, torch.uint8)
        return result

    unchanged = torch.equal(integers(values.clamp(*bounds)), integers(values))
    assert clip_is_redundant(scale, zero_point, bounds, 0, 255) == unchanged


@pytest.mark.parametrize(
    "clip",
    [torch.relu, functional.relu6, functional.hardtanh, lambda x: x.clamp(-0.37, 0.61), lambda x: x.clamp(min=-0.2)],
)
def test_clips_are_absorbed_whatever_their_bounds(clip: Callable[[Tensor], Tensor]) -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = clip(self.conv(x))
            return y

    for seed in range(5):
        torch.manual_seed(seed)
        x = 5 * torch.randn(2, 4, 8, 8)
        quantized = Quantize([x])(program_of(Clipped(), x))
        assert list(integer_nodes(quantized).values()) == ["conv"]
        assert not any(name in str(targets(quantized)) for name in ("relu", "hardtanh", "clamp"))


def test_a_clip_is_not_absorbed_if_the_value_before_it_is_read_too() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y: Tensor = self.second(torch.relu(x)) + x
            return y

    x = torch.randn(2, 4, 8, 8)
    quantized = Quantize([x])(program_of(PreActivation(), x))
    assert torch.ops.aten.relu.default in targets(quantized)
    assert list(integer_nodes(quantized).values()) == ["conv", "conv"]


@pytest.mark.parametrize("target", ["x86", "arm64"])
@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (functional.silu, {"sigmoid", "mul"}),
        (functional.hardswish, {"add", "mul"}),
        (functional.hardsigmoid, {"add"}),
    ],
)
def test_activations_are_spelled_with_integer_ops(
    function: Callable[[Tensor], Tensor], kinds: set[str], target: str
) -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(function(self.first(x)))
            return y

    torch.manual_seed(2)
    x = 6 * torch.randn(2, 4, 8, 8)
    program = program_of(Between(), x)
    quantized = verify(Quantize([x], target)(program), full=True)
    assert set(integer_nodes(quantized).values()) == {"conv", *kinds}
    assert sqnr(program(x), quantized(x)) > 28


def test_what_stays_float_is_noted_with_its_reason() -> None:
    x = images()
    quantized = Quantize([x], keep_float=["conv2d_1", "conv2d_2"])(program_of(Residual(), x))
    assert "Float: conv2d_1, conv2d_2: kept float on request." in quantized.notes
    assert {"conv2d_1", "conv2d_2"}.isdisjoint(integer_nodes(quantized))
    assert "conv2d_3" in integer_nodes(quantized)


def test_the_order_of_keep_float_does_not_show_in_the_history() -> None:
    data = [images()]
    names = ["conv2d_2", "add", "conv2d_1"]
    assert repr(Quantize(data, keep_float=names)) == repr(Quantize(data, keep_float=frozenset(names)))


def test_passes_in_the_wrong_order_say_so() -> None:
    x = images()
    program = program_of(Residual(), x)
    with pytest.raises(PassError, match="run Calibrate before Convert"):
        Convert()(InsertObservers()(program))
    with pytest.raises(TargetError, match="riscv"):
        InsertObservers("riscv")(program)
    with pytest.raises(TargetError, match="riscv"):
        Calibrate([x], target="riscv")(InsertObservers()(program))
    with pytest.raises(PassError, match="median"):
        Calibrate([x], "median")  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", [Scheme(activation_bits=16), Scheme(weight_bits=16), Scheme(16, 16)])
def test_sixteen_bits_are_for_simulation_only(scheme: Scheme) -> None:
    torch.manual_seed(0)
    x = images()
    program = program_of(Residual(), x)
    calibrated = verify(Calibrate([x], scheme=scheme)(InsertObservers()(program)), full=True)
    assert sqnr(program(x), calibrated(x)) > sqnr(program(x), Calibrate([x])(InsertObservers()(program))(x))
    with pytest.raises(PassError, match="more than 8 bits, which no integer kernel takes: simulation only"):
        Convert()(calibrated)
    with pytest.raises(PassError, match="simulation only"):
        Quantize([x], scheme=scheme)(program)
    with pytest.raises(ExportError, match="more than 8 bits: it is for simulation only"):
        to_onnx(calibrated)


def test_sixteen_bits_everywhere_are_close_to_float() -> None:
    x = images()
    program = program_of(Residual(), x)
    assert sqnr(program(x), Calibrate([x], scheme=Scheme(16, 16))(InsertObservers()(program))(x)) > 75


def test_float_programs_claim_nothing() -> None:
    x = images()
    program = program_of(Residual(), x)
    assert integer_nodes(program) == {}
    assert integer_nodes(InsertObservers()(program)) == {}
    assert integer_nodes(Calibrate([x])(InsertObservers()(program))) == {}
    assert dequantize not in targets(program)


class Shortcut(nn.Module):
    """A convolution, an addition that a relu follows, and a linear: each role once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(4, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.inner(x) + x)
        y: Tensor = self.head(x.mean([2, 3]))
        return y


def shortcut() -> tuple[Program, Tensor]:
    """Return a Program and data whose sums are exact in float32: the golden scales are the same on every machine."""
    model = Shortcut()
    for parameter in model.parameters():
        parameter.data = torch.randint(-4, 5, parameter.shape) / 8.0
    x = torch.randint(-8, 9, (2, 4, 6, 6)) / 4.0
    return program_of(model, x), x


def test_golden_insert_observers(golden: Golden) -> None:
    program, _ = shortcut()
    golden(program, InsertObservers()(program))


def test_golden_calibrate(golden: Golden) -> None:
    program, x = shortcut()
    observed = InsertObservers()(program)
    golden(observed, Calibrate([x], "minmax")(observed))


def test_golden_convert(golden: Golden) -> None:
    program, x = shortcut()
    calibrated = Calibrate([x], "minmax")(InsertObservers()(program))
    golden(calibrated, Convert()(calibrated))
