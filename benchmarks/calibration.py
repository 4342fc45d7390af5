"""Cost of calibration against the plain forward passes: `python -m benchmarks.calibration --models resnet18`.

The same Program runs over the same batches without and with observers, in turn; process CPU time, medians.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import interleaved_medians
from benchmarks.zoo_models import shim
from benchmarks.zoo_models.images import structured_images
from fxopt.graph.capture import capture
from fxopt.graph.pipeline import Pipeline
from fxopt.passes.cleanup import CLEANUP
from fxopt.passes.quantize import Calibrate, InsertObservers


def run(name: str, batches: int, batch: int, rounds: int) -> dict[str, Any]:
    """Time both ways over one architecture."""
    shim.declare_torchvision_ops()
    import torchvision

    data = [structured_images(batch, 3, 224, 224, seed=number) for number in range(batches)]
    program = Pipeline(tuple(CLEANUP))(
        capture(torchvision.models.get_model(name, weights=None).eval(), data[0], dynamic="batch")
    )
    observed = InsertObservers(target="x86")(program)

    def plain() -> None:
        with torch.no_grad():
            for item in data:
                program(item)

    calls: dict[str, Callable[[], object]] = {
        "plain": plain,
        "minmax": lambda: Calibrate(data, observer="minmax")(observed),
        "mse": lambda: Calibrate(data, observer="mse")(observed),
    }
    medians = interleaved_medians(calls, rounds)
    return {
        "name": name,
        "seconds": medians,
        "ratio": {key: medians[key] / medians["plain"] for key in ("minmax", "mse")},
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [run(name, options.batches, options.batch, options.rounds) for name in options.models]
    for row in rows:
        print(
            f"{row['name']}: "
            + ", ".join(f"{key} {value:.2f}x the forward passes" for key, value in row["ratio"].items())
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
