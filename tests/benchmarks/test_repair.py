"""The benchmark of repair: one row for each score, with the figures of the Programs that it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import repair
from benchmarks.real_models import RealModel
from tests.passes.quantize.nets import images

X, NEW = images(32, 8), images(16, 8)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 4, 3)).eval()


def nearness(model: Callable[..., Any]) -> float:
    """Return minus the relative error of the outputs on new images."""
    with torch.no_grad():
        exact = build()(NEW)
        return -float((model(NEW) - exact).norm() / exact.norm())


MODEL = RealModel(
    name="chain",
    build=build,
    inputs=lambda batch: (X[:batch],),
    dynamic="batch",
    calibration=lambda: [(X,)],
    evaluate=nearness,
    metric="minus the relative error",
    data="random images",
)


def test_rows_hold_what_removal_costs_and_what_repair_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "calibration_of", lambda model: X)
    rows = repair.measure(MODEL, [0.6])
    assert [row["score"] for row in rows] == list(repair.SCORES)
    for row in rows:
        assert abs(row["macs"] - 0.6) <= 0.02 and row["samples"] == len(X)
        assert not any("epair" in note for note in row["notes"])
        assert math.isclose(row["dense"], 0, abs_tol=1e-5)
        assert row["removed"] < 1.5 * row["repaired"] < 0
        assert row["model"] in repair._line(row)
