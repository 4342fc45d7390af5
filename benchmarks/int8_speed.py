"""Time int8 against float ONNX in onnxruntime: `python -m benchmarks.int8_speed --models resnet18 resnet50`.

torchvision architectures at 224 pixels, batch 1, interleaved in one process; calibrated on structured images. With
`--against x86`, the same integers as emitted for another target are timed in place of the float model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo_models import shim
from benchmarks.zoo_models.images import structured_images
from benchmarks.zoo_models.preparation import calibrate_batch_norm
from fxopt import compile
from fxopt.export.measure import measure
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from fxopt.graph.pipeline import Pipeline
from fxopt.passes.cleanup import CLEANUP


def run(
    name: str, target: str, against: str | None, threads: list[int], seconds: float, folder: Path
) -> dict[str, Any]:
    """Compile one architecture and time it against its own float file, or its integer file for another target."""
    shim.declare_torchvision_ops()
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    images = structured_images(12, 3, 224, 224, seed=1)
    calibrate_batch_norm(model, (images[:8],), (images[8:],)).eval()
    example = structured_images(1, 3, 224, 224, seed=2)
    result = compile(
        model,
        example,
        calibration=[structured_images(1, 3, 224, 224, seed=number) for number in range(3, 19)],
        target=target,
        output=folder / "int8.onnx",
        measure=False,
    )
    if against is not None:
        to_onnx(result.program, folder / "baseline.onnx", target=against)
    else:
        to_onnx(Pipeline(tuple(CLEANUP))(capture(model, example)), folder / "baseline.onnx", target=target)
    timings = {}
    for count in threads:
        timing = measure(
            folder / "int8.onnx", [example], baseline=folder / "baseline.onnx", threads=count, seconds=seconds
        )
        timings[count] = {
            "int8": timing.seconds,
            against or "float": timing.baseline_seconds,
            "speedup": timing.speedup,
            "rounds": timing.rounds,
        }
    return {
        "name": name,
        "target": target,
        "timings": timings,
        "sqnr": min(error.sqnr for error in result.report.differences),
        "kernels": dict(result.report.census.kernels),
        "float_reasons": dict(result.report.float_reasons),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["resnet18"])
    parser.add_argument("--target", default="x86")
    parser.add_argument("--against", metavar="TARGET", help="compare with the integers for this target, not with float")
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    other = options.against or "float"
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            row = run(name, options.target, options.against, options.threads, options.seconds, Path(folder))
            rows.append(row)
            for count, timing in row["timings"].items():
                print(
                    f"{name}: {count} thread(s): int8 {timing['int8'] * 1e3:.2f} ms, "
                    f"{other} {timing[other] * 1e3:.2f} ms, "
                    f"{timing['speedup']:.2f}x over {timing['rounds']} rounds; SQNR {row['sqnr']:.1f} dB",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
