"""fxopt itself: compile() with a recipe, for this machine."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from benchmarks.peer_tools.cases import CASES
from benchmarks.peer_tools.job import Job, main, stopwatch
from benchmarks.peer_tools.tools import LATENCY
from fxopt import __version__, compile
from fxopt.target import find_target


def quantize(job: Job) -> Mapping[str, object]:
    """Compile the model as the user would, from its module; the setting is the recipe, or "latency-" and its bound."""
    case = CASES[job.name]
    items = [{name: torch.from_numpy(array) for name, array in sample.items()} for sample in job.calibration()]
    example = next(case.samples("calibration", 1))
    calibration = items if isinstance(example, dict) else [tuple(item.values()) for item in items]
    model = case.build()
    bound = float(job.setting.removeprefix(LATENCY)) if job.setting.startswith(LATENCY) else None
    taken = stopwatch()
    result = compile(
        model,
        example,
        recipe=job.setting if bound is None else "int8",  # type: ignore[arg-type]
        calibration=None if job.setting == "int8-dynamic" else calibration,
        max_latency=bound,
        target="auto",
        output=job.output,
        name=job.name,
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(__version__, quantize)
