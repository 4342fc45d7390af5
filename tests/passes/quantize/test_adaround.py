"""AdaRound: learned rounding of layers and of blocks."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.demo import demo_data, demo_model
from fxopt.errors import DataError, PassError
from fxopt.graph.capture import capture
from fxopt.graph.interpret import run, sqnr
from fxopt.graph.ops import dequantize, fake_quantize
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.graph.rewrite import constant
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import AdaRound, Calibrate, Convert, InsertObservers, Scheme
from tests.passes.quantize.nets import Encoder, Gated, Inverted, images, program_of

FEW = 40  # iterations
Region = Literal["layer", "block"]


def calibrated(module: nn.Module, x: Tensor, scheme: Scheme) -> Program:
    return Pipeline((InsertObservers(), Calibrate([x], scheme=scheme)))(program_of(module, x))


def weight_steps(program: Program) -> dict[str, Tensor]:
    """Return each quantized weight in steps of its scale, by the name of its fake_quantize node."""
    steps = {}
    for node in program.graph.nodes:
        if node.target is fake_quantize and (weight := constant(program.module, node.args[0])) is not None:
            scale = constant(program.module, node.args[1])
            assert scale is not None
            steps[node.name] = weight.detach() / scale.reshape([-1, *[1] * (weight.ndim - 1)] if scale.ndim else [])
    return steps


@pytest.fixture(scope="module")
def digits() -> Program:
    """Return the demo's classifier, calibrated, with weights of 4 bits."""
    data, _ = demo_data("calibration")
    program = Pipeline(tuple(CLEANUP))(capture(demo_model(), data[:4], dynamic="batch"))
    return Pipeline((InsertObservers(), Calibrate([data[:32]], scheme=Scheme(weight_bits=4))))(program)


@pytest.fixture(scope="module")
def rounded_digits(digits: Program) -> Program:
    return AdaRound([demo_data("calibration")[0][:16]], iterations=20)(digits)


@pytest.mark.slow
def test_four_bit_weights_of_a_trained_network(digits: Program, rounded_digits: Program) -> None:
    held_out = demo_data("test")[0][:50]
    exact = demo_model()(held_out)
    plain, learned = (sqnr(exact, Convert()(program)(held_out)) for program in (digits, verify(rounded_digits)))
    assert learned > plain + 12
    assert "AdaRound(samples=64" in rounded_digits.history[-1]


@pytest.mark.slow
def test_convert_makes_exactly_the_learned_integers(digits: Program, rounded_digits: Program) -> None:
    steps, exact = weight_steps(rounded_digits), weight_steps(digits)
    converted = Convert()(rounded_digits)
    found = 0
    for node in converted.graph.nodes:
        if node.target is dequantize and str(node.args[0].target).endswith("_rounded_int8"):
            name = node.name.replace("_dequantized", "_fake")
            integers = constant(converted.module, node.args[0])
            assert integers is not None
            assert torch.allclose(integers.float(), steps[name], atol=1e-5) and int(integers.abs().max()) <= 7
            assert bool((steps[name].round() != exact[name].round()).any())
            found += 1
    assert found == len(exact) > 5


CASES: dict[str, tuple[type[nn.Module], Region, Scheme]] = {
    "layers": (Inverted, "layer", Scheme(weight_bits=4)),
    "blocks": (Inverted, "block", Scheme(weight_bits=4)),
    "transformer blocks": (Encoder, "block", Scheme(weight_bits=4)),
    "one scale for a whole weight": (Gated, "layer", Scheme(weight_bits=4, per_channel=False)),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_get_nearer_to_float(case: str) -> None:
    """Depthwise convolutions, relu6, gates, residuals and attention; on the samples that it was fitted to."""
    net, region, scheme = CASES[case]
    x, module = torch.randn(8, 5, 32) if net is Encoder else images(8, 16), net()
    program = calibrated(module, x, scheme)
    rounded = verify(AdaRound([x], region=region, iterations=FEW)(program), full=True)
    exact = module(x)
    plain, learned = (sqnr(exact, run(found, (x,))[0]) for found in (program, rounded))
    assert learned > plain + 2
    before, after = weight_steps(program), weight_steps(rounded)
    assert before.keys() == after.keys()
    for steps in after.values():
        assert torch.allclose(steps, steps.round(), atol=1e-5)
        assert float(steps.abs().max()) < 7.001


def test_same_data_same_weights_and_one_item_or_many() -> None:
    """Items are run in parts of eight samples; how the data came makes no difference."""
    x = images(16, 16)
    program = calibrated(Inverted(), x, Scheme(weight_bits=4))
    whole, parts = (
        weight_steps(AdaRound(data, region="block", iterations=5, drop=0.5)(program))
        for data in ([x], torch.split(x, 8))
    )
    assert whole.keys() == parts.keys()
    for name, steps in whole.items():
        assert torch.equal(steps, parts[name])


class Tied(nn.Module):
    """Two linears with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(functional.gelu(self.linear(x)))
        return y


@pytest.mark.parametrize("region", ["layer", "block"])
def test_a_shared_weight_is_rounded_once(region: Region) -> None:
    x = torch.randn(8, 32)
    rounded = verify(AdaRound([x], region=region, iterations=FEW)(calibrated(Tied(), x, Scheme(weight_bits=4))))
    names = [str(node.target) for node in rounded.graph.find_nodes(op="get_attr")]
    assert names.count("linear.weight_rounded") == 1 and "linear.weight" not in names


class OneDimension(nn.Module):
    """Convolutions along one dimension, behind each other in a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv1d(16, 16, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.second(functional.silu(self.first(x)))
        return y


def test_layers_that_are_no_matrix_product_learn_from_whole_samples() -> None:
    x, module = torch.randn(4, 16, 20), OneDimension()
    program = calibrated(module, x, Scheme(weight_bits=4))
    rounded = AdaRound([x], iterations=FEW)(program)
    plain, learned = (sqnr(module(x), run(found, (x,))[0]) for found in (program, rounded))
    assert learned > plain and len(weight_steps(rounded)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "network"}, "Choose one of layer, block"),
        ({"drop": 1.5}, "a share from 0 to 1"),
        ({"iterations": 0}, "a positive number"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PassError, match=message):
        AdaRound([], **options)


def test_bad_data() -> None:
    x = torch.randn(2, 5, 32)
    program = calibrated(Encoder(), x, Scheme())
    with pytest.raises(DataError, match="empty"):
        AdaRound([])(program)
    with pytest.raises(DataError, match="NaN or infinity"):
        AdaRound([x * torch.nan])(program)
    assert str(AdaRound([x[:0]])(program)) == str(program)  # items without samples say nothing


def test_a_program_without_grids_comes_back_the_same() -> None:
    program = program_of(Encoder(), torch.randn(2, 5, 32))
    assert str(AdaRound([])(program)) == str(program)
