"""The demo end to end, judged by figures that are computed here."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from fxopt.demo import TEST_CORRECT, demo_data, demo_model
from fxopt.demo.run import run_demo, top1_accuracy
from fxopt.errors import ExportError


def test_accuracy_is_the_share_of_right_answers() -> None:
    images, labels = demo_data("test")
    assert top1_accuracy(demo_model()) == pytest.approx(TEST_CORRECT / len(labels))
    always_three = torch.nn.functional.one_hot(torch.tensor([3]), 10).float()
    share = (labels == 3).double().mean().item()
    assert top1_accuracy(lambda batch: always_three.expand(len(batch), 10)) == pytest.approx(share)
    assert 0.05 < share < 0.2
    assert len(images) == len(labels)


def test_the_int8_file_reads_digits_as_well_as_the_float_model(tmp_path: Path) -> None:
    stages: list[tuple[str, int, int | None]] = []
    result = run_demo(tmp_path / "out" / "demo", lambda stage, done=0, total=None: stages.append((stage, done, total)))
    folder = tmp_path / "out" / "demo"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "report.html", "report.json"]
    report = json.loads((folder / "report.json").read_text("utf-8"))

    images, labels = demo_data("test")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    accuracy = float((torch.from_numpy(logits).argmax(-1) == labels).double().mean())
    assert accuracy == pytest.approx(report["result"]["metric"])
    assert accuracy >= TEST_CORRECT / len(labels) - 0.005
    assert report["baseline"]["metric"] == pytest.approx(TEST_CORRECT / len(labels), abs=0.002)

    assert report["result"]["file_bytes"] == (folder / "model.onnx").stat().st_size
    assert report["result"]["file_bytes"] < 0.4 * report["baseline"]["file_bytes"]
    assert report["census"]["integer_kernels"] >= 8
    assert report["census"]["weight_dequantize"] == 0
    assert report["result"]["macs"] == pytest.approx(49e6, rel=0.05)
    assert result.validation.ok
    assert {"capture", "quantize", "validate", "measure", "evaluate"} <= {stage for stage, _, _ in stages}
    assert {("quantize", item, 4) for item in (1, 2, 3, 4)} <= set(stages)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="Cannot make the folder"):
        run_demo(tmp_path / "file")
