"""What happened to one model of a zoo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What happened to one model: ok, or the stage it failed in and why."""

    name: str
    family: str
    suite: str
    task: str
    ratio: float = 0.5
    ok: bool = False
    stage: str = "start"
    reason: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    max_error: float | None = None
    sqnr: float | None = None
    macs_left: float | None = None
    delegated: dict[str, int] = field(default_factory=dict)
    kernels: dict[str, int] = field(default_factory=dict)
    integer: int = 0
    weight_dequantize: int = 0
    float_reasons: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Enter a stage and add up its wall time."""
        self.stage = stage
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)
