"""Who beats whom: which peers' points (speed, exactness) one of fxopt's dominates, and by how much it is faster."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peer_tools.score import FLOAT
from benchmarks.peer_tools.tools import OURS

NOISE = 0.03  # of the latency
DEFAULT = "int8"


@dataclass(frozen=True)
class Point:
    """One file: who made it, how many times faster than float (one thread), and its SQNR in dB."""

    label: str
    speedup: float
    sqnr: float

    def dominates(self, other: Point) -> bool:
        """Say whether this is at least as fast, but for the noise of timing, and at least as exact."""
        return self.speedup >= other.speedup * (1 - NOISE) and self.sqnr >= other.sqnr


@dataclass(frozen=True)
class Verdict:
    """What one model shows.

    - `undominated`: the peers' points that no point of ours dominates.
    - `fastest`: the fastest peer's point. `default`: ours with the recipe "int8", None if it failed.
    - `gain`: the fastest peer's time over that of the default; above 1 ours is faster.
    - `default_dominates`: whether the default dominates the fastest peer's point.
    """

    undominated: tuple[Point, ...]
    fastest: Point | None
    default: Point | None

    @property
    def gain(self) -> float | None:
        """How many times faster the default is than the fastest peer."""
        return None if self.fastest is None or self.default is None else self.default.speedup / self.fastest.speedup

    @property
    def default_dominates(self) -> bool | None:
        """Whether the default is as fast and as exact as the fastest peer."""
        return None if self.fastest is None or self.default is None else self.default.dominates(self.fastest)


def points(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Point], list[Point]]:
    """Return our points and the peers'; rows that failed, and the float one, have none."""
    ours: list[Point] = []
    peers: list[Point] = []
    for row in rows:
        if "speedup_1" in row and row["tool"] != FLOAT:
            point = Point(f"{row['tool']} {row['setting']}", row["speedup_1"], row["sqnr"])
            (ours if row["tool"] == OURS else peers).append(point)
    return ours, peers


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Compare all points of one model."""
    ours, peers = points(rows)
    return Verdict(
        undominated=tuple(peer for peer in peers if not any(point.dominates(peer) for point in ours)),
        fastest=max(peers, key=lambda point: point.speedup, default=None),
        default=next((point for point in ours if point.label == f"{OURS} {DEFAULT}"), None),
    )


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive values."""
    return math.exp(sum(math.log(value) for value in values) / len(values))
