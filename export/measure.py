"""Latency: two models timed in turn in one process, and a per-node profile.

Machines are shared and their speed drifts, so a single time means little. Both models run alternately, round by
round, and the ratio of the medians is the figure to trust. With one thread the clock is this thread's CPU time, which
waiting for other processes does not move.
"""

from __future__ import annotations

import json
import random
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


def race(sessions: Sequence[Session], inputs: Sequence[Tensor], seconds: float = 2.0) -> list[Measurement]:
    """Time sessions in turn, round by round, for about `seconds` in all. The first is the baseline of the others.

    Each round has an order of its own: what ran before leaves the caches, and the clock of the core, to the next one.

    All sessions must have the same number of threads. `inputs` are the tensor inputs in order.
    """
    threads = sessions[0].threads
    clock = time.thread_time if threads == 1 else time.perf_counter
    runs = [_runner(session, inputs) for session in sessions]
    times: list[list[float]] = [[] for _ in runs]
    for session in sessions:  # also warms up
        session(*inputs)
    order = random.Random(0)
    deadline = time.perf_counter() + seconds
    while len(times[0]) < 5 or (time.perf_counter() < deadline and len(times[0]) < 1000):
        for place in order.sample(range(len(runs)), len(runs)):
            start = clock()
            runs[place]()
            times[place].append(clock() - start)
    medians = [statistics.median(samples) for samples in times]
    spreads = [(high - low) / middle for low, middle, high in (statistics.quantiles(samples, n=4) for samples in times)]
    return [
        Measurement(median, medians[0] if place else None, len(times[0]), threads, spread)
        for place, (median, spread) in enumerate(zip(medians, spreads, strict=True))
    ]


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
    return race([*other, Session(model, threads=threads, settings=settings)], inputs, seconds)[-1]


def _runner(session: Session, inputs: Sequence[Tensor]) -> Callable[[], object]:
    feeds = session.feeds(inputs)
    return lambda: session.raw.run(None, feeds)


@dataclass(frozen=True)
class KernelTime:
    """One node of an optimised graph: its name, its op type, and its seconds, the fewest of all runs."""

    name: str
    op: str
    seconds: float


def profile(
    model: str | Path | onnx.ModelProto,
    inputs: Sequence[Tensor],
    *,
    runs: int = 10,
    settings: Mapping[str, str] | None = None,
) -> list[KernelTime]:
    """Return the time of each node of the optimised graph, slowest first, with one thread.

    The time that recording itself takes is in every figure: some microseconds. onnxruntime reads the wall clock here:
    what else runs on the machine only adds to a time, so that the fewest seconds of some runs are nearest to the truth.
    """
    with tempfile.TemporaryDirectory(prefix="fxopt-profile-") as folder:
        session = Session(model, profile=Path(folder) / "run", settings=settings)
        run = _runner(session, inputs)
        for _ in range(runs):
            run()
        events = json.loads(Path(session.raw.end_profiling()).read_text())
    samples: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
            samples.setdefault(key, []).append(event["dur"] * 1e-6)
    times = [KernelTime(name, op, min(values)) for (name, op), values in samples.items()]
    return sorted(times, key=lambda kernel: -kernel.seconds)
