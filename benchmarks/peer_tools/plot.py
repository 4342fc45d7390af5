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
            for point in group:
                axis.annotate(
                    point.label, (point.speedup, _height(point)), fontsize=6, xytext=(3, 3), textcoords="offset points"
                )
        axis.margins(x=0.3)  # for the labels
        axis.axvline(1, color="black", linewidth=0.5)
        axis.set(title=result["model"], xlabel="times as fast as float, 1 thread", ylabel="SQNR, dB")
    figure.tight_layout()
    figure.savefig(path)


def _height(point: Point) -> float:
    return min(point.sqnr, CEILING)
