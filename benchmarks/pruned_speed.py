"""Time pruned models in onnxruntime: `python -m benchmarks.pruned_speed --models resnet18 resnet50 --json out.json`.

Each architecture loses channels (--macs: the share of operations to leave), with no argument of its own. The dense
file, the pruned one, int8 of the dense one and int8 of the pruned one run in turn in one process, batch 1, one thread.
The table says what was asked for and what was met, and whether the gains of pruning and of int8 multiply: `product` is
the speedup of both over the product of the two alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.zoo_models.images import structured_images
from benchmarks.zoo_models.preparation import calibrate_batch_norm
from benchmarks.zoo_models.shim import declare_torchvision_ops
from fxopt.choose import NOISE
from fxopt.compile import compile, resolve_target
from fxopt.export.measure import race
from fxopt.export.session import Session
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import call_of, capture
from fxopt.graph.cost import macs, parameter_count
from fxopt.graph.memory import release_memory
from fxopt.graph.pipeline import Pipeline
from fxopt.passes.cleanup import CLEANUP
from fxopt.passes.prune import RemoveChannels

TIMM = ("vit_tiny_patch16_224", "deit_tiny_patch16_224")
BERT = "bert-6l"
MODELS = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x1_0"),
    *("densenet121", "regnet_y_400mf", "convnext_tiny", TIMM[0], BERT),
)
MULTIPLY = 0.15  # how far the speedup of both may be from the product of the two
CALIBRATION = 8  # batches of one


@dataclass(frozen=True)
class Row:
    """What came of one architecture: shares left, and times as fast as the dense file.

    - `macs`, `parameters`: shares left; `asked`: the share of operations asked for.
    - `product`: the speedup of pruning and int8 together over the product of both alone.
    """

    name: str
    asked: float
    macs: float
    parameters: float
    dense_seconds: float
    pruned: float
    int8: float | None = None
    pruned_int8: float | None = None
    int8_is_float: bool = False
    rounds: int = 0
    notes: tuple[str, ...] = ()

    @property
    def product(self) -> float | None:
        """How well the gains multiply; None where int8 was not tried."""
        return self.pruned_int8 / (self.pruned * self.int8) if self.int8 and self.pruned_int8 else None


def build(name: str) -> tuple[nn.Module, Any, list[Any]]:
    """Return a model with random weights in eval mode, example inputs and calibration data."""
    torch.manual_seed(0)
    if name == BERT:
        return _bert()
    declare_torchvision_ops()
    if name in TIMM:
        import timm

        model = timm.create_model(name, pretrained=False)
    else:
        import torchvision

        model = torchvision.models.get_model(name, weights=None)
    images = [structured_images(1, 3, 224, 224, seed=seed) for seed in range(CALIBRATION + 1)]
    some = structured_images(8, 3, 224, 224, seed=100)
    calibrate_batch_norm(model, (some[:4],), (some[4:],))
    return model.eval(), images[0], images[1:]


def _bert() -> tuple[nn.Module, Any, list[Any]]:
    declare_torchvision_ops()
    import transformers

    config = transformers.BertConfig(num_hidden_layers=6)
    tokens = torch.randint(0, config.vocab_size, (CALIBRATION + 1, 128), generator=torch.Generator().manual_seed(0))
    items = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in tokens]
    model: Any = transformers.BertModel(config)
    return model.eval(), items[0], items[1:]


def run(name: str, share: float, seconds: float, integers: bool) -> Row:
    """Prune one architecture, and quantize it with and without its channels; time all files in turn."""
    torch.set_num_threads(1)
    model, example, data = build(name)
    target = resolve_target("auto")
    dense = Pipeline(tuple(CLEANUP))(capture(model, example))
    args, kwargs = call_of(example)
    inputs = dense.flatten(*args, **kwargs)
    small = RemoveChannels(macs=share, round_to=target.width_multiple, inputs=inputs)(dense)
    found = {"macs": macs(small) / macs(dense), "parameters": parameter_count(small) / parameter_count(dense)}
    with tempfile.TemporaryDirectory() as folder:
        paths = {key: Path(folder) / f"{key}.onnx" for key in ("dense", "pruned", "int8", "pruned_int8")}
        to_onnx(dense, paths["dense"], target=target)
        to_onnx(small, paths["pruned"], target=target)
        is_float = False
        for key, program in (("int8", dense), ("pruned_int8", small)) if integers else ():
            result = compile(program, example, calibration=data, target=target, output=paths[key])
            is_float |= result.report.is_float
        notes = small.notes
        del model, dense, small
        release_memory()
        files = [paths[key] for key in (paths if integers else ("dense", "pruned"))]
        times = race([Session(path, settings=target.session) for path in files], inputs, seconds)
    speedups = [time.speedup or 1.0 for time in times[1:]]
    gains = dict(zip(("pruned", "int8", "pruned_int8"), speedups, strict=False))
    return Row(
        name, share, **found, dense_seconds=times[0].seconds, **gains,
        int8_is_float=is_float, rounds=times[0].rounds, notes=notes,
    )  # fmt: skip


def _row(task: tuple[str, float, float, bool]) -> Row | tuple[str, str]:
    """Run one architecture; an error becomes its name and the message."""
    try:
        return run(*task)
    except Exception as error:
        return task[0], f"{type(error).__name__}: {error}"


def text(row: Row | tuple[str, str]) -> str:
    """Write one row of the table."""
    if isinstance(row, tuple):
        return f"| {row[0]} | {row[1][:300]} | | | | | | | |"
    shares = f"{row.asked:.1%} | {row.macs:.1%} | {row.parameters:.1%} | {1e3 * row.dense_seconds:.2f} ms"
    speedups = " | ".join("" if value is None else f"{value:.2f}x" for value in (row.pruned, row.int8, row.pruned_int8))
    product = "" if row.product is None else f"{row.product:.2f}{' (int8 left float)' if row.int8_is_float else ''}"
    return f"| {row.name} | {shares} | {speedups} | {product} |"


def failures(row: Row | tuple[str, str]) -> list[str]:
    """Say what of the aims a row misses."""
    if isinstance(row, tuple):
        return [f"{row[0]} failed"]
    found = []
    if row.pruned * NOISE < 1:
        found.append(f"{row.name} is slower than dense")
    if abs(row.macs / row.asked - 1) > 0.02:
        found.append(f"{row.name} has {row.macs:.1%} of its operations left")
    if row.product is not None and not row.int8_is_float and abs(row.product - 1) > MULTIPLY:
        found.append(f"the gains of {row.name} do not multiply")
    return found


def main() -> int:
    """Run the command line; the exit status is 1 if a model is slower than dense, misses its share, or fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--macs", type=float, default=0.5, help="the share of the operations to leave")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to time each architecture")
    parser.add_argument("--no-int8", action="store_true", help="prune only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row | tuple[str, str]] = []
    print("| model | asked | MACs | parameters | dense | pruned | int8 | pruned int8 | product |", flush=True)
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    tasks = [(name, options.macs, options.seconds, not options.no_int8) for name in options.models]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(_row, tasks):
            rows.append(row)
            print(text(row), flush=True)
            if options.json:
                options.json.write_text(json.dumps([_plain(row) for row in rows], indent=1))
    missed = [failure for row in rows for failure in failures(row)]
    print(f"{len(rows)} models; missed: {'; '.join(missed) or 'nothing'}")
    return bool(missed)


def _plain(row: Row | tuple[str, str]) -> dict[str, Any]:
    return {"name": row[0], "error": row[1]} if isinstance(row, tuple) else {**asdict(row), "product": row.product}


if __name__ == "__main__":
    sys.exit(main())
