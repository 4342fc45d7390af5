"""Compile models with trained weights and score them on real data: `python -m benchmarks.real --json out.json`.

Each model is compiled to int8 with fxopt.compile(); its task metric is taken in onnxruntime on the float and on the
int8 file, next to size, latency (interleaved, one thread) and the SQNR of the outputs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_models import RealModel, real_models
from fxopt import FxoptError, compile


def run(model: RealModel, recipe: str, target: str, folder: Path) -> dict[str, Any]:
    """Compile one model and return the figures of its report."""
    result = compile(
        model.build(),
        model.inputs(2),
        recipe=recipe,  # type: ignore[arg-type]
        calibration=model.calibration() if recipe != "float" else None,
        evaluate=model.evaluate,
        dynamic=model.dynamic,
        target=target,
        output=folder / f"{model.name}.onnx",
        name=model.name,
    )
    report = result.report
    return {
        "name": model.name,
        "metric": model.metric,
        "data": model.data,
        "float": report.baseline.metric,
        "result": report.result.metric,
        "float_bytes": report.baseline.file_bytes,
        "result_bytes": report.result.file_bytes,
        "speedup": (report.latency.speedup if report.latency else None) or 1.0,  # None: the result is the float file
        "sqnr": min(error.sqnr for error in report.differences),
        "agreement": min(error.agreement for error in report.differences),
        "proof_sqnr": min(error.sqnr for error in report.proof),
        "kernels": dict(report.census.kernels),
        "float_reasons": dict(report.float_reasons),
        "seconds": dict(report.seconds),
        "notes": list(report.notes),
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--target", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in real_models():
            if options.only and model.name not in options.only:
                continue
            try:
                row = run(model, options.recipe, options.target, Path(folder))
            except FxoptError as error:
                row = {"name": model.name, "error": str(error)}
            rows.append(row)
            print(_line(row), flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    return 1 if any("error" in row for row in rows) else 0


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:<20} {row['error']}"
    return (
        f"{row['name']:<20} {row['metric']}: float {row['float']:.4f} int8 {row['result']:.4f}  "
        f"size /{row['float_bytes'] / row['result_bytes']:.2f}  speed x{row['speedup']:.2f}  SQNR {row['sqnr']:.1f} dB"
    )


if __name__ == "__main__":
    sys.exit(main())
