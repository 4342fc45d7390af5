"""Latency: two models timed in turn in one process, and a per-node profile.

Machines are shared and their speed drifts, so a single time means little. Both models run alternately, round by
round, and the ratio of the medians is the figure to trust. With one thread the clock is this thread's CPU time, which
waiting for other processes does not move.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import Tensor

from fxopt.export.session import Session


@dataclass(frozen=True)
class Measurement:
    """Interleaved latencies of a model and its baseline, in seconds per run.

    `speedup` is the baseline's median over the model's: above 1 the model is faster.
    """

    seconds: float
    baseline_seconds: float | None
    rounds: int
    threads: int
    spread: float

    @property
    def speedup(self) -> float | None:
        """How many times faster than the baseline."""
        return None if self.baseline_seconds is None else self.baseline_seconds / self.seconds


def measure(
    model: str | Path | onnx.ModelProto,
    inputs: Sequence[Tensor],
    *,
    baseline: str | Path | onnx.ModelProto | None = None,
    threads: int = 1,
    seconds: float = 2.0,
    settings: Mapping[str, str] | None = None,
) -> Measurement:
    """Time a model, alternately with a baseline if one is given, for about `seconds` in all.

    `inputs` are the tensor inputs in order. `spread` in the result is the distance of the quartiles over the median.
    """
    other = [Session(baseline, threads=threads)] if baseline is not None else []  # first: it is the larger one to load
    sessions = [Session(model, threads=threads, settings=settings), *other]
    clock = time.thread_time if threads == 1 else time.perf_counter
    runs = [_runner(session, inputs) for session in sessions]
    times: list[list[float]] = [[] for _ in runs]
    for session in sessions:  # also warms up
        session(*inputs)
    deadline = time.perf_counter() + seconds
    while len(times[0]) < 5 or (time.perf_counter() < deadline and len(times[0]) < 1000):
        for run, samples in zip(runs, times, strict=True):
            start = clock()
            run()
            samples.append(clock() - start)
    medians = [statistics.median(samples) for samples in times]
    low, _, high = statistics.quantiles(times[0], n=4)
    return Measurement(
        seconds=medians[0],
        baseline_seconds=medians[1] if baseline is not None else None,
        rounds=len(times[0]),
        threads=threads,
        spread=(high - low) / medians[0],
    )


def _runner(session: Session, inputs: Sequence[Tensor]) -> Callable[[], object]:
    feeds = session.feeds(inputs)
    return lambda: session.raw.run(None, feeds)


def profile(
    model: str | Path | onnx.ModelProto,
    inputs: Sequence[Tensor],
    *,
    runs: int = 10,
    settings: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Return the median seconds of each node of the optimised graph, slowest first, with one thread."""
    with tempfile.TemporaryDirectory(prefix="fxopt-profile-") as folder:
        session = Session(model, profile=Path(folder) / "run", settings=settings)
        run = _runner(session, inputs)
        for _ in range(runs):
            run()
        events = json.loads(Path(session.raw.end_profiling()).read_text())
    samples: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            samples.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] * 1e-6)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))
