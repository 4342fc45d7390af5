"""Peak memory of compile() against the model's size: `python -m benchmarks.memory --models resnet50 vgg16 vit_b_16`.

Each torchvision model runs in a process of its own. The peak is the resident set over what the process had before it
built the model; the bound is 3 times the float weights plus the activations of one batch (the growth of the resident
set in one eager forward pass over one calibration batch).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo_models import shim
from benchmarks.zoo_models.images import structured_images
from fxopt import compile

MEGABYTE = 1e6


def resident() -> float:
    """Return the bytes in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * float(resource.getpagesize())


def peak() -> float:
    """Return the highest number of bytes that were ever in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def run(name: str, recipe: str, batch: int, measure: bool, results: Any) -> None:
    """Compile one model and report the memory it took."""
    shim.declare_torchvision_ops()
    import torchvision

    torch.set_num_threads(1)
    warm = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8)).eval()
    small = structured_images(1, 3, 8, 8, seed=0)
    compile(warm, small, recipe=recipe, calibration=[small], measure=False)  # type: ignore[arg-type]  # imports everything
    before = resident()
    model = torchvision.models.get_model(name, weights=None).eval()
    weights = float(sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers())))
    images = structured_images(batch, 3, 224, 224, seed=1)
    loaded = resident()
    with torch.no_grad():
        model(images)
    activations = peak() - loaded
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model.onnx"
        compile(model, images[:1], recipe=recipe, calibration=[images], dynamic="batch", output=output, measure=measure)  # type: ignore[arg-type]
    results.put(
        {"name": name, "recipe": recipe, "weights": weights, "activations": activations, "peak": peak() - before}
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["resnet50", "vgg16", "vit_b_16"])
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--no-measure", action="store_true", help="skip the interleaved timing, which holds both models at once"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows = []
    for name in options.models:
        results = context.Queue()
        process = context.Process(
            target=run, args=(name, options.recipe, options.batch, not options.no_measure, results)
        )
        process.start()
        row = results.get()
        process.join()
        row["bound"] = 3 * row["weights"] + row["activations"]
        rows.append(row)
        print(
            f"{name} {row['recipe']}: weights {row['weights'] / MEGABYTE:.0f} MB, "
            f"activations {row['activations'] / MEGABYTE:.0f} MB, "
            f"peak {row['peak'] / MEGABYTE:.0f} MB = {row['peak'] / row['bound']:.2f} of the bound",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0 if all(row["peak"] <= row["bound"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
