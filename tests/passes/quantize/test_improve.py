"""improve(): a step stays if the quantized outputs get nearer to the float ones, by a numeric oracle of our own."""

import pytest
import torch
from torch import fx, nn

from fxopt.graph.capture import capture
from fxopt.graph.interpret import sqnr
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.passes.quantize import EqualizeLayers, Quantize
from fxopt.passes.quantize.improve import improve
from tests.passes.quantize.nets import Inverted, images, program_of

X = images(8)
QUANTIZE = Quantize([X], correct_bias=False)


class TwoConvolutions(nn.Module):
    """Two pointwise convolutions with a relu between: the plainest pair that can be equalized."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.wide(torch.relu(self.narrow(x)))
        return y


def uneven(net: TwoConvolutions) -> TwoConvolutions:
    """Spread the ranges of the channels between the layers by factors of 1 to 64."""
    factors = 2.0 ** torch.arange(16).remainder(7)
    net.narrow.weight.data *= factors.reshape(-1, 1, 1, 1)
    assert net.narrow.bias is not None
    net.narrow.bias.data *= factors
    net.wide.weight.data /= factors.reshape(1, -1, 1, 1)
    return net


def scaled_bias(program: Program, factor: float) -> Program:
    """Return a Program that quantizes worse: every bias is larger, so the outputs are others."""
    edit = Edit(program, by=None)
    for node in list(edit.calls(torch.ops.aten.conv2d.default)):
        bias = node.args[2]
        assert isinstance(bias, fx.Node)
        value = edit.constant(bias)
        assert value is not None
        stored = edit.add_constant(f"{bias.target}_wrong", value.detach() * factor + 1, before=node)
        edit.update(node, (*node.args[:2], stored, *node.args[3:]))
    return edit.finish()


def noise_of(program: Program, expected: torch.Tensor) -> float:
    return -sqnr(expected, QUANTIZE(program)(X))


def test_a_step_that_helps_stays() -> None:
    program = program_of(uneven(TwoConvolutions()), X)
    found = improve(program, (EqualizeLayers(),), QUANTIZE, [(X,)])
    assert found.history == ("EqualizeLayers(iterations=20)",) and found.notes == ()
    assert noise_of(found, program(X)) < noise_of(program, program(X)) - 3


def test_a_step_that_harms_is_left_out_with_a_note() -> None:
    class Harm:
        def __call__(self, program: Program) -> Program:
            return scaled_bias(program, 3.0)

    program = program_of(TwoConvolutions(), X)
    found = improve(program, (Harm(),), QUANTIZE, [(X,)])
    assert torch.equal(found(X), program(X))
    assert found.notes == ("Harm does not bring the quantized outputs nearer to the float ones; it is left out.",)


def test_the_best_alternative_is_kept() -> None:
    class Harm:
        def __call__(self, program: Program) -> Program:
            return scaled_bias(program, 3.0)

    program = program_of(uneven(TwoConvolutions()), X)
    found = improve(program, (Harm(), EqualizeLayers(), Harm()), QUANTIZE, [(X,)])
    assert found.history == ("EqualizeLayers(iterations=20)",) and found.notes == ()


def test_a_step_that_finds_nothing_leaves_no_note() -> None:
    program = program_of(nn.Conv2d(3, 16, 1), X)
    assert improve(program, (EqualizeLayers(),), QUANTIZE, [(X,)]).notes == ()


def test_a_whole_net_stays_the_same_function() -> None:
    program = program_of(Inverted(), X)
    found = improve(program, (EqualizeLayers(),), QUANTIZE, [(X,)])
    torch.testing.assert_close(found(X), program(X), rtol=1e-4, atol=1e-5)


class Tagger(nn.Module):
    """A value for each token; padding gets an error of its own."""

    def __init__(self, error: float, padding_error: float) -> None:
        super().__init__()
        self.error, self.padding_error = error, padding_error

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return x + torch.where(attention_mask > 0, self.error, self.padding_error).unsqueeze(-1)


@pytest.mark.parametrize(("errors", "kept"), [((0.1, 9.0), True), ((0.3, 0.0), False)])
def test_padding_does_not_count(errors: tuple[float, float], kept: bool) -> None:
    item = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0]])
    exact, plain, eased, quantized = (
        capture(Tagger(*pair), item, dynamic="batch") for pair in ((0.0, 0.0), (0.2, 0.2), (0.0, 0.0), errors)
    )
    trials = {id(exact): plain, id(eased): quantized}
    found = improve(exact, (lambda program: eased,), lambda program: trials[id(program)], [item])
    assert (found is eased) == kept
