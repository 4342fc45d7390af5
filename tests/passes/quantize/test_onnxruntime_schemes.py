"""Every scheme with an integer form: onnxruntime forms all claimed kernels, and makes the very same integers."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.graph.integer import run_integer
from fxopt.graph.interpret import sqnr
from fxopt.graph.verify import verify
from fxopt.passes.quantize import FIXED_POINT, Quantize, Scheme
from fxopt.target import TARGETS
from tests.passes.quantize.nets import Branches, Encoder, Gated, Inverted, Residual, images, program_of
from tests.passes.quantize.test_onnxruntime import census_of, session_of

TOKENS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
NETS: dict[type[nn.Module], Tensor] = {
    Residual: images(), Inverted: images(), Branches: images(), Gated: images(2, 16), Encoder: TOKENS,
}  # fmt: skip
SCHEMES = {
    "7-bit weights": (Scheme(weight_bits=7), 38.0),
    "4-bit weights": (Scheme(weight_bits=4, clip_weights="mse"), 20.0),
    "2-bit weights": (Scheme(weight_bits=2, per_channel=False, clip_weights="mse"), 6.0),
    "4-bit activations": (Scheme(activation_bits=4), 15.0),
    "symmetric": (Scheme(symmetric=True), 37.0),
    "fixed point": (FIXED_POINT, 35.0),
    "4-bit fixed point": (Scheme(4, 4, symmetric=True, per_channel=False, power_of_two=True), 10.0),
}


def assert_exact(program: object, x: Tensor, target: str, scheme: Scheme, least: float) -> None:
    torch.manual_seed(0)
    quantized = verify(Quantize([x], target, scheme=scheme)(program))  # type: ignore[arg-type]
    census = census_of(quantized, target)
    assert census.unfused == {} and census.weight_dequantize == 0
    (actual,) = session_of(quantized, target)(x)
    (expected,) = run_integer(quantized, (x,))
    assert sqnr(expected, actual) > 100  # all integers are the same; float ops at the end may round
    assert sqnr(program(x), actual) > least  # type: ignore[operator]


@pytest.mark.parametrize(
    ("net", "name"),
    [(net, name) for net in (Residual, Gated, Encoder) for name in SCHEMES]
    + [(net, "4-bit fixed point") for net in (Inverted, Branches)],
)
@pytest.mark.vnni
def test_networks_are_fused_whole_and_exact(net: type[nn.Module], name: str) -> None:
    torch.manual_seed(0)
    assert_exact(program_of(net(), NETS[net]), NETS[net], "x86", *SCHEMES[name])


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "x86"])
@pytest.mark.parametrize("name", ["2-bit weights", "4-bit fixed point"])
def test_other_targets_take_them_too(target: str, name: str) -> None:
    torch.manual_seed(0)
    for net in (Residual, Encoder):
        assert_exact(program_of(net(), NETS[net]), NETS[net], target, *SCHEMES[name])


@pytest.mark.parametrize("clip", [functional.relu6, functional.hardtanh, functional.hardsigmoid])
@pytest.mark.parametrize("scheme", [FIXED_POINT, Scheme(4, 4)])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.vnni
def test_saturation_inside_narrower_limits(clip: object, scheme: Scheme, target: str) -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(clip(self.first(x)))  # type: ignore[operator]
            return y

    torch.manual_seed(1)
    x = 9 * torch.randn(2, 4, 8, 8)
    assert_exact(program_of(Clipped(), x), x, target, scheme, 8.0)


@pytest.mark.parametrize("target", ["x86-avx2", "portable"])
def test_the_bias_of_a_linear_before_a_relu_with_few_bits(target: str) -> None:
    """Steps of 4 bits times 4 bits are wide: a bias that the kernel adds in float must not be rounded to them."""
    x = torch.randn(64, 16)
    program = program_of(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8)), x)
    assert_exact(program, x, target, Scheme(4, 4, clip_weights="mse"), 10.0)
