"""What a tool gets and what it returns: files in one folder, so that each tool can have an environment of its own.

The folder of a model holds `float.onnx` and `model.pt2` (the same network as an ExportedProgram), `calibration.npz`
and `held_out.npz` (an array [samples, ...] an input, in the order of the inputs) and `case.json`. A tool writes
`LABEL.onnx` and `LABEL.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Job:
    """One model to quantize with one setting of a tool."""

    folder: Path
    setting: str
    output: Path
    name: str
    kind: str

    @property
    def float_model(self) -> Path:
        """The float ONNX file, the same for all tools."""
        return self.folder / "float.onnx"

    @property
    def exported_model(self) -> Path:
        """The float network as a torch ExportedProgram."""
        return self.folder / "model.pt2"

    def calibration(self) -> list[dict[str, np.ndarray]]:
        """Return the calibration samples, each of batch 1: an array for every input name."""
        return list(samples(self.folder / "calibration.npz"))


def samples(path: Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield the samples of an .npz file, each of batch 1: an array for every input name, in order."""
    with np.load(path) as file:
        arrays: Mapping[str, np.ndarray] = {name: file[name] for name in file.files}
    for index in range(len(next(iter(arrays.values())))):
        yield {name: array[index : index + 1] for name, array in arrays.items()}


def stopwatch() -> Callable[[], dict[str, float]]:
    """Start to measure; what is returned tells the CPU seconds of this process and the seconds that have passed."""
    cpu, wall = time.process_time(), time.perf_counter()
    return lambda: {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}


def main(version: str, quantize: Callable[[Job], Mapping[str, object] | None]) -> None:
    """Run a tool on the job that the command line names, and note what it took, imports left out.

    What `quantize` returns is noted too.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("setting")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    case = json.loads((options.folder / "case.json").read_text())
    job = Job(options.folder, options.setting, options.output, case["name"], case["kind"])
    taken = stopwatch()
    extra = quantize(job)
    found = {"version": version, **taken(), **(extra or {})}
    job.output.with_suffix(".json").write_text(json.dumps(found))
