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


def _child(suite_name: str, name: str, seconds: float, results: Any) -> None:
    torch.set_num_threads(1)
    try:
        results.put(compare(suite_name, name, seconds))
    except Exception as error:
        results.put(
            {"name": name, "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc(limit=-3)}
        )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="torchvision")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to time each pair")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows = []
    for model in suite(options.suite):
        if options.only and model.name not in options.only:
            continue
        results = context.Queue()
        process = context.Process(target=_child, args=(options.suite, model.name, options.seconds, results))
        process.start()
        row = results.get()
        process.join()
        rows.append(row)
        print(f"{row['name']:<32} " + (f"{row['ratio']:.3f}x" if "ratio" in row else row["error"][:150]), flush=True)
    ratios = sorted(row["ratio"] for row in rows if "ratio" in row)
    if ratios:
        middle = ratios[len(ratios) // 2]
        print(f"{len(ratios)} models: lowest {ratios[0]:.3f}, median {middle:.3f}, highest {ratios[-1]:.3f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
