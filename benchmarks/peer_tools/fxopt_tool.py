"""fxopt itself: compile() with a recipe, for this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.peer_tools.job import Job, main, stopwatch
from benchmarks.peer_tools.real_cases import ALL_CASES
from benchmarks.peer_tools.tools import LATENCY
from fxopt import __version__, compile
from fxopt.target import find_target


def quantize(job: Job) -> Mapping[str, object]:
    """Compile the model as the user would, from its module."""
    case = ALL_CASES[job.name]
    items = [{name: torch.from_numpy(array) for name, array in sample.items()} for sample in job.calibration()]
    example = next(case.samples("calibration", 1))
    calibration = items if isinstance(example, dict) else [tuple(item.values()) for item in items]
    model = case.build()
    taken = stopwatch()
    result = compile(
        model,
        example,
        calibration=None if job.setting == "int8-dynamic" else calibration,
        target="auto",
        output=job.output,
        name=job.name,
        **arguments(job.setting),
    )
    report = result.report
    return {
        **taken(),
        "session": dict(find_target(report.target).session),
        "target": report.target,
        "chosen": "float" if report.is_float else None,
        "seconds": dict(report.seconds),
        "notes": list(report.notes),
    }


def arguments(setting: str) -> dict[str, Any]:
    """Return what a setting means to compile(): a recipe, or with LATENCY in front a bound for the best int8 model."""
    if setting.startswith(LATENCY):
        return {"recipe": "int8", "max_latency": float(setting.removeprefix(LATENCY))}
    return {"recipe": setting}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(__version__, quantize)
