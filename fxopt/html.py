"""A Report as one self-contained HTML page: inline style, inline SVG, nothing fetched, light and dark."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from fxopt.errors import ModelError
from fxopt.options import write_text
from fxopt.report import Report
from fxopt.summary import (
    CANDIDATE_HEADINGS,
    ERROR_HEADINGS,
    LAYER_HEADINGS,
    bytes_text,
    candidate_rows,
    census_rows,
    error_cells,
    float_reasons,
    is_compressed,
    layer_cells,
    notable_layers,
    other_notes,
    precisions_text,
    seconds_text,
    summary_rows,
)
from fxopt.version import __version__

KERNELS_SHOWN = 16
LAYERS_SHOWN = 12  # a longer table is folded, below the layers that matter most


class Bar(NamedTuple):
    """One bar of a chart: a label, the figure as text, and its length as a percentage of the longest."""

    label: str
    figure: str
    percent: float


class Chart(NamedTuple):
    """Bars on one scale."""

    title: str
    bars: list[Bar]


def write_html(report: Report, path: Path) -> Path:
    """Write the page; returns its path. Raises ModelError without jinja2, ExportError if the file cannot be written."""
    return write_text(path, html(report))


def html(report: Report) -> str:
    """Return the page as text. Everything that comes from the model is escaped."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError:
        raise ModelError('The HTML report needs jinja2: run pip install "fxopt[cli]".') from None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("fxopt").joinpath("templates/report.html.jinja").read_text("utf-8"))
    return template.render(
        report=report,
        version=__version__,
        compressed=is_compressed(report),
        summary=summary_rows(report),
        charts=comparison_charts(report),
        candidates=candidate_rows(report),
        candidate_headings=CANDIDATE_HEADINGS,
        error_headings=ERROR_HEADINGS,
        differences=[error_cells(error) for error in report.differences],
        proof=[error_cells(error) for error in report.proof],
        census=census_rows(report),
        kernels=kernel_chart(report),
        layer_headings=LAYER_HEADINGS,
        layers=[layer_cells(row) for row in report.layers],
        notable=[layer_cells(row) for row in notable_layers(report.layers)],
        precisions=precisions_text(report.layers),
        layers_shown=LAYERS_SHOWN,
        notes=other_notes(report),
        reasons=float_reasons(report.float_reasons),
        stages=stage_chart(report),
    )


def comparison_charts(report: Report) -> list[Chart]:
    """Return bars of file size and latency, float above compiled; none for a float recipe."""
    if not is_compressed(report):
        return []
    before, after = report.baseline, report.result
    charts = [_chart("File size", {"float": before.file_bytes, report.recipe: after.file_bytes}, bytes_text)]
    if report.latency is not None and report.latency.baseline_seconds is not None:
        latencies = {"float": report.latency.baseline_seconds, report.recipe: report.latency.seconds}
        charts.append(_chart("Latency", latencies, seconds_text))
    return charts


def kernel_chart(report: Report) -> Chart:
    """Return how many nodes of each kind onnxruntime runs, the most frequent first."""
    counts = sorted(report.census.kernels.items(), key=lambda item: (-item[1], item[0]))
    return _chart("Kernels", dict(counts[:KERNELS_SHOWN]), str)


def stage_chart(report: Report) -> Chart:
    """Return how long each stage of the compilation took."""
    return _chart("Stages", dict(report.seconds), seconds_text)


def _chart(title: str, values: dict[str, float] | dict[str, int], text: Any) -> Chart:
    longest = max(values.values(), default=0) or 1
    return Chart(title, [Bar(label, text(value), round(100 * value / longest, 2)) for label, value in values.items()])
