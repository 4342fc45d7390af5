"""ShiftNegatives: the float outputs stay, symmetric values lose their sign, and it is kept only where that helps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.errors import DataError
from fxopt.graph.capture import capture
from fxopt.graph.interpret import sqnr
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.verify import verify
from fxopt.passes.quantize import Quantize, Scheme, ShiftNegatives
from fxopt.passes.quantize.shift_negatives import DEPTHS

aten = torch.ops.aten
Op = Callable[[Tensor], Tensor]
X = torch.randn(8, 3, 12, 12)


class Swish(nn.Module):
    """Swish-like ops between convolutions of every sort of padding, and a linear without a bias."""

    def __init__(self, op: Op = functional.silu) -> None:
        super().__init__()
        self.op = op
        self.first = nn.Conv2d(3, 16, 3)
        self.padded = nn.Conv2d(16, 16, 3, stride=2, padding=(1, 0), bias=False)
        self.same = nn.Conv2d(16, 32, 3, padding="same", groups=4)
        self.head = nn.Linear(32, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.op(self.padded(self.op(self.first(x)))))
        y: Tensor = self.head(self.op(x.mean((2, 3))))
        return y


def shifted(program: Program) -> list[str]:
    return [node.name for node in program.graph.nodes if node.name.endswith("_shifted")]


@pytest.mark.parametrize(
    "op",
    [functional.silu, functional.hardswish, functional.mish, functional.gelu, functional.elu],
    ids=lambda op: str(op.__name__),
)
def test_the_float_outputs_stay_the_same(op: Op) -> None:
    program = capture(Swish(op), X)
    result = verify(ShiftNegatives()(program), full=True)
    assert len(shifted(result)) == 3
    torch.testing.assert_close(result(X), program(X), rtol=1e-4, atol=1e-5)


GOLDEN = """\
  %silu_1 = silu(%input): float32[1, 3, 8, 8]
  %add_1 = add.Tensor(%silu_1, 0.27847): float32[1, 3, 8, 8]
  %pad_1 = pad(%add_1, [1, 1, 1, 1], value=0.27847): float32[1, 3, 10, 10]
  %conv2d_1 = conv2d(%pad_1, 1.weight, bias=1.bias): float32[1, 4, 8, 8]
  %gelu_1 = gelu(%conv2d_1): float32[1, 4, 8, 8]
  %add_2 = add.Tensor(%gelu_1, 0.16998): float32[1, 4, 8, 8]
  %conv2d_2 = conv2d(%add_2, 3.weight, bias=3.bias): float32[1, 4, 8, 8]
"""


def test_the_graph() -> None:
    layers = nn.SiLU(), nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 4, 1, bias=False)
    assert GOLDEN in str(ShiftNegatives()(capture(nn.Sequential(*layers), torch.randn(1, 3, 8, 8))))


@pytest.mark.parametrize("op", DEPTHS, ids=str)
def test_no_result_is_deeper_than_the_table_says(op: Op) -> None:
    x = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    program = capture(Lambda(op), x)
    node = next(node for node in program.graph.nodes if node.target is op)
    depth = -float(program(x).min())
    assert depth <= DEPTHS[op](node) < depth + 1e-4


class Lambda(nn.Module):
    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(x)
        return y


def test_a_tanh_gelu_and_another_alpha() -> None:
    x = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    for op in (lambda x: functional.gelu(x, approximate="tanh"), lambda x: functional.elu(x, alpha=0.3)):
        program = capture(Lambda(op), x)
        node = next(node for node in program.graph.nodes if node.target in DEPTHS)
        depth = -float(program(x).min())
        assert depth <= DEPTHS[node.target](node) < depth + 1e-4


def test_a_value_that_anything_else_reads_is_left_alone() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = functional.silu(x)
            z: Tensor = self.layer(y) + y
            return z

    program = capture(Residual(), X)
    assert ShiftNegatives()(program) is program
    tied = nn.Linear(4, 4)
    program = capture(nn.Sequential(nn.SiLU(), tied, nn.SiLU(), tied), torch.randn(2, 4))
    assert ShiftNegatives()(program) is program


def test_symmetric_values_gain_a_bit() -> None:
    """The last linear's input errs half as much: 6 dB, all that errs if weights have 16 bits and the input is exact."""
    scheme = Scheme(weight_bits=16, symmetric=True)
    x = torch.randn(64, 32).mul(16).round().clamp(-127, 127) / 16
    x[0, 0] = 127 / 16
    program = capture(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8)), x, dynamic="batch")
    result = ShiftNegatives([x], scheme)(program)
    assert len(shifted(result)) == 1
    before, after = (Quantize([x], scheme=scheme).calibrated(found) for found in (program, result))
    assert sqnr(program(x), after(x)) == pytest.approx(sqnr(program(x), before(x)) + 5.5, abs=1.5)
    lows = {str(node.args[0]): node.args[4] for node in after.graph.nodes if node.target is fake_quantize}
    assert lows["gelu_shifted"] == 0


def test_it_stays_away_where_it_does_not_help() -> None:
    program = capture(Swish().eval(), X, dynamic="batch")
    result = ShiftNegatives([X], scheme=Scheme())(program)  # an affine scheme has zero points
    assert not shifted(result)
    assert result.notes[-1].startswith("ShiftNegatives does not bring the quantized outputs nearer")
    with pytest.raises(DataError, match="empty"):
        ShiftNegatives([])(program)
