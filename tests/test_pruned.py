"""compile() with the recipes that remove channels; what is faster when timed is told to it, never measured."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxopt
from fxopt.choose import Candidate
from fxopt.errors import ModelError
from fxopt.export.measure import Measurement
from fxopt.export.session import Session
from fxopt.graph.program import Program
from fxopt.job import Job
from fxopt.outcome import Outcome, float_model, one_way

PRUNED, COMPILE = sys.modules["fxopt.pruned"], sys.modules["fxopt.compile"]
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
OPTIONS: dict[str, Any] = {"target": "x86", "dynamic": "batch"}


def net() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(4, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()


def dense() -> Tensor:
    with torch.no_grad():
        result: Tensor = net()(X)
    return result


def tell(monkeypatch: pytest.MonkeyPatch, speedup: float, sqnr: float = 3.0) -> list[dict[str, Path]]:
    """Let every file be so many times as fast as the dense one."""
    asked: list[dict[str, Path]] = []

    def try_candidates(files: dict[str, Path], *_: Any) -> list[Candidate]:
        asked.append(files)
        return [Candidate(name, Measurement(1 / speedup, 1.0, 5, 1, 0.0), sqnr) for name in files]

    monkeypatch.setattr(PRUNED, "try_candidates", try_candidates)
    return asked


@pytest.fixture(scope="module")
def untimed(tmp_path_factory: pytest.TempPathFactory) -> fxopt.Result:
    output = tmp_path_factory.mktemp("pruned") / "m.onnx"
    return fxopt.compile(net(), X, recipe="prune", output=output, measure=False, evaluate=logit, **OPTIONS)


def logit(model: Any) -> float:
    with torch.no_grad():
        return float(model(X).mean())


def test_half_of_the_operations_go_and_the_file_is_proved(untimed: fxopt.Result) -> None:
    report = untimed.report
    assert report.result.macs == pytest.approx(0.5 * report.baseline.macs, rel=0.02)
    assert report.result.parameters < report.baseline.parameters
    assert report.result.file_bytes < report.baseline.file_bytes
    assert untimed.validation.ok and untimed.output is not None
    (output,) = Session(untimed.output)(X)
    torch.testing.assert_close(output, untimed.program(X), rtol=1e-4, atol=1e-5)


def test_the_report_tells_what_it_cost(untimed: fxopt.Result) -> None:
    report = untimed.report
    assert not report.is_float and report.recipe == "prune"
    assert report.baseline.metric == pytest.approx(dense().mean().item(), abs=1e-5)
    assert report.result.metric == pytest.approx(logit(untimed.program), abs=1e-5)
    assert report.differences[0].sqnr < 60  # against the dense model
    assert any("50.0% asked for" in note for note in report.notes)
    assert any(entry.startswith("RemoveChannels") for entry in report.history)


def test_what_is_faster_is_handed_over_with_its_price(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, speedup=1.5)
    result = fxopt.compile(net(), X, recipe="prune", macs=0.7, **OPTIONS)
    report = result.report
    assert report.result.macs == pytest.approx(0.7 * report.baseline.macs, rel=0.02)
    assert report.latency is not None and report.latency.speedup == 1.5
    (note,) = [note for note in report.notes if note.startswith("prune is 1.50x as fast")]
    assert "3.0 dB" in note and "train what is left" in note


def test_what_is_slower_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, speedup=0.9, sqnr=40.0)
    result = fxopt.compile(net(), X, recipe="prune", **OPTIONS)
    assert result.report.is_float and result.report.result.macs == result.report.baseline.macs
    assert any("slower on this machine, so the model stays dense" in note for note in result.report.notes)
    torch.testing.assert_close(result.program(X), dense(), rtol=1e-4, atol=1e-5)


def test_calibration_brings_the_outputs_nearer(untimed: fxopt.Result) -> None:
    data = [torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2, 10)]
    result = fxopt.compile(net(), X, recipe="prune", calibration=data, measure=False, **OPTIONS)
    assert result.report.result.macs == untimed.report.result.macs
    assert result.report.differences[0].sqnr > untimed.report.differences[0].sqnr + 10
    assert any(entry.startswith("RepairWeights") for entry in result.report.history)


@pytest.mark.parametrize("faster", ["integers", "floats"])
@pytest.mark.vnni
def test_what_is_left_is_quantized(faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tell(monkeypatch, speedup=2.0)

    def best_way(job: Job, program: Program, source: Any, inputs: tuple[Tensor, ...]) -> Outcome:
        if faster == "floats":
            return replace(float_model(job, program, inputs), notes=("Tried static: the model stays float.",))
        return replace(one_way(job, "int8", program, source, inputs, False), notes=("Tried static.",))

    monkeypatch.setattr(PRUNED, "best_way", best_way)
    result = fxopt.compile(net(), X, recipe="prune-int8", calibration=[X], **OPTIONS)
    report = result.report
    assert report.result.macs == pytest.approx(0.5 * report.baseline.macs, rel=0.02)
    names = [entry.partition("(")[0] for entry in report.history]
    assert ("Quantize" in names[names.index("RemoveChannels") :]) == (faster == "integers")
    assert (report.census.integer_kernels > 0) == (faster == "integers")
    assert list(asked[0]) == ["prune-int8" if faster == "integers" else "prune"]
    assert any(note.startswith("After pruning, against the pruned float model: Tried static") for note in report.notes)
    assert not report.is_float and report.differences[0].max_error > 0  # the dense model is what it is compared with


@pytest.mark.vnni
def test_integers_without_a_clock() -> None:
    data = [torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2, 6)]
    result = fxopt.compile(net(), X, recipe="prune-int8", calibration=data, measure=False, **OPTIONS)
    assert result.report.result.macs == pytest.approx(0.5 * result.report.baseline.macs, rel=0.02)
    assert result.report.census.integer_kernels > 0 and result.report.latency is None
    names = [entry.partition("(")[0] for entry in result.report.history]
    assert names.index("RemoveChannels") < names.index("RepairWeights") < names.index("Quantize")


def test_a_latency_says_how_far_to_prune(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch, speedup=1.6)

    def measure(model: Path, *_: Any, baseline: Path | None = None, **__: Any) -> Measurement:
        weight = sum(path.stat().st_size for path in model.parent.iterdir())
        whole = weight if baseline is None else sum(path.stat().st_size for path in baseline.parent.iterdir())
        return Measurement(weight / 1e6, whole / 1e6, 5, 1, 0.0)

    monkeypatch.setattr(PRUNED, "measure", measure)
    result = fxopt.compile(net(), X, recipe="prune", max_latency=0.6, **OPTIONS)
    assert any(note.startswith("Latency: 0.5") and "was chosen" in note for note in result.report.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "prune", "macs": 1.0}, "a number between 0 and 1"),
        ({"recipe": "prune-int8", "macs": -1, "calibration": [X]}, "a number between 0 and 1"),
        ({"recipe": "float", "macs": 0.5}, "only the recipes 'prune' and 'prune-int8'"),
        ({"recipe": "prune", "macs": 0.5, "max_latency": 0.6}, "both say how far to prune"),
        ({"recipe": "prune", "max_drop": "sqnr=30"}, "'prune' takes max_latency alone"),
        ({"recipe": "prune", "max_latency": 0.6, "measure": False}, "measure=True"),
        ({"recipe": "prune-int8", "max_latency": 0.6, "calibration": [X]}, "'prune' takes max_latency alone"),
        ({"recipe": "prune-int8"}, "needs calibration data"),
    ],
)
def test_a_wrong_request_is_refused_early(options: dict[str, Any], message: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(COMPILE, "capture", lambda *_, **__: pytest.fail("it is too late to say so"))
    with pytest.raises(ModelError, match=message):
        fxopt.compile(net(), X, **options)


def test_dense_outputs_are_those_compared_with(untimed: fxopt.Result) -> None:
    """The differences of the report are between this file and the original model."""
    error = (untimed.program(X) - dense()).abs().max().item()
    assert untimed.report.differences[0].max_error == pytest.approx(error, rel=1e-3)
