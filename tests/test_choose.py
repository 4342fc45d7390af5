"""The choice among candidates, by hand-made times and errors, and the error of real files by hand-computed values."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fxopt.choose import Candidate, choose, explain, fast_but_inexact, try_candidates
from fxopt.export.measure import Measurement
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture


def candidate(name: str, speedup: float, sqnr: float) -> Candidate:
    return Candidate(name, Measurement(1.0, speedup, 9, 1, 0.0), sqnr)


CASES = {
    "the only one, faster": ([("static", 2.0, 20.0)], "static"),
    "the only one, slower": ([("static", 0.9, 20.0)], None),
    "as fast as float but for noise: smaller wins": ([("static", 0.98, 20.0)], "static"),
    "faster, but too inexact": ([("static", 2.0, 9.9)], None),
    "the fastest is too inexact": ([("static", 2.0, 0.4), ("dynamic", 1.1, 40.0)], "dynamic"),
    "much faster beats more exact": ([("static", 2.0, 15.0), ("mixed", 1.5, 30.0)], "static"),
    "about as fast and more exact": ([("static", 2.13, 14.7), ("mixed", 2.10, 16.4)], "mixed"),
    "slower than float does not count, however exact": ([("static", 1.2, 12.0), ("mixed", 0.8, 50.0)], "static"),
    "about as fast and no more exact than a few samples can tell": (
        [("static", 1.57, 37.5), ("mixed", 1.44, 38.4)],
        "static",
    ),
    "about as fast and about the most exact": (
        [("static", 1.6, 20.0), ("timed", 1.58, 29.5), ("mixed", 1.5, 30.0)],
        "timed",
    ),
    "equally exact: the faster": ([("static", 1.50, 20.0), ("mixed", 1.55, 20.0)], "mixed"),
}


@pytest.mark.parametrize("case", CASES)
def test_choose(case: str) -> None:
    rows, expected = CASES[case]
    chosen = choose([candidate(*row) for row in rows])
    assert (chosen.name if chosen else None) == expected


def test_the_explanation_names_what_was_tried() -> None:
    static, mixed = candidate("static", 2.13, 14.7), candidate("mixed", 2.10, 16.4)
    assert explain([], None) == []
    (line,) = explain([static, mixed], mixed)
    assert line == (
        "Tried static 2.13x as fast as float, 14.7 dB; mixed 2.10x as fast as float, 16.4 dB: "
        "mixed is about as fast and about as exact as any."
    )
    usable, noise = candidate("dynamic", 1.1, 40.0), candidate("static", 2.0, 0.4)
    (line,) = explain([noise, usable], usable)
    assert line.endswith("40.0 dB: dynamic is not slower than float; static is too inexact.")
    (line,) = explain([candidate("static", 0.5, 9.0)], None)
    assert line.endswith("none is as fast as float on this machine, so the model stays float.")
    (line,) = explain([candidate("static", 1.05, 9.0), candidate("mixed", 0.9, 30.0)], None)
    assert line.endswith("none is as fast as float with outputs of 10 dB or more, so the model stays float.")
    (line,) = explain([candidate("static", 1.5, 9.0), candidate("mixed", 0.9, 30.0)], None)
    assert line.endswith("none is as fast as float with outputs of 10 dB or more, so a more exact one is searched.")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([(1.5, 9.0)], True), ([(1.05, 9.0)], False), ([(0.9, 30.0), (1.3, -math.inf)], True), ([(0.9, 30.0)], False)],
)
def test_what_is_fast_but_inexact_is_worth_a_search(rows: list[tuple[float, float]], expected: bool) -> None:
    assert fast_but_inexact([candidate("static", *row) for row in rows]) == expected


def test_the_error_is_that_of_the_worst_output_over_all_samples(tmp_path: Path) -> None:
    """A second output of a twentieth more has an error power of 1/400: 26 dB."""

    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * 3, x * self.factor

    x = torch.randn(2, 5)
    for name, factor in (("float", 1.0), ("other", 1.05), ("near", 1.005)):
        to_onnx(capture(Scaled(factor), x, dynamic="batch"), tmp_path / name)
    samples = [(torch.randn(3, 5),), (torch.randn(1, 5),)]
    files = {name: tmp_path / name for name in ("other", "near")}
    found, near = try_candidates(files, tmp_path / "float", (x,), samples, {})
    assert (found.name, near.name) == ("other", "near")
    assert found.sqnr == pytest.approx(26.02, abs=0.01) and near.sqnr == pytest.approx(46.02, abs=0.01)
    assert found.latency.rounds >= 5 and found.latency.baseline_seconds is not None


def test_the_middle_one_of_three_loads_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 5)
    to_onnx(capture(nn.Tanh(), x), tmp_path / "m.onnx")
    speedups = iter((0.8, 1.3, 1.0, 3.0, 2.0, 2.5))

    def race(sessions: list[object], inputs: object, seconds: float) -> list[Measurement]:
        assert len(sessions) == 2
        return [Measurement(1.0, None, 5, 1, 0.0), Measurement(1.0, next(speedups), 5, 1, 0.0)]

    monkeypatch.setattr("fxopt.choose.race", race)
    files = dict.fromkeys(("first", "second"), tmp_path / "m.onnx")
    found = try_candidates(files, tmp_path / "m.onnx", (x,), [(x,)], {})
    assert [each.speedup for each in found] == [1.0, 2.5]
