"""Speed against exactness, one scatter plot a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peer_tools.verdict import Point, points

COLUMNS = 3
CEILING = 80.0  # dB; what is exact is drawn here
INCHES = 4.5
WIDE, TALL = 0.4, 0.028  # of a label, as shares of a plot


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the figure; the format is the path's extension."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(COLUMNS, len(results))
    rows = math.ceil(len(results) / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(columns * INCHES, rows * INCHES), squeeze=False)
    for axis in axes.flat[len(results) :]:
        axis.axis("off")
    for axis, result in zip(axes.flat, results, strict=False):
        ours, peers = points(result["rows"])
        for group, colour, marker in ((peers, "tab:gray", "o"), (ours, "tab:red", "D")):
            axis.scatter([p.speedup for p in group], [_height(p) for p in group], c=colour, marker=marker)
        axis.margins(x=0.1, y=0.1)
        left, right = axis.get_xlim()
        axis.set_xlim(left, right + 0.4 * (right - left))  # for the labels
        _label(axis, [*ours, *peers])
        axis.axvline(1, color="black", linewidth=0.5)
        axis.set(title=result["model"], xlabel="times as fast as float, 1 thread", ylabel="SQNR, dB")
    figure.tight_layout()
    figure.savefig(path)


def _label(axis: Any, several: Sequence[Point]) -> None:
    """Write the points' labels beside them, from the lowest up, each above those that it would cover."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    taken: list[tuple[float, float]] = []
    for point in sorted(several, key=_height):
        x, y = (point.speedup - left) / (right - left), (_height(point) - low) / (high - low)
        at = y
        while any(abs(x - other) < WIDE and abs(at - above) < TALL for other, above in taken):
            at += TALL / 4
        taken.append((x, at))
        line = {"arrowstyle": "-", "linewidth": 0.3} if at > y else None
        axis.annotate(
            point.label, (x, y), (x + 0.02, at), xycoords="axes fraction", fontsize=6, va="center", arrowprops=line
        )


def _height(point: Point) -> float:
    return min(point.sqnr, CEILING)
