"""The best of several ways to quantize: what is tried, what is out, and what the clock decides."""

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxopt
from fxopt import outcome
from fxopt.choose import Candidate, try_candidates
from fxopt.errors import ValidationError
from fxopt.export.measure import Measurement
from fxopt.graph.program import Program
from fxopt.job import Job, Proved, prove_quantized


class Tokens(nn.Module):
    """Embedded tokens through linears: what can have dynamic ranges as well as static ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.LayerNorm(64))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


@pytest.mark.parametrize(("speeds", "expected"), [((1.5, 1.6), "static"), ((1.5, 1.9), "mixed"), ((0.9, 0.8), "float")])
def test_int8_is_what_was_best_when_timed(
    speeds: tuple[float, float], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Everything but the clock is real: what is chosen has the kernels of its kind, and a proof of its own."""

    def timed(files: dict[str, Path], baseline: Path, *rest: Any) -> list[Candidate]:
        assert list(files) == ["static", "mixed"] and baseline.is_file()
        return [
            Candidate(name, Measurement(1 / speed, 1.0, 5, 1, 0.0), sqnr)
            for name, speed, sqnr in zip(files, speeds, (30.0, 25.0), strict=True)
        ]

    monkeypatch.setattr("fxopt.outcome.try_candidates", timed)
    monkeypatch.setattr("fxopt.outcome.WORTH_A_TRY", 2.0)  # nothing is: what profiles say of a busy machine varies
    x = torch.randn(4, 7, 64)
    found = fxopt.compile(Tokens(), x, calibration=[x], dynamic="batch", output=tmp_path / "m.onnx")
    kernels = found.report.census.kernels
    kind = {"static": "MatMulIntegerToFloat", "mixed": "DynamicQuantizeMatMul", "float": "MatMul"}
    assert kernels.get(kind[expected]) == 2 or (expected == "float" and found.report.census.integer_kernels == 0)
    assert found.validation.ok and found.report.is_float == (expected == "float")
    precision = {"static": "int8", "mixed": "int8 dynamic", "float": "float"}[expected]
    assert [(row.name, row.precision) for row in found.report.layers] == [
        ("linear", precision),
        ("linear_1", precision),
    ]
    assert all((row.error is None) == (expected == "float") for row in found.report.layers)
    assert all((row.reason == "") == (expected != "float") for row in found.report.layers)
    assert found.report.notes[0].startswith("Tried static ") and expected in found.report.notes[0]
    assert list(tmp_path.iterdir()) == [tmp_path / "m.onnx"]
    json.dumps(found.report.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("failing", "is_float"), [("static", False), ("mixed", False), ("static mixed dynamic", True)])
def test_a_candidate_that_is_not_proved_is_out(
    failing: str, is_float: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def prove(job: Job, name: str, *rest: Any) -> Proved:
        if name in failing.split():
            raise ValidationError(f"{name}.onnx is not proved:\n  it differs")
        return prove_quantized(job, name, *rest)

    monkeypatch.setattr("fxopt.outcome.prove_quantized", prove)
    monkeypatch.setattr("fxopt.choose.NOISE", 100.0)  # nothing is too slow
    x = torch.randn(4, 7, 64)
    found = fxopt.compile(Tokens(), x, calibration=[x], dynamic="batch", output=tmp_path / "m.onnx")
    assert found.validation.ok and found.report.is_float == is_float
    assert failing.split()[0] not in [candidate.name for candidate in found.report.candidates]
    assert f"{failing.split()[0]} is out: {failing.split()[0]}.onnx is not proved: it differs" in found.report.notes


def test_a_candidate_without_integers_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An LSTM has no static form: of its two ways one is the float model, and exact."""
    monkeypatch.setattr("fxopt.choose.NOISE", 100.0)  # nothing is too slow
    x = torch.randn(5, 1, 24)
    found = fxopt.compile(nn.LSTM(24, 96), x, calibration=[x])
    assert [candidate.name for candidate in found.report.candidates] == ["mixed"]
    assert found.report.census.kernels.get("DynamicQuantizeLSTM") == 1
    assert "static is out: it finds nothing to quantize" in found.report.notes


@pytest.mark.parametrize(("speed", "is_float"), [(2.0, False), (0.9, True)])
def test_where_what_is_fast_is_too_inexact_more_stays_float(
    speed: float, is_float: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first race finds a file that is fast and useless; the search then has clocks of its own."""

    def timed(files: dict[str, Path], *rest: Any) -> list[Candidate]:
        return [Candidate(name, Measurement(1 / 2, 1.0, 5, 1, 0.0), 3.0) for name in files]

    def timed_later(files: dict[str, Path], *rest: Any) -> list[Candidate]:
        found = try_candidates(files, *rest)
        return [replace(candidate, latency=Measurement(1 / speed, 1.0, 5, 1, 0.0)) for candidate in found]

    monkeypatch.setattr("fxopt.outcome.try_candidates", timed)
    monkeypatch.setattr("fxopt.trials.try_candidates", timed_later)
    x = torch.randn(2, 16, 8, 8)
    found = fxopt.compile(nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)), x, calibration=[x])
    first, second, *_ = found.report.notes
    assert first.startswith("Tried static 2.00x as fast as float, 3.0 dB: none is as fast as float with outputs of 10")
    assert second.startswith("Tried static (") and "max_drop=sqnr=10" in second
    assert found.validation.ok and found.report.is_float == is_float
    assert (found.report.census.integer_kernels == 0) == is_float
    assert all(row.reason for row in found.report.layers) == is_float


def test_a_model_without_anything_to_quantize_stays_float() -> None:
    x = torch.randn(2, 3, 8, 8)
    found = fxopt.compile(nn.Conv2d(3, 2, 3), x, calibration=[x], target="x86")
    assert found.report.is_float and found.report.candidates == ()
    assert [row.reason for row in found.report.layers] == ["2 output channels; the target takes 16+, in 4s"]


def test_the_float_program_is_gone_when_files_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runtimes are in memory then, each with all weights."""
    alive: list[weakref.ref[Program]] = []
    cleaned = outcome.cleaned

    def cleaned_and_watched(job: Job, program: Program) -> Program:
        result = cleaned(job, program)
        alive.append(weakref.ref(result))
        return result

    def timed(*rest: Any) -> list[Candidate]:
        gc.collect()
        raise TimeoutError(f"{sum(reference() is not None for reference in alive)} of {len(alive)}")

    monkeypatch.setattr(outcome, "cleaned", cleaned_and_watched)
    monkeypatch.setattr(outcome, "try_candidates", timed)
    x = torch.randn(2, 16, 8, 8)
    with pytest.raises(TimeoutError, match="0 of 1"):
        fxopt.compile(nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)), x, calibration=[x])


def test_the_race_of_int8_is_a_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxopt.outcome.WORTH_A_TRY", 2.0)
    x = torch.randn(2, 16, 8, 8)
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    found = fxopt.compile(model, x[:1], calibration=[x], dynamic="batch")
    (candidate,) = found.report.candidates
    assert candidate.name == "static" and candidate.sqnr > 20
    assert candidate.latency.seconds > 0 and candidate.latency.rounds >= 5
    assert found.report.is_float == (candidate.speedup * 1.03 < 1)
