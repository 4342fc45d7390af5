"""What the commands show in a terminal: tables on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from fxopt.export.compare import OutputError
from fxopt.export.measure import KernelTime, Measurement
from fxopt.export.validate import Validation
from fxopt.job import Progress
from fxopt.report import Report
from fxopt.summary import (
    CANDIDATE_HEADINGS,
    ERROR_HEADINGS,
    LAYER_HEADINGS,
    bytes_text,
    candidate_rows,
    census_rows,
    count_text,
    error_cells,
    float_reasons,
    is_compressed,
    layer_cells,
    notable_layers,
    other_notes,
    precisions_text,
    seconds_text,
    shortened,
    summary_rows,
)

REASONS_SHOWN = 12


def show(*parts: RenderableType) -> None:
    """Print to stdout, each part a paragraph."""
    console = _console()
    for part in parts:
        console.print(part)


def _console() -> Console:
    """Return stdout; in a pipe or a file the tables may be wider than a terminal's 80 columns."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def show_json(data: Mapping[str, Any]) -> None:
    """Print data as JSON, and nothing else, to stdout."""
    print(json.dumps(data, indent=2, allow_nan=False))


def show_error(message: str, title: str = "error") -> None:
    """Print a message to stderr, as it is: no markup, no line breaks of our own."""
    Console(stderr=True).print(Text.assemble((f"{title}: ", "bold red"), message), soft_wrap=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """Give a function that is called as each stage starts and goes on; a terminal shows it as a bar, on stderr.

    Meanwhile what the user's own code prints goes to stderr too, so that stdout holds the result alone.
    """
    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
        redirect_stdout(sys.stderr),
    ):
        task = bar.add_task("starting", total=None)
        start, stage = time.perf_counter(), ""

        def begin(name: str, done: int = 0, total: int | None = None, /) -> None:
            nonlocal start, stage
            if name != stage:
                now = time.perf_counter()
                if stage and console.is_terminal:
                    console.print(Text(f"  {stage}  {seconds_text(now - start)}", style="dim"))
                start, stage = now, name
                bar.reset(task, total=total)
            count = f" {done}/{total}" if total else f" {done}" if done else ""
            bar.update(task, description=escape(name + count), completed=done, total=total)

        yield begin


def report_parts(report: Report) -> Iterator[RenderableType]:
    """Lay out a report: figures, differences, census, what stayed float and why, notes."""
    title = Text.assemble((report.model, "bold"), f"  {report.recipe}, target {report.target}, opset {report.opset}")
    yield Padding(title, (1, 0, 0, 0))
    yield _figures(report)
    if report.candidates:
        yield _rows("What was tried", CANDIDATE_HEADINGS, candidate_rows(report))
    if is_compressed(report):
        yield errors_table("Against the float model", report.differences)
    yield errors_table("The file in onnxruntime against the compiled graph", report.proof)
    yield pairs_table("What onnxruntime runs", census_rows(report))
    if report.layers:
        yield _layers(report)
    if report.float_reasons:
        yield _reasons(report)
    if other_notes(report):
        yield notes_block(other_notes(report))


def _figures(report: Report) -> Table:
    compressed = is_compressed(report)
    table = _table(None, ("", *(("float",) if compressed else ()), report.recipe, *(("",) if compressed else ())))
    for row in summary_rows(report):
        cells = (row.label, row.baseline, row.result, row.change) if compressed else (row.label, row.result)
        table.add_row(*cells)
    return table


def errors_table(title: str, errors: Iterable[OutputError]) -> Table:
    """Return one row an output: largest error, SQNR, agreement."""
    return _rows(title, ERROR_HEADINGS, map(error_cells, errors))


def _rows(title: str, headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = _table(title, headings)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def pairs_table(title: str | None, rows: Iterable[tuple[str, str]]) -> Table:
    """Return a table of labels and figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for label, figure in rows:
        table.add_row(Text(label), Text(figure))
    return table


def _layers(report: Report) -> Table:
    """Return the least exact and the slowest layers; why layers are float is in a table of its own."""
    title = f"Layers: {precisions_text(report.layers)}; the least exact and the slowest (all in --json and --html)"
    rows = [layer_cells(row)[:-1] for row in notable_layers(report.layers)]
    return _rows(title, LAYER_HEADINGS[:-1], rows)


def _reasons(report: Report) -> Table:
    reasons = float_reasons(report.float_reasons)
    table = _table(f"What stayed float ({len(report.float_reasons)} nodes)", ("reason", "nodes", "for example"))
    table.columns[1].justify = "right"
    for reason in reasons[:REASONS_SHOWN]:
        table.add_row(Text(reason.text), str(reason.count), Text(reason.names))
    if len(reasons) > REASONS_SHOWN:
        table.add_row(f"and {len(reasons) - REASONS_SHOWN} more reasons, in --json and --html", "", "")
    return table


def notes_block(notes: Sequence[str]) -> RenderableType:
    """Return the notes as a list."""
    return Group(Text("Notes", style="bold"), *(Text(f"- {note}") for note in notes))


def inspection_parts(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Lay out what `fxopt inspect` found."""
    yield Padding(Text(data["model"], style="bold"), (1, 0, 0, 0))
    rows = [("input", text) for text in data["inputs"]] + [("output", text) for text in data["outputs"]]
    rows += [
        ("nodes", f"{sum(data['ops'].values())} of {len(data['ops'])} ops"),
        ("parameters", f"{count_text(data['parameters'])} ({bytes_text(data['parameter_bytes'])})"),
        ("multiply-accumulates", f"{count_text(data['macs'])} a sample"),
    ]
    if data["history"]:
        rows.append(("history", " -> ".join(data["history"])))
    yield pairs_table(None, rows)
    if data["notes"]:
        yield notes_block(data["notes"])


def channel_parts(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Lay out what can be removed: the groups, what stays and why, ops without a rule, and how far one can go."""
    table = _table(f"Groups ({len(data['groups'])})", ("units", "made by", "dimensions", "last read by", ""))
    for group in data["groups"]:
        takes = [name if count == 1 else f"{name} ×{count}" for name, count in group["members"].items()]
        last = takes[-1] if len(takes) > 1 else ""
        row = (str(group["units"]), takes[0], str(len(takes)), last, "averaged" if group["inexact"] else "")
        table.add_row(*map(Text, row))
    yield table
    yield _rows("What stays", ("dimensions", "reason", "for example"), _gathered(data["stays"], "dimensions"))
    if data["no_rule"]:
        yield _rows("Ops without a rule", ("nodes", "reason", "for example"), _gathered(data["no_rule"], "nodes"))
    yield pairs_table("What can be left", [(name, _range_text(entry)) for name, entry in data["reachable"].items()])


def _gathered(entries: Iterable[Mapping[str, Any]], key: str) -> Iterator[tuple[str, str, str]]:
    for entry in entries:
        yield str(len(entry[key])), entry["reason"], shortened(entry[key])


def _range_text(entry: Mapping[str, int]) -> str:
    least, whole = entry["least"], entry["whole"]
    return f"{count_text(least)} to {count_text(whole)} ({100 * least / max(whole, 1):.2g} % to 100 %)"


def ops_table(ops: Mapping[str, int]) -> Table:
    """Return how often each op occurs, the most frequent first."""
    table = _table("Ops", ("op", "nodes"))
    table.columns[1].justify = "right"
    for op, count in ops.items():
        table.add_row(op, str(count))
    return table


def validation_parts(model: str, result: Validation) -> Iterator[RenderableType]:
    """Lay out a proof."""
    verdict = Text("proved", style="bold green") if result.ok else Text("not proved", style="bold red")
    yield Padding(Text.assemble((f"{model}: ", "bold"), verdict), (1, 0, 0, 0))
    for failure in result.failures:
        yield Text(f"- {failure}")
    rows = [("checks", ", ".join(result.checks))] if result.checks else []
    sizes = [", ".join(f"{name} {size}" for name, size in run.items()) for run in result.sizes if run]
    rows += [("sizes tried", "; ".join(sizes))] if sizes else []
    rows += [("sizes skipped", "; ".join(result.skipped))] if result.skipped else []
    if result.census is not None:
        kernels = ", ".join(f"{name} {count}" for name, count in result.census.kernels.items())
        rows += [("kernels", kernels), ("integer kernels", str(result.census.integer_kernels))]
    if result.outputs:
        yield errors_table("In onnxruntime against the program", result.outputs)
    yield pairs_table(None, rows)


def bench_table(model: str, baseline: str | None, result: Measurement) -> Table:
    """Return the latencies of a model and, if there is one, its baseline."""
    threads = f"{result.threads} thread{'' if result.threads == 1 else 's'}"
    table = _table(f"{result.rounds} rounds, {threads}", ("model", "median", ""))
    spread = f"quartiles {100 * result.spread:.1f} % apart"
    speedup = result.speedup
    faster = "" if speedup is None else f"{speedup:.2f}x the baseline's speed, "
    table.add_row(Text(model), seconds_text(result.seconds), faster + spread)
    if baseline is not None and result.baseline_seconds is not None:
        table.add_row(Text(baseline), seconds_text(result.baseline_seconds), "baseline")
    return table


def profile_table(kernels: Sequence[KernelTime], shown: int = 20) -> Table:
    """Return the slowest nodes of the optimised graph and their share of the time."""
    table = _table(f"The slowest of {len(kernels)} nodes", ("node", "kernel", "median", "share"))
    total = sum(kernel.seconds for kernel in kernels) or 1.0
    for kernel in kernels[:shown]:
        share = f"{100 * kernel.seconds / total:.1f} %"
        table.add_row(Text(kernel.name), Text(kernel.op), seconds_text(kernel.seconds), share)
    return table


def _table(title: str | None, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
