"""The demo: the embedded classifier of handwritten digits, compiled to int8 and judged on its test images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from fxopt.compile import Result
from fxopt.compile import compile as compile_model
from fxopt.demo import demo_data, demo_model
from fxopt.errors import ExportError
from fxopt.html import write_html
from fxopt.job import Progress
from fxopt.options import write_text

BATCH = 50


def run_demo(folder: Path, progress: Progress | None = None, *, recipe: Any = "int8", measure: bool = True) -> Result:
    """Compile the demo's model and write model.onnx, report.html and report.json into a folder, made if need be.

    The metric in the report is top-1 accuracy on the test images, of which calibration sees none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"Cannot make the folder {folder}: {error.strerror}. Choose another.") from error
    images, _ = demo_data("calibration")
    result = compile_model(
        demo_model(),
        images[:1],
        recipe=recipe,
        calibration=[images[start : start + BATCH] for start in range(0, len(images), BATCH)],
        evaluate=top1_accuracy,
        dynamic="batch",
        output=folder / "model.onnx",
        name="DigitsNet, the demo's classifier of handwritten digits",
        measure=measure,
        progress=progress,
    )
    write_html(result.report, folder / "report.html")
    write_text(folder / "report.json", json.dumps(result.report.to_dict(), indent=2) + "\n")
    return result


def labelled_batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the test images and labels in batches."""
    images, labels = demo_data("test")
    yield from ((images[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, len(images), BATCH))


def top1_accuracy(model: Callable[..., Tensor]) -> float:
    """Return the share of test images whose digit a model gets right."""
    correct = [(model(images).argmax(-1) == labels).sum().item() for images, labels in labelled_batches()]
    total = sum(len(labels) for _, labels in labelled_batches())
    return sum(correct) / total
