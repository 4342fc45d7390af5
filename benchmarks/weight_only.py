"""Weights alone of 8 and 4 bits, on a trained decoder: `python -m benchmarks.weight_only --json out.json`.

Each recipe's file is scored in onnxruntime on texts that neither the training nor the calibration saw: KL divergence of
its next-byte distribution from the float file's (nats a byte), bits a byte, accuracy, size, and latency (one thread,
batch 1, the context in one call, in turn with the float file).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_models.language import DECODER, bits, held_out_logits
from fxopt import compile
from fxopt.onnx_callable import OnnxCallable

# The recipe, and whether the weights are fitted to calibration data.
WAYS = (("int8-weights", False), ("int4-weights", False), ("int4-weights", True), ("int8-dynamic", False))


def divergence(exact: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean KL(softmax(exact) || softmax(other)) over the last dimension, in nats."""
    left, right = exact.double().log_softmax(-1), other.double().log_softmax(-1)
    return (left.exp() * (left - right)).sum(-1).mean().item()


def run(recipe: str, fitted: bool, folder: Path) -> dict[str, Any]:
    """Compile the decoder with a recipe and score the file."""
    output = folder / "model.onnx"
    result = compile(
        DECODER.build(),
        DECODER.inputs(1),
        recipe=recipe,  # type: ignore[arg-type]
        calibration=DECODER.calibration() if fitted else None,
        evaluate=DECODER.evaluate,
        dynamic=DECODER.dynamic,
        output=output,
    )
    report = result.report
    logits = held_out_logits(OnnxCallable(output, result.program))
    exact = held_out_logits(DECODER.build())
    assert report.latency is not None and report.latency.speedup is not None
    return {
        "recipe": recipe,
        "fitted": fitted,
        "kl": divergence(exact, logits),
        "bits": bits(logits),
        "float_bits": bits(exact),
        "accuracy": report.result.metric,
        "float_accuracy": report.baseline.metric,
        "bytes": report.result.file_bytes,
        "float_bytes": report.baseline.file_bytes,
        "speedup": report.latency.speedup,
        "kernels": dict(report.census.kernels),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("| recipe | KL, nats | bits a byte (float) | accuracy (float) | share of the float file | speed |")
    print("|---|---|---|---|---|---|", flush=True)
    for recipe, fitted in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            row = run(recipe, fitted, Path(folder))
        rows.append(row)
        name = f"{recipe}, fitted" if fitted else recipe
        print(
            f"| {name} | {row['kl']:.5f} | {row['bits']:.4f} ({row['float_bits']:.4f}) | "
            f"{row['accuracy']:.4f} ({row['float_accuracy']:.4f}) | {row['bytes'] / row['float_bytes']:.3f} | "
            f"{row['speedup']:.2f}x |",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
