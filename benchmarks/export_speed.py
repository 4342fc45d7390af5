"""Time fxopt against torch.onnx.export(dynamo=True) in one process, in turn: `python -m benchmarks.export_speed`.

Two ratios a model: emission alone from the same ExportedProgram, and capture + cleanup + emission from the module.
Both write the file. CPU time of the process, medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from benchmarks.timing import interleaved_medians
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from fxopt.graph.pipeline import Pipeline
from fxopt.passes.cleanup import CLEANUP


def resnet50() -> tuple[torch.nn.Module, dict[str, Any], dict[str, dict[int, str]]]:
    """Build resnet50 at 224 pixels."""
    from benchmarks.zoo_models import shim

    shim.declare_torchvision_ops()
    import torchvision

    return torchvision.models.resnet50().eval(), {"x": torch.randn(2, 3, 224, 224)}, {"x": {0: "batch"}}


def bert() -> tuple[torch.nn.Module, dict[str, Any], dict[str, dict[int, str]]]:
    """Build a BERT of 6 layers, with the sizes of MiniLM."""
    from benchmarks.zoo_models import shim

    shim.declare_torchvision_ops()
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    inputs = {"input_ids": torch.ones(2, 32, dtype=torch.int64), "attention_mask": torch.ones(2, 32, dtype=torch.int64)}
    dims = {0: "batch", 1: "sequence"}
    model: torch.nn.Module = BertModel(config)
    model.eval()
    return model, inputs, {"input_ids": dims, "attention_mask": dims}


MODELS = {"resnet50": resnet50, "bert-6l": bert}


def compare(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Time both tools on one model, in turn."""
    model, inputs, dynamic = MODELS[name]()
    # torch.onnx.export wants the bound that BERT's position table sets
    dims = {label: Dim(label, max=512) for names in dynamic.values() for label in names.values()}
    shapes = {key: {dim: dims[label] for dim, label in names.items()} for key, names in dynamic.items()}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
    program = capture(exported)
    path = folder / "model.onnx"

    def whole() -> None:
        to_onnx(Pipeline(tuple(CLEANUP))(capture(model, inputs, dynamic=dynamic)), path)

    calls = {
        "fxopt emission": lambda: to_onnx(program, path),
        "torch.onnx emission": lambda: torch.onnx.export(exported, dynamo=True, verbose=False).save(str(path)),  # type: ignore[union-attr]
        "fxopt whole": whole,
        "torch.onnx whole": lambda: torch.onnx.export(
            model, (), str(path), kwargs=inputs, dynamic_shapes=shapes, dynamo=True, verbose=False
        ),
    }
    medians = interleaved_medians(calls, rounds)
    return {
        "model": name,
        "seconds": {key: round(value, 4) for key, value in medians.items()},
        "emission_ratio": medians["torch.onnx emission"] / medians["fxopt emission"],
        "whole_ratio": medians["torch.onnx whole"] / medians["fxopt whole"],
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(name, options.rounds, Path(folder)) for name in options.models]
    for row in rows:
        print(
            f"{row['model']}: emission {row['emission_ratio']:.1f}x, whole {row['whole_ratio']:.1f}x faster; "
            f"seconds {row['seconds']}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
