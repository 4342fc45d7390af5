"""A Report in words: the rows that the terminal and the HTML page both show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fxopt.export.census import INTEGER_KERNELS
from fxopt.export.compare import OutputError
from fxopt.layers import FLOAT, LayerRow
from fxopt.report import Report

NAMES_SHOWN = 3
WORST_SHOWN = 3  # layers with the largest error, and as many that take the longest


@dataclass(frozen=True)
class Row:
    """One figure of both models; `baseline` and `change` are empty where there is nothing to compare with."""

    label: str
    baseline: str
    result: str
    change: str


@dataclass(frozen=True)
class Reason:
    """Why nodes stayed float: the reason, how many nodes it holds for, and the first few names."""

    text: str
    count: int
    names: str


def summary_rows(report: Report) -> list[Row]:
    """Return size, parameters, multiply-accumulates, latency and metric of the float model and the compiled one."""
    before, after = report.baseline, report.result
    rows = [
        _row("file size", bytes_text, before.file_bytes, after.file_bytes, ("smaller", "larger")),
        _row("parameters", count_text, before.parameters, after.parameters, ("fewer", "more")),
        _row("multiply-accumulates a sample", count_text, before.macs, after.macs, ("fewer", "more")),
    ]
    if report.latency is not None:
        seconds, baseline = report.latency.seconds, report.latency.baseline_seconds
        threads = f"latency, {report.latency.threads} thread" + ("" if report.latency.threads == 1 else "s")
        change = "" if baseline is None else ratio(baseline, seconds, "faster", "slower")
        rows.append(Row(threads, "" if baseline is None else seconds_text(baseline), seconds_text(seconds), change))
    if before.metric is not None and after.metric is not None:
        difference = after.metric - before.metric
        change = f"{difference:+.4g}" if difference else "no change"
        rows.append(Row("metric", f"{before.metric:.4g}", f"{after.metric:.4g}", change))
    return rows if is_compressed(report) else [replace(row, baseline="", change="") for row in rows]


def _row(label: str, text: Callable[[float], str], before: float, after: float, words: tuple[str, str]) -> Row:
    return Row(label, text(before), text(after), ratio(before, after, *words))


def is_compressed(report: Report) -> bool:
    """Say whether the result is another model than the float baseline."""
    return not report.is_float


def census_rows(report: Report) -> list[tuple[str, str]]:
    """Return what onnxruntime runs, as (label, figure)."""
    census = report.census
    nodes = sum(census.kernels.values())
    integer = {name: count for name, count in census.kernels.items() if name in INTEGER_KERNELS}
    rows = [("nodes after onnxruntime's optimisations", str(nodes)), ("integer kernels", _counts(integer))]
    rows.append(("float convolutions and matrix products", _named(census.float_compute)))
    rows.append(("transposes", str(census.transposes)))
    if is_compressed(report):
        rows.append(("weights dequantized on every run", str(census.weight_dequantize)))
        if census.stored_weights:
            rows.append(("weights stored as int8, dequantized on every run", str(census.stored_weights)))
        rows.append(("quantized nodes that did not fuse", _named(tuple(census.unfused))))
    if report.delegated:
        ops = ", ".join(f"{op} ({len(nodes)})" for op, nodes in report.delegated.items())
        rows.append(("ops translated by torch.onnx", ops))
    return rows


CANDIDATE_HEADINGS = ("tried", "against float", "latency", "SQNR")


def candidate_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Return what was timed for the choice: name, speed against float, latency, and the SQNR of the outputs."""
    return [
        (c.name, f"{c.speedup:.2f}x", seconds_text(c.latency.seconds), f"{c.sqnr:.1f} dB") for c in report.candidates
    ]


LAYER_HEADINGS = ("layer", "op", "precision", "MACs", "float", "integer", "SQNR", "reason")


def layer_cells(row: LayerRow) -> tuple[str, ...]:
    """Return a layer as text; empty where nothing was measured."""
    times = ("" if seconds is None else seconds_text(seconds) for seconds in (row.float_seconds, row.integer_seconds))
    error = "" if row.error is None else _sqnr_text(row.error)
    op = row.op.removeprefix("aten.").partition(".")[0]
    return row.name, op, row.precision, count_text(row.macs) if row.macs else "", *times, error, row.reason


def notable_layers(layers: Sequence[LayerRow]) -> list[LayerRow]:
    """Return the layers with the largest errors, the worst first, and then those of the rest that take the longest."""
    inexact = [row for row in layers if row.error is not None and row.error < math.inf]
    worst = sorted(inexact, key=lambda row: row.error or 0.0)[:WORST_SHOWN]
    slowest = sorted((row for row in layers if row not in worst and _seconds(row)), key=_seconds, reverse=True)
    return worst + slowest[:WORST_SHOWN]


def _seconds(row: LayerRow) -> float:
    """Return the time of a layer as it is; 0 if it is not known."""
    return (row.float_seconds if row.precision == FLOAT else row.integer_seconds) or 0.0


def precisions_text(layers: Sequence[LayerRow]) -> str:
    """Say how many layers have which precision, the most frequent first."""
    counts = Counter(row.precision for row in layers)
    return ", ".join(f"{count} {precision}" for precision, count in counts.most_common())


def float_reasons(reasons: Mapping[str, str]) -> list[Reason]:
    """Group the nodes that stayed float by reason, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [Reason(text, len(names), shortened(names)) for text, names in ordered]


def other_notes(report: Report) -> list[str]:
    """Return the notes that do not only repeat what stayed float."""
    return [note for note in report.notes if not (report.float_reasons and note.startswith("Float: "))]


def error_cells(error: OutputError) -> tuple[str, str, str, str, str]:
    """Return name, largest error, error over the range, SQNR and agreement as text."""
    relative = "∞" if math.isinf(error.relative) else f"{error.relative:.2g}"
    largest = "∞" if math.isinf(error.max_error) else f"{error.max_error:.3g}"
    return error.name, largest, relative, _sqnr_text(error.sqnr), f"{100 * error.agreement:.4g} %"


def _sqnr_text(sqnr: float) -> str:
    return {math.inf: "exact", -math.inf: "none"}.get(sqnr, f"{sqnr:.1f} dB")


ERROR_HEADINGS = ("output", "largest error", "of its range", "SQNR", "same argmax")


def _counts(kernels: Mapping[str, int]) -> str:
    if not kernels:
        return "0"
    return f"{sum(kernels.values())} ({', '.join(f'{name} {count}' for name, count in kernels.items())})"


def _named(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({shortened(names)})" if names else "0"


def shortened(names: list[str] | tuple[str, ...]) -> str:
    """Join the first few names and say how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def ratio(before: float, after: float, smaller: str, larger: str) -> str:
    """Say how many times smaller or larger something became; empty if it is the same to about a percent."""
    if not before or not after or abs(before / after - 1) < 0.015:
        return ""
    return f"{before / after:.2f}x {smaller}" if before > after else f"{after / before:.2f}x {larger}"


def bytes_text(count: float) -> str:
    """Write a number of bytes with a decimal unit: 1500 is 1.5 kB."""
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB"))


def count_text(count: float) -> str:
    """Write a large number with k (thousand), M, G or T."""
    return _scaled(count, 1000, ("", "k", "M", "G", "T"))


def _scaled(value: float, step: int, units: tuple[str, ...]) -> str:
    size, unit = value, 0
    while size >= 999.5 and unit < len(units) - 1:
        size, unit = size / step, unit + 1
    return (f"{size:.0f}" if unit == 0 else f"{size:.3g}") + (f" {units[unit]}" if units[unit] else "")


def seconds_text(seconds: float) -> str:
    """Write a duration in s, ms or µs, to three digits."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 0.9995:
            return f"{seconds * factor:.3g} {unit}" if seconds * factor < 999.5 else f"{seconds * factor:.0f} {unit}"
    return f"{seconds * 1e6:.3g} µs"
