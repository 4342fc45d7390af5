"""How near the runtimes' outputs are to onnxruntime's on the same file, and to the float model's; as data and text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from benchmarks.runtime_tools.run import REFERENCE, Ran
from fxopt.export.compare import compare_output

HEAD = ("file", "runtime", "setting", "loads", "=ort", "SQNR", "centred", "=float", "SQNR", "centred", "integer", "ms")
ERROR_SHOWN = 120


def score(name: str, expected: Tensor, runs: Sequence[Ran], classifies: bool) -> dict[str, Any]:
    """Return {"model", "samples", "classes", "rows": one a run}.

    A row tells of the first output how near it is to onnxruntime's of the same file ("to_onnxruntime") and to the
    eager float model's ("to_float"): `sqnr` in dB; `centred`, the same without each output's mean over the samples of
    the float model; and `agreement`, the share of samples with the same largest centred output. Random weights give
    nearly all samples the same class before the mean is taken away. "classes": how many there are in the float model.
    """
    middle = expected.mean(0)
    references = {run.file: run.outputs for run in runs if run.runtime == REFERENCE}
    rows = []
    for run in runs:
        row = {"file": run.file, "runtime": run.runtime.name, "setting": run.runtime.setting, **run.facts}
        if run.outputs is not None:
            for other, reference in (("onnxruntime", references.get(run.file)), ("float", expected)):
                if reference is not None:
                    row[f"to_{other}"] = _distance(reference, run.outputs, middle, classifies)
        rows.append(row)
    classes = len(set((expected - middle).argmax(-1).flatten().tolist())) if classifies else None
    return {"model": name, "samples": len(expected), "classes": classes, "rows": rows}


def _distance(reference: Tensor, outputs: Tensor, middle: Tensor, classifies: bool) -> dict[str, float | None]:
    error = compare_output("output", reference, outputs)
    centred = error if error.sqnr == -math.inf else compare_output("output", reference - middle, outputs - middle)
    agreement = centred.agreement if classifies else None
    return {"agreement": agreement, "sqnr": error.sqnr, "centred": centred.sqnr}


def table(result: Mapping[str, Any]) -> str:
    """Return one model's table. `integer`: convolutions and matrix products that run in integers; `ms`: a sample's."""
    if "error" in result:
        return f"{result['model']}: {result['error']}"
    cells = [HEAD, *(_cells(row, result["samples"]) for row in result["rows"])]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD) - 1)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True)) for row in cells]
    classes = "" if result["classes"] is None else f" of {result['classes']} classes"
    return "\n".join([f"{result['model']}: {result['samples']} samples{classes}", *(line.rstrip() for line in lines)])


def _cells(row: Mapping[str, Any], samples: int) -> tuple[str, ...]:
    """Return a row's texts; one that failed ends with its error."""
    label = row["file"], row["runtime"], row["setting"]
    if "error" in row:
        return (*label, "no", *[""] * (len(HEAD) - 5), row["error"][:ERROR_SHOWN])
    return (
        *label,
        "yes",
        *_texts(row.get("to_onnxruntime", {}), samples),
        *_texts(row["to_float"], samples),
        str(row.get("integer", "")),
        f"{row['seconds'] * 1e3:.1f}",
    )


def _texts(distance: Mapping[str, float | None], samples: int) -> tuple[str, str, str]:
    agreement = distance.get("agreement")
    share = "" if agreement is None else f"{round(agreement * samples)}/{samples}"
    sqnr, centred = (f"{distance[key]:.1f}" if key in distance else "" for key in ("sqnr", "centred"))
    return share, sqnr, centred
