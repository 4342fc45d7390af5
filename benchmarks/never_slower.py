"""Time what `compile()` chose against its float model: `python -m benchmarks.never_slower --json out.json`.

Twenty models of the zoos, as `recipe="int8"` leaves them on this machine: batch 1, one thread. The two files are timed
anew after compile() has made its choice, in turn, so that the choice and the figure do not share their noise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo_models import suite
from fxopt import compile
from fxopt.choose import NOISE
from fxopt.export.measure import measure
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import call_of, capture
from fxopt.graph.pipeline import Pipeline
from fxopt.passes.cleanup import CLEANUP
from fxopt.target import find_target

SAMPLE = {
    "torchvision": (
        *("efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf"),
        *("resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t"),
    ),
    "timm": ("edgenext_xx_small", "ghostnet_050", "mobilenetv3_small_050", "swiftformer_xs", "vit_tiny_patch16_224"),
    "transformers": ("bert", "gpt2", "wav2vec2"),
    "rnn": ("lstm-stacked", "gru-batch-first"),
}


def run(suite_name: str, name: str, seconds: float) -> dict[str, Any]:
    """Compile one model and time the result."""
    torch.set_num_threads(1)
    model = next(m for m in suite(suite_name) if m.name == name)  # type: ignore[arg-type]
    module, example = model.build(), model.inputs(1)
    with tempfile.TemporaryDirectory() as folder:
        chosen, baseline = Path(folder) / "chosen.onnx", Path(folder) / "float.onnx"
        calibration = [model.inputs(4), model.other_inputs(4)]
        result = compile(module, example, calibration=calibration, dynamic=model.dynamic, output=chosen)
        target = find_target(result.report.target)
        program = Pipeline(tuple(CLEANUP))(capture(module, example, dynamic=model.dynamic))
        to_onnx(program, baseline, target=target)
        args, kwargs = call_of(example)
        inputs = program.flatten(*args, **kwargs)
        timing = measure(chosen, inputs, baseline=baseline, seconds=seconds, settings=target.session)
    tried = {candidate.name: candidate.speedup for candidate in result.report.candidates}
    return {
        "name": name,
        "suite": suite_name,
        "is_float": result.report.is_float,
        "tried": tried,
        "speedup": timing.speedup,
        "seconds": timing.seconds,
        "rounds": timing.rounds,
        "sqnr": min((error.sqnr for error in result.report.differences), default=None),
    }


def _row(task: tuple[str, str, float]) -> dict[str, Any]:
    """Run one model; an error becomes the row."""
    try:
        return run(*task)
    except Exception as error:
        return {"name": task[1], "suite": task[0], "error": f"{type(error).__name__}: {error}"}


def _text(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {row['name']} | {row['error'][:200]} | | | |"
    tried = ", ".join(f"{name} {speedup:.2f}x" for name, speedup in row["tried"].items())
    kind = "float" if row["is_float"] else "int8"
    sqnr = "" if row["is_float"] else f"{row['sqnr']:.1f}"
    return f"| {row['name']} | {tried or 'none'} | {kind} | {row['speedup']:.2f} | {sqnr} |"


def main() -> int:
    """Run the command line; the exit status is 1 if a model is slower than its float model, or fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=4.0, help="how long to time each pair")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = [(key, name) for key, names in SAMPLE.items() for name in names]
    unknown = set(options.only) - {name for _, name in names}
    if unknown:
        parser.error(f"--only: not in the sample: {', '.join(sorted(unknown))}")
    tasks = [(key, name, options.seconds) for key, name in names if not options.only or name in options.only]
    rows = []
    print(
        "| model | tried, times as fast as float | result | timed again | SQNR, dB |\n|---|---|---|---|---|", flush=True
    )
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(_row, tasks):
            rows.append(row)
            print(_text(row), flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    slower = [row["name"] for row in rows if row.get("speedup", 0.0) * NOISE < 1]
    print(
        f"{len(rows)} models, slower than float by more than {NOISE - 1:.0%} or failed: {', '.join(slower) or 'none'}"
    )
    return bool(slower)


if __name__ == "__main__":
    sys.exit(main())
