"""What removal costs trained models, and what repair without training gives back: `python -m benchmarks.repair`.

    python -m benchmarks.repair --models fashion_cnn fashion_vit efficientnet_lite0_views --macs 0.7 0.5 --json out.json

Channels go by the L2 norm of their weights, by activations times weights and by Taylor's score without labels; each
result is then repaired with RepairWeights. No label is read. Metrics are those of the Programs in torch, on the models'
own labelled data; seconds are CPU time of the process on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.real_models import RealModel
from benchmarks.real_models.efficientnet import CALIBRATION_PHOTOS, CENTRE, EFFICIENTNET_VIEWS, read_photo
from benchmarks.real_models.fashion import FASHION, fashion_data
from benchmarks.real_models.model import batches
from benchmarks.real_models.packages import package_folder
from fxopt import FxoptError, Pipeline, Program, capture
from fxopt.graph.cost import macs
from fxopt.passes import CLEANUP, ActivationTimesWeight, RemoveChannels, RepairWeights, Taylor

SAMPLES, BATCH = 512, 32
PLACES = (CENTRE, (1.0, 1.0))
MODELS = {model.name: model for model in (*FASHION, EFFICIENTNET_VIEWS)}


def photo_views() -> Tensor:
    """Return four views of each calibration photo, the centre and a corner, each also mirrored: [64, 3, 224, 224]."""
    folder = package_folder("skimage") / "data"
    views = torch.stack([read_photo(folder / name, place) for name in CALIBRATION_PHOTOS for place in PLACES])
    return torch.stack([views, views.flip(-1)], 1).flatten(0, 1)


def calibration_of(model: RealModel) -> Tensor:
    """Return the samples that a model is repaired on; no labels, and none of those that it is scored on."""
    return photo_views() if model is EFFICIENTNET_VIEWS else fashion_data("train")[0][:SAMPLES]


SCORES: dict[str, Callable[[list[Tensor]], Any]] = {
    "l2": lambda data: "l2",
    "activation x weight": lambda data: ActivationTimesWeight(data),
    "Taylor": lambda data: Taylor(data),
}


def measure(model: RealModel, shares: list[float]) -> list[dict[str, Any]]:
    """Return one row for each share of operations and each score."""
    program = Pipeline(CLEANUP)(capture(model.build(), model.inputs(2), dynamic=model.dynamic))
    samples = calibration_of(model)
    data = list(batches(samples, min(BATCH, len(samples) // 4)))  # RepairWeights judges itself on every fourth item
    dense = model.evaluate(program.eval())
    return [
        {"model": model.name, "data": model.data, "asked": share, "score": name, "dense": dense}
        | _row(model, program, data, RemoveChannels(macs=share, score=score(data)))
        for share in shares
        for name, score in SCORES.items()
    ]


def _row(model: RealModel, program: Program, data: list[Tensor], removal: RemoveChannels) -> dict[str, Any]:
    small = removal(program)
    start = time.process_time()
    repaired = RepairWeights(program, data)(small)
    seconds = time.process_time() - start
    return {
        "macs": macs(small) / macs(program),
        "removed": model.evaluate(small.eval()),
        "repaired": model.evaluate(repaired.eval()),
        "seconds": seconds,
        "samples": sum(map(len, data)),
        "notes": list(repaired.notes),
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--macs", nargs="*", type=float, default=[0.7, 0.5])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    failed = False
    for name in options.models:
        try:
            found = measure(MODELS[name], options.macs)
        except FxoptError as error:
            print(f"{name}: {error}")
            failed = True
            continue
        rows += found
        print(*map(_line, found), sep="\n", flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    return int(failed)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:<25} macs {row['macs']:.3f}  by {row['score']:<20} dense {row['dense']:.4f}  "
        f"removed {row['removed']:.4f}  repaired {row['repaired']:.4f}  in {row['seconds']:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
