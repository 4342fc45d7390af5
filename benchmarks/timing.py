"""Time several ways to do a thing in turn, so that all of them meet the same noise of the machine."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable, Mapping


def interleaved_medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each call over the rounds; one more round before them warms up."""
    times: dict[str, list[float]] = {key: [] for key in calls}
    for number in range(rounds + 1):
        for key, call in calls.items():
            spent = seconds(call)
            if number:
                times[key].append(spent)
    return {key: statistics.median(values) for key, values in times.items()}


def seconds(call: Callable[[], object]) -> float:
    """Return the CPU time of a call, with its console output thrown away."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        start = time.process_time()
        call()
        return time.process_time() - start
