"""RoundBiases: biases lie on grids of few bits, and those of the integer model are they."""

import pytest
import torch

from fxopt.errors import PassError
from fxopt.graph.interpret import sqnr
from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument
from fxopt.graph.verify import verify
from fxopt.passes.quantize import FIXED_POINT, Quantize, RoundBiases, Scheme
from fxopt.passes.quantize.correct_bias import is_quantized_layer
from tests.passes.quantize.nets import Inverted, images, program_of

X = images(8)


@pytest.fixture(scope="module")
def calibrated() -> Program:
    return Quantize([X]).calibrated(program_of(Inverted(), X))


def biases(program: Program) -> dict[str, torch.Tensor]:
    layers = [node for node in program.graph.nodes if is_quantized_layer(node)]
    return {node.name: program.module.get_parameter(argument(node, "bias").target).detach() for node in layers}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_biases_are_whole_steps(calibrated: Program, bits: int, power_of_two: bool) -> None:
    rounded = verify(RoundBiases(bits, power_of_two)(calibrated), full=True)
    before, after = biases(calibrated), biases(rounded)
    assert set(before) == set(after) and len(before) > 5
    largest = 2 ** (bits - 1) - 1
    for name, value in after.items():
        step = float(before[name].abs().max()) / largest
        if power_of_two:
            step = 2.0 ** torch.tensor(step, dtype=torch.float64).log2().ceil().item()
        steps = value.double() / step
        assert float((steps - steps.round()).abs().max()) < 1e-2
        assert float(steps.abs().max()) <= largest + 1e-2
        assert float((value - before[name]).abs().max()) <= 0.5001 * step


def test_fewer_bits_cost_more_and_the_integer_model_has_them() -> None:
    program = program_of(Inverted(), X)
    exact = program(X)
    found = [sqnr(exact, Quantize([X], scheme=Scheme(bias_bits=bits))(program)(X)) for bits in (32, 16, 8)]
    assert found[0] == pytest.approx(found[1], abs=0.5) and found[2] < found[1]
    fixed = Scheme(symmetric=True, power_of_two=True, bias_bits=8)
    calibrated = RoundBiases(8, power_of_two=True)(Quantize([X], scheme=FIXED_POINT).calibrated(program))
    assert sqnr(calibrated(X), Quantize([X], scheme=fixed)(program)(X)) > 40


def test_thirty_two_bits_change_nothing_and_others_are_refused(calibrated: Program) -> None:
    assert RoundBiases(32)(calibrated) is calibrated
    with pytest.raises(PassError, match="Biases have 12 bits"):
        RoundBiases(12)
    with pytest.raises(PassError, match="bias_bits is 4"):
        Scheme(bias_bits=4)
