"""Build a model and write what every tool starts from: `python -m benchmarks.peer_tools.prepare FOLDER MODEL ...`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peer_tools.real_cases import ALL_CASES
from benchmarks.zoo_models.model import Inputs
from fxopt import compile
from fxopt.export.session import Session

# Of fxopt's float file. All peers take it; with 21, some of NNCF's files have nodes that onnxruntime refuses.
OPSET = 20
EXPORTERS = ("fxopt", "torch")


def prepare(folder: Path, name: str, calibration: int, held_out: int, exporter: str) -> None:
    """Write the float network in both forms, the inputs, and what else a tool may know of the model."""
    case = ALL_CASES[name]
    model = case.build()
    example = next(case.samples("calibration", 1))
    path = folder / "float.onnx"
    if exporter == "torch":
        torch.onnx.export(model, in_order(example), path, dynamo=True, verbose=False, external_data=False)
    else:
        compile(model, example, recipe="float", opset=OPSET, measure=False, output=path, name=name)
    torch.export.save(torch.export.export(model, in_order(example)), folder / "model.pt2")
    names = Session(folder / "float.onnx").inputs
    _save(folder / "calibration.npz", names, case.samples("calibration", calibration))
    _save(folder / "held_out.npz", names, case.samples("held-out", held_out))
    facts = {"name": name, "kind": case.kind, "classifies": case.classifies}
    facts |= {"calibration": calibration, "held_out": held_out, "exporter": exporter}
    (folder / "case.json").write_text(json.dumps(facts))


def in_order(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return inputs in the order of the arguments of `forward`, in which all cases list them."""
    return tuple(inputs.values()) if isinstance(inputs, dict) else inputs


def _save(path: Path, names: Sequence[str], items: Iterable[Inputs]) -> None:
    columns = zip(*(in_order(item) for item in items), strict=True)
    arrays: dict[str, Any] = dict(zip(names, (torch.cat(column).numpy() for column in columns), strict=True))
    np.savez(path, **arrays)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", choices=list(ALL_CASES))
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--exporter", choices=EXPORTERS, default="fxopt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare(options.folder, options.model, options.calibration, options.held_out, options.exporter)


if __name__ == "__main__":
    main()
