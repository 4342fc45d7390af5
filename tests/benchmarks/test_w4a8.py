"""The benchmark of 4-bit weights: its own grids, and its figures for a small network."""

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.real_models import RealModel
from benchmarks.w4a8 import W4A8, Compared, Data, WidenWeights, calibrated, ends, score
from fxopt.graph.program import Program
from fxopt.graph.rewrite import constant
from fxopt.graph.verify import verify
from tests.passes.quantize.nets import images

X = images(8, 8)


class Chain(nn.Module):
    """Three convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, 3, h, w] to [n, 16, h - 6, w - 6]."""
        y: Tensor = self.layers(x)
        return y


def build() -> nn.Module:
    torch.manual_seed(0)
    return Chain().eval()


MODEL = RealModel(
    name="chain",
    build=build,
    inputs=lambda n: (X[:n],),
    dynamic="batch",
    calibration=lambda: [(X,)],
    evaluate=lambda model: float(model(X).mean() > -100),
    metric="always 1",
    data="noise",
)


@pytest.fixture(scope="module")
def narrow() -> Program:
    return calibrated(MODEL, Data(MODEL.calibration(), 8, 10), W4A8)


def levels(program: Program) -> list[int]:
    """Return the largest integer of each weight's grid, and check that it is in reach of the weight."""
    found = []
    for node in program.graph.nodes:
        if node.name.endswith("weight_fake"):
            weight, scale = (constant(program.module, value) for value in node.args[:2])
            assert weight is not None and scale is not None
            assert 0.1 < float((weight.detach().flatten(1).abs().amax(1) / scale).amax()) / node.args[5] < 10
            found.append(node.args[5])
    return found


def test_the_ends_get_eight_bits(narrow: Program) -> None:
    assert levels(narrow) == [7, 7, 7]
    wide = verify(WidenWeights(ends(narrow))(narrow), full=True)
    assert levels(wide) == [127, 7, 127]
    exact = build()
    figures = []
    for program in (narrow, wide):
        compared = Compared(exact, program)
        with torch.no_grad():
            compared(X)
        figures.append(compared.sqnr)
    assert figures[1] > figures[0] + 1


def test_sqnr_is_that_of_all_calls_together(narrow: Program) -> None:
    exact, both = build(), []
    with torch.no_grad():
        for parts in ([X], torch.split(X, 3)):
            compared = Compared(exact, narrow)
            for part in parts:
                compared(part)
            both.append(compared.sqnr)
        expected = exact(X)
        noise = (narrow.eval()(X) - expected).square().sum()
    assert both[0] == pytest.approx(10 * math.log10(float(expected.square().sum() / noise)), abs=0.01)
    assert both[1] == pytest.approx(both[0], abs=0.01)


def test_rows_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    found = score(MODEL, Data(MODEL.calibration(), 8, 10), ["nearest", "RoundGptq"], (4, 8))
    rows = {row["way"]: row for row in found}
    assert list(rows) == [
        "float", "8 bits, nearest", "nearest", "RoundGptq", "nearest, ends 8 bits", "RoundGptq, ends 8 bits",
    ]  # fmt: skip
    assert all(row["metric"] == 1 for row in rows.values())
    assert rows["8 bits, nearest"]["sqnr"] > rows["nearest"]["sqnr"] + 10
    assert len(capsys.readouterr().out.splitlines()) == 6
