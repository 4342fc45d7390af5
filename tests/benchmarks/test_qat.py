"""The benchmark of quantization-aware training: its data, its line of figures, and a run of all ways on noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks import qat
from benchmarks.qat import AugmentedImages, Row, Way, compare, summary
from benchmarks.real_models import RealModel
from benchmarks.real_models.fashion_models import FashionCnn

IMAGES, LABELS = torch.rand(40, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10


def test_batches_are_whole_and_differ_between_passes() -> None:
    data = AugmentedImages(IMAGES, LABELS, 16)
    first, second = list(data), list(data)
    assert len(data) == len(first) == 2 and first[0][0].shape == (16, 1, 28, 28)
    assert all(len(set(labels.tolist())) > 1 for _, labels in first)
    assert not torch.equal(first[0][1], second[0][1])


def test_the_summary_by_hand() -> None:
    rows = [
        Row("m", "w4a4", "PTQ, nearest", 0.80, 0.80, 1.0),
        Row("m", "w4a4", "PTQ, AdaRound", 0.90, 0.91, 1.0),
        Row("m", "w4a4", "QAT, seed 0", 0.92, 0.919, 1.0),
        Row("m", "w4a4", "QAT, seed 1", 0.94, 0.942, 1.0),
    ]
    assert summary(rows) == (
        "w4a4: PTQ 90.00, QAT 93.00 ± 1.41, 2 seeds, in onnxruntime 93.05; a seed's two at most 0.20 points apart"
    )
    assert summary(rows[:2]) == "w4a4: PTQ 90.00"


def build() -> nn.Module:
    torch.manual_seed(0)
    return FashionCnn().eval()


def accuracy(model: object) -> float:
    result = model(IMAGES)  # type: ignore[operator]
    logits: Tensor = result[0] if isinstance(result, (list, tuple)) else result
    return float((logits.argmax(1) == LABELS).double().mean())


@pytest.mark.parametrize("restore", [False, True])
def test_all_ways_on_noise(restore: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qat, "fashion_data", lambda split: (IMAGES.repeat(4, 1, 1, 1), LABELS.repeat(4)))
    monkeypatch.setattr(qat, "ITERATIONS", 2)
    model = RealModel(
        name="noise",
        build=build,
        inputs=lambda batch: (IMAGES[:batch],),
        dynamic="batch",
        calibration=lambda: [(IMAGES[:16],)],
        evaluate=accuracy,
        metric="accuracy",
        data="noise",
    )
    rows = compare(model, "w4a8", Way(1, 1e-3, restore), [0], "x86-avx2")
    assert [row.way for row in rows] == ["PTQ, nearest", "PTQ, AdaRound", "QAT, seed 0"]
    assert all(abs(row.torch - row.onnxruntime) < 0.11 for row in rows)
