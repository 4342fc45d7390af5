"""Time fxopt's float ONNX against torch.onnx.export's: `python -m benchmarks.float_latency --suite torchvision`.

Both files run in turn in one process with one thread; the ratio is torch.onnx's median over fxopt's (above 1: fxopt's
file is faster).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo_models import suite
from fxopt.compile import resolve_target
from fxopt.export.measure import measure
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import call_of, capture
from fxopt.graph.pipeline import Pipeline
from fxopt.passes.cleanup import CLEANUP

MODELS_A_PROCESS = 10


def compare(suite_name: str, name: str, seconds: float) -> dict[str, Any]:
    """Emit one model with both tools and time the files."""
    model = next(m for m in suite(suite_name) if m.name == name)  # type: ignore[arg-type]
    module, inputs = model.build(), model.inputs(1)
    program = Pipeline(tuple(CLEANUP))(capture(module, inputs))
    args, kwargs = call_of(inputs)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "fxopt.onnx", Path(folder) / "torch.onnx"
        to_onnx(program, ours, target=resolve_target("auto"))
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, args, str(theirs), kwargs=kwargs, dynamo=True, verbose=False)
        result = measure(ours, program.flatten(*args, **kwargs), baseline=theirs, seconds=seconds)
    return {
        "name": name,
        "seconds": result.seconds,
        "torch_onnx_seconds": result.baseline_seconds,
        "ratio": result.speedup,
    }


def _row(task: tuple[str, str, float]) -> dict[str, Any]:
    """Compare one model; an error becomes the row."""
    torch.set_num_threads(1)
    try:
        return compare(*task)
    except Exception as error:
        trace = traceback.format_exc(limit=-3)
        return {"name": task[1], "error": f"{type(error).__name__}: {error}", "trace": trace}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="torchvision")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to time each pair")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = [model.name for model in suite(options.suite) if not options.only or model.name in options.only]
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=MODELS_A_PROCESS) as pool:
        for row in pool.imap(_row, [(options.suite, name, options.seconds) for name in names]):
            rows.append(row)
            print(
                f"{row['name']:<32} " + (f"{row['ratio']:.3f}x" if "ratio" in row else row["error"][:150]), flush=True
            )
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    ratios = sorted(row["ratio"] for row in rows if "ratio" in row)
    if ratios:
        middle = ratios[len(ratios) // 2]
        print(f"{len(ratios)} models: lowest {ratios[0]:.3f}, median {middle:.3f}, highest {ratios[-1]:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
