"""compile() within max_drop and max_latency: everything is real but the clock, which counts integer layers."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import fxopt
from fxopt.choose import Candidate, worst_sqnr
from fxopt.errors import BudgetError, ModelError, ValidationError
from fxopt.export.measure import Measurement
from fxopt.export.session import Session
from fxopt.graph.program import Program
from fxopt.timed_placement import NodeTime

FLOAT_SECONDS, SAVED = 1e-3, 100e-6
LAYERS = ("conv2d", "conv2d_1", "conv2d_2", "conv2d_3")


class Planted(nn.Module):
    """Four convolutions; behind the first, one channel is ten thousand times as large as the others.

    The second one has weights as small for it. One scale for all channels erases what the others say, so the first
    two layers must be float wherever accuracy counts; the last two are harmless.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)]
        with torch.no_grad():
            layers[0].weight[0] *= 1e4
            layers[1].weight[:, 0] *= 1e-4
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x.amax((2, 3))


def saved_by(path: Path) -> int:
    """Count the int8 weights of a file."""
    return sum(1 for w in onnx.load(path).graph.initializer if w.data_type == onnx.TensorProto.INT8 and len(w.dims) > 1)


def timed(
    files: Mapping[str, Path], baseline: Path, inputs: Any, samples: Sequence[tuple[Tensor, ...]], settings: Any
) -> list[Candidate]:
    left = Session(baseline)
    return [
        Candidate(
            name,
            Measurement(FLOAT_SECONDS - SAVED * saved_by(path), FLOAT_SECONDS, 5, 1, 0.0),
            worst_sqnr((left(*item), Session(path)(*item)) for item in samples),
        )
        for name, path in files.items()
    ]


def times(program: Program, *profiles: Any) -> dict[str, NodeTime]:
    return dict.fromkeys(LAYERS, NodeTime(SAVED + 10e-6, 10e-6))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["fxopt.trials"], "try_candidates", timed)
    monkeypatch.setattr(sys.modules["fxopt.job"], "profile", lambda *rest, **options: [])
    monkeypatch.setattr(sys.modules["fxopt.within_budget"], "node_times", times)


X = torch.randn(8, 16, 6, 6, generator=torch.Generator().manual_seed(1))


PROGRAM = fxopt.capture(Planted().eval(), X, dynamic="batch")


def compiled(path: Path, **options: Any) -> fxopt.Result:
    return fxopt.compile(PROGRAM, X[:1], calibration=[X], target="x86", output=path / "m.onnx", **options)


def float_layers(result: fxopt.Result) -> set[str]:
    return {name for name in result.report.float_reasons if name in LAYERS}


@pytest.mark.parametrize("max_drop", ["kl=1e-5", 0.05])
def test_what_destroys_accuracy_stays_float_and_the_rest_does_not(tmp_path: Path, max_drop: str | float) -> None:
    expected = Planted().eval()(X).detach()

    def score(net: Any) -> float:
        return 1 - float((net(X) - expected).norm() / expected.norm())

    result = compiled(tmp_path, max_drop=max_drop, evaluate=score)
    assert float_layers(result) == {"conv2d", "conv2d_1"}
    assert {row.name for row in result.report.layers if row.precision == "float"} == {"conv2d", "conv2d_1"}
    assert result.report.census.kernels["QLinearConv"] == 2
    assert "max_drop=" in result.report.float_reasons["conv2d_1"]
    static, *_ = result.report.candidates
    chosen = next(c for c in result.report.candidates if f"{c.name} is the fastest" in result.report.notes[0])
    assert static.speedup > chosen.speedup > 1 and static.sqnr < 10 < chosen.sqnr
    assert chosen.figure is not None and result.report.latency == chosen.latency
    assert result.validation.ok and list(tmp_path.iterdir()) == [tmp_path / "m.onnx"]
    json.dumps(result.report.to_dict(), allow_nan=False)


def test_a_drop_that_everything_keeps_to_is_the_fastest_model(tmp_path: Path) -> None:
    result = compiled(tmp_path, max_drop="sqnr=-10")
    assert float_layers(result) == set() and [c.name for c in result.report.candidates] == ["static"]


def test_a_drop_that_nothing_keeps_to_is_the_float_model(tmp_path: Path) -> None:
    result = compiled(tmp_path, max_drop="sqnr=150")
    assert result.report.is_float and "stays float" in result.report.notes[0]
    assert [(row.precision, row.reason) for row in result.report.layers] == [("float", "the model stays float")] * 4
    assert Session(tmp_path / "m.onnx")(X)[0].numpy() == pytest.approx(
        Planted()(X).detach().numpy(), rel=1e-4, abs=1e-3
    )


def test_a_latency_alone_gives_the_most_exact_that_is_as_fast(tmp_path: Path) -> None:
    """At four fifths of float's time two layers have to be integer: the two that cost the least accuracy."""
    result = compiled(tmp_path, max_latency="820us")
    assert float_layers(result) == {"conv2d", "conv2d_1"}
    assert "the most exact within max_latency=0.82ms" in result.report.notes[0]


def test_float_is_the_most_exact_where_it_is_fast_enough(tmp_path: Path) -> None:
    assert compiled(tmp_path, max_latency=1).report.is_float


@pytest.mark.parametrize("bounds", [{"max_latency": 0.5}, {"max_drop": "sqnr=25", "max_latency": 0.7}])
def test_what_cannot_be_reached_is_refused_with_what_was(tmp_path: Path, bounds: dict[str, Any]) -> None:
    with pytest.raises(BudgetError) as error:
        compiled(tmp_path, **bounds)
    message = str(error.value)
    assert "Loosen" in message and "static (0.6 ms, 0.60 of float's time" in message
    assert f"{'0.8' if 'max_drop' in bounds else '0.6'} ms is the least that was reached" in message
    assert list(tmp_path.iterdir()) == []


def test_both_bounds(tmp_path: Path) -> None:
    result = compiled(tmp_path, max_drop="sqnr=25", max_latency=0.85)
    assert float_layers(result) == {"conv2d", "conv2d_1"}


@pytest.mark.parametrize("options", [{"recipe": "int8-static"}, {"recipe": "float"}, {"measure": False}])
def test_only_a_recipe_with_a_choice_has_a_budget(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"max_latency=0\.5: only recipe='int8'"):
        compiled(tmp_path, max_latency=0.5, **options)


def test_a_proposal_that_is_not_proved_ends_the_search_with_what_was_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All integers are too inexact and what is proposed instead is not proved: float is what is left."""

    def refuse(job: Any, name: str, *rest: Any) -> Any:
        raise ValidationError(f"{name}.onnx is not proved:\n  it differs")

    monkeypatch.setattr(sys.modules["fxopt.within_budget"], "prove_quantized", refuse)
    result = compiled(tmp_path, max_drop="sqnr=20")
    assert result.report.is_float and [c.name for c in result.report.candidates] == ["static"]
    assert "the next one is out: static-1.onnx is not proved: it differs" in result.report.notes[0]


def test_a_model_of_which_no_way_is_proved_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(job: Any, name: str, *rest: Any) -> Any:
        raise ValidationError(f"{name}.onnx is not proved")

    monkeypatch.setattr(sys.modules["fxopt.outcome"], "prove_quantized", refuse)
    with pytest.raises(ValidationError, match="not proved"):
        compiled(tmp_path, max_drop="sqnr=20")
    assert list(tmp_path.iterdir()) == []
