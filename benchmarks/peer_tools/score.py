"""Score all int8 files of one model in one process: latency in turn, error on held-out inputs, task, census.

`python -m benchmarks.peer_tools.score FOLDER --seconds 10`, which writes FOLDER/scores.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peer_tools.job import samples
from benchmarks.peer_tools.real_cases import ALL_CASES
from fxopt.errors import FxoptError
from fxopt.export.census import take_census
from fxopt.export.compare import compare_output
from fxopt.export.measure import Measurement, race
from fxopt.export.session import Session

FLOAT = "float"
LOADS = 5  # of every file, a number of threads


def score(folder: Path, seconds: float, threads: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return the figures of every file of the folder, by label; "error" alone for one that does not run."""
    case = json.loads((folder / "case.json").read_text())
    items = [[torch.from_numpy(array) for array in item.values()] for item in samples(folder / "held_out.npz")]
    # What a tool did not note is the rest of a run that was broken off.
    labels = sorted(path.stem for path in folder.glob("*.onnx") if path.with_suffix(".json").exists())
    settings = {label: _session_settings(folder, label) for label in labels}
    reference = _outputs(Session(folder / "float.onnx"), items)
    rows: dict[str, dict[str, Any]] = {FLOAT: {"bytes": _bytes(folder / "float.onnx")}}
    rows[FLOAT]["metric"] = _metric(case["name"], Session(folder / "float.onnx"))
    for label in labels:
        try:
            rows[label] = _figures(folder / f"{label}.onnx", items, reference, settings[label], case)
        except FxoptError as error:
            rows[label] = {"error": str(error)}
    running = [label for label, row in rows.items() if "error" not in row]
    for count in threads:
        heats = [_heat(folder, running, settings, items[0], seconds / LOADS, count, seed) for seed in range(LOADS)]
        for label in running:
            timings = [heat[label] for heat in heats]
            rows[label][f"seconds_{count}"] = statistics.median(timing.seconds for timing in timings)
            rows[label][f"spread_{count}"] = max(timing.spread for timing in timings)
            rows[label][f"rounds_{count}"] = sum(timing.rounds for timing in timings)
            rows[label][f"speedup_{count}"] = statistics.median(timing.speedup or 1.0 for timing in timings)
    return rows


def _heat(
    folder: Path,
    labels: Sequence[str],
    settings: Mapping[str, Mapping[str, str]],
    inputs: Sequence[Tensor],
    seconds: float,
    threads: int,
    seed: int,
) -> dict[str, Measurement]:
    """Load all files, the float one first, and time them in turn.

    Where a load puts its buffers moves the times of all of its runs, so the others are loaded in a `seed`'s order.
    """
    order = [FLOAT, *random.Random(seed).sample([label for label in labels if label != FLOAT], len(labels) - 1)]
    sessions = [Session(folder / f"{label}.onnx", threads=threads, settings=settings.get(label)) for label in order]
    return dict(zip(order, race(sessions, inputs, seconds), strict=True))


def _figures(
    path: Path,
    items: Sequence[Sequence[Tensor]],
    reference: Tensor,
    settings: Mapping[str, str],
    case: Mapping[str, Any],
) -> dict[str, Any]:
    session = Session(path, settings=settings)
    outputs = _outputs(session, items)
    middle = reference.mean(0)
    census = take_census(path, settings=settings)
    error = compare_output("output", reference, outputs)
    return {
        "sqnr": error.sqnr,
        "centred_sqnr": compare_output("output", reference - middle, outputs - middle).sqnr,
        "agreement": error.agreement if case["classifies"] else None,
        "metric": _metric(case["name"], session),
        "bytes": _bytes(path),
        "kernels": dict(census.kernels),
        "integer_kernels": census.integer_kernels,
        "float_compute": len(census.float_compute),
        "weight_dequantize": census.weight_dequantize,
    }


def _metric(name: str, session: Session) -> float | None:
    """Return the figure of a file in the model's task, if that has one."""
    evaluate = ALL_CASES[name].evaluate
    return None if evaluate is None else evaluate(session)


def _outputs(session: Session, items: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the first output for all inputs, one run each."""
    return torch.cat([session(*item)[0] for item in items])


def _session_settings(folder: Path, label: str) -> Mapping[str, str]:
    settings: Mapping[str, str] = json.loads((folder / f"{label}.json").read_text()).get("session", {})
    return settings


def _bytes(path: Path) -> int:
    """Return the size of a model's files: its own, and those of the weights beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = score(options.folder, options.seconds, options.threads)
    (options.folder / "scores.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
