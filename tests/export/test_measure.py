"""Latencies: structure and order only; no time is asserted."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fxopt.errors import ValidationError
from fxopt.export.measure import measure, profile
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A small and a much larger model with the same input."""
    small, large = nn.Linear(256, 4), nn.Sequential(*[nn.Linear(256, 256) for _ in range(40)])
    for model, name in ((small, "small.onnx"), (large, "large.onnx")):
        to_onnx(capture(model, torch.randn(8, 256)), tmp_path / name)
    return tmp_path / "small.onnx", tmp_path / "large.onnx"


def test_both_models_are_timed_in_turn(files: tuple[Path, Path]) -> None:
    result = measure(files[0], [torch.randn(8, 256)], baseline=files[1], seconds=0.2)
    assert result.rounds >= 5 and result.seconds > 0 and result.baseline_seconds is not None
    assert result.speedup == pytest.approx(result.baseline_seconds / result.seconds)


def test_without_a_baseline_there_is_no_speedup(files: tuple[Path, Path]) -> None:
    assert measure(files[0], [torch.randn(8, 256)], seconds=0.05).speedup is None


def test_the_profile_has_every_node(files: tuple[Path, Path]) -> None:
    times = profile(files[1], [torch.randn(8, 256)], runs=3)
    seconds = [kernel.seconds for kernel in times]
    assert len(times) == 40 and seconds == sorted(seconds, reverse=True)
    assert {kernel.op for kernel in times} <= {"MatMul", "Gemm", "FusedMatMul", "Relu", "Add", "Tanh"}


def test_inputs_that_do_not_fit_are_named(files: tuple[Path, Path]) -> None:
    with pytest.raises(ValidationError, match=r"input.*\[8, 3\]"):
        measure(files[0], [torch.randn(8, 3)])
